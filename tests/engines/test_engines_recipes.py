"""Real models, real recipes, real engines: nano and EBSeg-B in FP16 and INT8, without a GPU. Minutes and gigabytes.

Seconds and peak memory are printed (pytest -s).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import ebseg_deploy
import pytest
from click.testing import CliRunner
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import EngineSidecar
from ebseg_deploy.export.engines.census import Census, take_census
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.engine_file import check_engine
from rtx import needs_rtx
from tiny_bundles import seal

pytestmark = [pytest.mark.slow, needs_rtx]

PICTURES = Path(ebseg_deploy.__file__).parent / "benchmarks" / "scenes"
"""Four scenes that come with the package: enough for ranges that a builder takes."""
MODELS = {"nano": ("--model", "ebseg-nano"), "b": ("--model", "ebseg-b", "--seeded")}


def run(*words: object) -> str:
    outcome = CliRunner().invoke(ebseg, [str(word) for word in words])
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "fp32.ebseg"
    run("export", *MODELS[request.param], "-o", folder)
    return folder


def build(bundle: Path, *options: str) -> dict[str, tuple[EngineSidecar, Census]]:
    answer = json.loads(run("build", bundle, "--target", "tensorrt-rtx", *options, "--json"))
    found = {}
    for each in answer:
        sidecar = check_engine(Path(each["plan"]))
        census = take_census(sidecar.layers)
        peak = (sidecar.memory.builder_peak_bytes or 0) / (1 << 20)
        print(
            f"{sidecar.model} {sidecar.precision} {sidecar.graph}: {sidecar.build_seconds:.1f} s, peak {peak:.0f} MiB, "
            f"plan {sidecar.plan.bytes / (1 << 20):.0f} MiB, products {census.products_by_type}, "
            f"{census.fused_attentions} fused attentions, {census.casts} casts"
        )
        found[sidecar.graph] = sidecar, census
    return found


def test_fp16(exported: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "fp16.ebseg"
    run("quantize", exported, "--recipe", "fp16", "-o", bundle)
    records = Bundle.open(bundle).manifest.graphs
    engines = build(bundle)
    for record in records:
        sidecar, census = engines[record.name]
        assert sidecar.compute == {record.name: record.compute}
        assert set(census.products_by_type) <= {"Half", "Float"}
        if record.name == "open_vocab_head":
            assert set(census.products_by_type) == {"Float"}
        else:
            assert census.share("Half") > 0.95
    for name in ("clip_image_encoder", "sam_image_encoder"):
        assert engines[name][1].fused_attentions > 0, "half precision is there for TensorRT's fused attention, too"
    merged, census = build(bundle, "--merged")["merged"]
    assert census.casts <= sum(each.casts for _, each in engines.values())
    assert set(merged.compute) == {"clip_image_encoder", "sam_image_encoder", "adab_decoder", "open_vocab_head"}


def test_int8(exported: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "int8.ebseg"
    run("quantize", exported, "--recipe", "int8", "--images", PICTURES, "--no-cache", "-o", bundle)
    engines = build(bundle)
    for name in ("clip_image_encoder", "sam_image_encoder"):
        sidecar, census = engines[name]
        assert sidecar.quantised_nodes
        assert census.share("Int8") > 0.8
    assert set(engines["adab_decoder"][1].products_by_type) <= {"Half", "Float"}
    # The FP32 graph under the same label and record is found out.
    planted = _planted(exported, bundle, tmp_path / "planted.ebseg")
    words = ["build", str(planted), "--target", "tensorrt-rtx", "--graph", "sam_image_encoder"]
    outcome = CliRunner().invoke(ebseg, words)
    assert outcome.exit_code == 1
    assert "engine sam_image_encoder: promised int8, but " in outcome.stderr


def _planted(exported: Path, bundle: Path, planted: Path) -> Path:
    """The INT8 bundle with the SAM encoder of the FP32 one."""
    for source in bundle.rglob("*"):
        if source.is_file():
            target = planted / source.relative_to(bundle)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
    full, int8 = Bundle.open(exported), Bundle.open(bundle)
    size = int8.sizes[0]
    for field in ("file", "weights"):
        name = getattr(int8.graph("sam_image_encoder", size), field)
        (planted / name).unlink()
        os.link(full.file(getattr(full.graph("sam_image_encoder", size), field)), planted / name)
    return seal(planted, int8.manifest)
