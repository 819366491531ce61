"""What targets and GPUs can do: the table, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import ebseg_deploy
import pytest
from ebseg_deploy.contract import ENGINE_TARGETS
from ebseg_deploy.errors import InputError
from ebseg_deploy.export.engines.targets import (
    GPUS,
    TARGETS,
    TENSORRT,
    TENSORRT_RTX,
    Target,
    check_support,
    parse_capabilities,
    support_table,
    target_named,
)

DOCS = Path(ebseg_deploy.__file__).parent / "docs"


@pytest.mark.parametrize(
    ("text", "capabilities"),
    [("8.6", ("8.6",)), ("8.6, 12.0", ("8.6", "12.0")), ("sm_89,SM120", ("8.9", "12.0")), ("86", ("8.6",))],
)
def test_capabilities_are_read(text: str, capabilities: tuple[str, ...]) -> None:
    assert parse_capabilities(text) == capabilities


@pytest.mark.parametrize("text", ["", "8", "ampere", "8.6,", "8.6,86", "8.6;8.9", "-8.6", "8.66"])
def test_what_is_no_capability(text: str) -> None:
    with pytest.raises(InputError, match="compute capability"):
        parse_capabilities(text)


@pytest.mark.parametrize("capability", ["8.7", "9.0", "10.0", "11.0"])
def test_rtx_builds_neither_for_orin_nor_for_servers_nor_for_thor(capability: str) -> None:
    with pytest.raises(InputError, match=rf"{capability}.*tensorrt-rtx does not build for it.*--target tensorrt"):
        check_support(TENSORRT_RTX, ("8.6", capability), "fp16")
    check_support(TENSORRT, (capability,), "fp16")


FP8_REFUSED = [
    (target, capability)
    for target in TARGETS.values()
    for capability in ("7.5", "8.0", "8.6", "8.7")
    if capability in target.capabilities
]


@pytest.mark.parametrize(("target", "capability"), FP8_REFUSED)
def test_fp8_needs_ada(target: Target, capability: str) -> None:
    with pytest.raises(InputError, match=r"fp8.*does not have it; 8\.9,"):
        check_support(target, (capability,), "fp8")
    check_support(target, ("8.9",), "fp8")


def test_turing() -> None:
    check_support(TENSORRT_RTX, ("7.5",), "fp16")
    for precision in ("fp32", "bf16", "int8", "fp8"):
        with pytest.raises(InputError, match=r"7\.5"):
            check_support(TENSORRT_RTX, ("7.5",), precision)
    check_support(TENSORRT, ("7.5",), "fp32")
    with pytest.raises(InputError, match="bf16"):
        check_support(TENSORRT, ("7.5",), "bf16")


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(InputError, match="fp32, fp16, bf16"):
        check_support(TENSORRT, ("8.6",), "half")
    with pytest.raises(InputError, match=r"9\.9.*7\.5, 8\.0"):
        check_support(TENSORRT, ("9.9",), "fp16")
    with pytest.raises(InputError, match="tensorrt, tensorrt-rtx"):
        target_named("openvino")


def test_targets_are_the_contracts_and_their_defaults_are_possible() -> None:
    assert tuple(TARGETS) == ENGINE_TARGETS
    known = {gpu.capability for gpu in GPUS}
    for target in TARGETS.values():
        assert set(target.default_capabilities) <= set(target.capabilities) <= known
        for precision in ("fp32", "fp16", "bf16", "int8"):
            check_support(target, target.default_capabilities, precision)


def test_every_capability_of_the_table_is_the_modules() -> None:
    module = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    names = {f"SM{capability.replace('.', '')}" for capability in TENSORRT_RTX.capabilities}
    assert names == {name for name in module.ComputeCapability.__members__ if name.startswith("SM")}


@pytest.mark.skipif(not DOCS.is_dir(), reason="the documents come with the repository, not with the wheel")
def test_the_documents_show_the_table() -> None:
    assert support_table() in (DOCS / "how-to/build-engines.md").read_text(encoding="utf-8")
