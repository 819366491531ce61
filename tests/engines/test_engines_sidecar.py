"""A plan is checked before a byte of it is handed on: damage, other hosts, other graphs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from ebseg_deploy.contract import BundleManifest, EngineSidecar, GraphRecord
from ebseg_deploy.errors import BackendError, BundleError
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.engine_file import (
    EngineHost,
    check_engine,
    host_platform,
    plan_name,
    read_engine,
    read_sidecar,
    rebuild_command,
    sidecar_path,
)
from sidecars import make_sidecar

PLAN = b"not machine code at all" * 100
HOST = EngineHost(target="tensorrt-rtx", tensorrt_version="1.7.1.116", compute_capability="8.9")


@pytest.fixture
def manifest(tiny_bundle: Path) -> BundleManifest:
    return Bundle.open(tiny_bundle, check_hashes=False).manifest


@pytest.fixture
def record(manifest: BundleManifest) -> GraphRecord:
    return next(each for each in manifest.graphs if each.name == "open_vocab_head")


@pytest.fixture
def sidecar(record: GraphRecord) -> EngineSidecar:
    return make_sidecar(
        [],
        plan={"bytes": len(PLAN), "sha256": hashlib.sha256(PLAN).hexdigest()},
        graph=record.name,
        precision="fp32",
        size=None,
        spec=record.spec,
        source={record.file: "ab" * 32},
        platform=host_platform(),
        settings={
            "compute_capabilities": ["8.6", "8.9"],
            "profile": {
                "classes": {"min": 1, "opt": 5, "max": 9},
                "classes_and_background": {"min": 2, "opt": 6, "max": 10},
            },
            "workspace_bytes": 1 << 30,
            "tf32": False,
            "keep_fp32": ["a b*"],
        },
    )


@pytest.fixture
def plan(sidecar: EngineSidecar, tmp_path: Path) -> Path:
    path = tmp_path / "open_vocab_head.plan"
    path.write_bytes(PLAN)
    sidecar_path(path).write_bytes(msgspec.json.encode(sidecar))
    return path


def rewrite(file: Path, /, **changes: object) -> None:
    path = sidecar_path(file)
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **changes}))


def test_a_sound_engine(plan: Path, sidecar: EngineSidecar, record: GraphRecord) -> None:
    assert check_engine(plan, host=HOST, graph=record, source=sidecar.source) == sidecar
    assert read_engine(plan, host=HOST, graph=record, source=sidecar.source) == (sidecar, PLAN)
    assert plan_name(record.name, record.size) == plan.name


@pytest.mark.parametrize("read", [check_engine, read_engine])
def test_a_changed_byte(plan: Path, read: object) -> None:
    plan.write_bytes(PLAN[:-1] + b"!")
    with pytest.raises(BundleError, match=r"its sha256 is .*do not load it; rebuild it: ebseg build"):
        read(plan)  # type: ignore[operator]
    plan.write_bytes(PLAN + b"!")
    with pytest.raises(BundleError, match=r"2301 bytes, its sidecar says 2300; do not load it"):
        read(plan)  # type: ignore[operator]
    plan.unlink()
    with pytest.raises(BundleError, match="No such file"):
        read(plan)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "Expected `object`"),
        (b'{"schema_version": 2}', "sidecar version 2, this release reads version 1; install a newer"),
        (b'{"schema_version": 0}', "sidecar version 0.*build it again"),
        (b'{"schema_version": 1}', "missing required field"),
    ],
)
def test_a_sidecar_that_says_nothing(plan: Path, content: bytes, said: str) -> None:
    sidecar_path(plan).write_bytes(content)
    with pytest.raises(BundleError, match=said):
        check_engine(plan)


@pytest.mark.parametrize(
    "changes",
    [{"surprise": 1}, {"target": "abacus"}, {"plan": {"bytes": "2300", "sha256": ""}}, {"settings": None}],
)
def test_a_sidecar_with_wrong_fields(plan: Path, changes: dict[str, object]) -> None:
    rewrite(plan, **changes)
    with pytest.raises(BundleError, match=r"open_vocab_head\.plan\.json: "):
        read_sidecar(plan)


def test_no_sidecar_and_no_plan(plan: Path, tmp_path: Path) -> None:
    sidecar_path(plan).unlink()
    with pytest.raises(BundleError, match=r"its sidecar open_vocab_head\.plan\.json is missing; build it"):
        read_engine(plan)
    with pytest.raises(BundleError, match=r"none\.plan: no such file"):
        read_engine(tmp_path / "none.plan")


def test_a_sidecar_of_a_gigabyte_is_not_read(plan: Path) -> None:
    with sidecar_path(plan).open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(BundleError, match="has 1073741824 bytes"):
        check_engine(plan)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensorrt_version": "1.8.0.5"}, r"built with TensorRT 1\.7\.1\.116, this is 1\.8\.0\.5"),
        ({"tensorrt_version": "1.7.1.117"}, "this is 1.7.1.117"),
        ({"target": "tensorrt"}, "built for tensorrt-rtx, this is tensorrt; rebuild it here: .*--target tensorrt "),
        ({"compute_capability": "12.0"}, r"compute capability 8\.6, 8\.9, this GPU has 12\.0; .*capability 12\.0 "),
        ({"platform": "linux-aarch64"}, "this is linux-aarch64"),
    ],
)
def test_another_host(plan: Path, changes: dict[str, str], said: str) -> None:
    host = EngineHost(
        **{"target": "tensorrt-rtx", "tensorrt_version": "1.7.1.116", "compute_capability": "8.9", **changes}
    )  # type: ignore[arg-type]
    for read in (check_engine, read_engine):
        with pytest.raises(BackendError, match=said):
            read(plan, host=host)


def test_another_graph(plan: Path, sidecar: EngineSidecar, record: GraphRecord, manifest: BundleManifest) -> None:
    other = next(each for each in manifest.graphs if each.name == "text_encoder")
    with pytest.raises(BundleError, match="it is open_vocab_head fp32, not text_encoder fp32 of this bundle"):
        check_engine(plan, graph=other)
    with pytest.raises(BundleError, match=r"open_vocab_head\.onnx is not what it was built from"):
        check_engine(plan, source={record.file: "cd" * 32})
    longer = msgspec.structs.replace(record, spec=msgspec.structs.replace(record.spec, outputs=()))
    with pytest.raises(BundleError, match="not open_vocab_head fp32 of this bundle"):
        check_engine(plan, graph=longer)


def test_the_command_that_rebuilds_is_one(sidecar: EngineSidecar) -> None:
    import shlex

    from ebseg_deploy.cli.build import command

    words = shlex.split(rebuild_command(sidecar, compute_capability="8.9"))
    assert words[:3] == ["ebseg", "build", "BUNDLE"]
    options = command.make_context("build", words[2:]).params
    assert (options["target"], options["precision"], options["compute_capability"]) == ("tensorrt-rtx", "fp32", "8.9")
    assert (options["classes"], options["workspace"], options["keep_fp32"]) == ("1:5:9", 1 << 30, ("a b*",))
    assert options["graphs"] == ("open_vocab_head",)
