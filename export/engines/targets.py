"""What each target and each GPU can do, as data; a request is held against it before a builder is started.

Sources: the support matrix of TensorRT for RTX 1.5 (TensorRT proper: general knowledge, unchecked), and what
`tensorrt_rtx` 1.7.1 has in its ComputeCapability enumeration. Nothing in this table was measured on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...contract import EngineTarget
from ...errors import InputError

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
NEWEST_OPSET = 19
"""From opset 20 on GridSample falls back to nearest in TensorRT (NVIDIA/TensorRT#4646); TensorRT for RTX 1.7 has no
kernel for Attention (23) in FP32, and has been seen to crash on it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An engine builder."""

    name: EngineTarget
    module: str
    install: str
    capabilities: tuple[str, ...]
    default_capabilities: tuple[str, ...]
    """Taken when none is given; none means: the GPU at hand."""
    static_memory: bool
    """Whether the builder has to be told that a run is to be captured as a CUDA graph."""
    timing_cache: bool
    """Whether the builder times kernels; TensorRT for RTX chooses them without, and its timing cache does nothing."""
    refused: dict[tuple[str, str], str]
    """(compute capability, precision) -> why this target cannot, beyond what the GPU lacks."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A generation of GPUs."""

    capability: str
    architecture: str
    examples: str
    lacks: tuple[str, ...] = ()
    """Precisions its tensor cores do not have."""


GPUS = (
    Gpu(capability="7.5", architecture="Turing", examples="T4, RTX 20", lacks=("bf16", "fp8")),
    Gpu(capability="8.0", architecture="Ampere", examples="A100, A30", lacks=("fp8",)),
    Gpu(capability="8.6", architecture="Ampere", examples="A10, RTX 30", lacks=("fp8",)),
    Gpu(capability="8.7", architecture="Orin", examples="Jetson AGX Orin, Orin NX, Orin Nano", lacks=("fp8",)),
    Gpu(capability="8.9", architecture="Ada", examples="L4, L40, RTX 40"),
    Gpu(capability="9.0", architecture="Hopper", examples="H100, H200, GH200"),
    Gpu(capability="10.0", architecture="Blackwell", examples="B200, GB200"),
    Gpu(capability="10.3", architecture="Blackwell", examples="B300, GB300"),
    Gpu(capability="11.0", architecture="Thor", examples="Jetson AGX Thor"),
    Gpu(capability="12.0", architecture="Blackwell", examples="RTX 50, RTX PRO"),
    Gpu(capability="12.1", architecture="Blackwell", examples="DGX Spark (GB10)"),
)

TENSORRT = Target(
    name="tensorrt",
    module="tensorrt",
    install="pip install tensorrt (JetPack brings its own)",
    capabilities=tuple(gpu.capability for gpu in GPUS),
    default_capabilities=(),
    static_memory=False,
    timing_cache=True,
    refused={},
)
TENSORRT_RTX = Target(
    name="tensorrt-rtx",
    module="tensorrt_rtx",
    install="pip install 'ebseg-deploy[tensorrt-rtx]'",
    capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    default_capabilities=("8.6", "8.9", "12.0"),
    static_memory=True,
    timing_cache=False,
    refused={
        ("7.5", "fp32"): "it has no FP32 matrix product for Turing",
        ("7.5", "int8"): "it has no INT8 matrix product for Turing",
    },
)
TARGETS: dict[str, Target] = {target.name: target for target in (TENSORRT, TENSORRT_RTX)}


def target_named(name: str) -> Target:
    """The target of that name.

    Raises:
        InputError: there is none.
    """
    if name not in TARGETS:
        raise InputError(f"target {name!r}: no such target", cure=f"choose from {', '.join(TARGETS)}")
    return TARGETS[name]


def parse_capabilities(text: str) -> tuple[str, ...]:
    """ "8.6,12.0" -> ("8.6", "12.0"); "86" and "sm_86" are understood too.

    Raises:
        InputError: a part is no compute capability, or is given twice.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:sm_?)?([0-9]{1,2})\.?([0-9])", part.strip(), re.IGNORECASE)
        if match is None:
            raise InputError(f"compute capability {part.strip()!r}: not a number like 8.6", cure="for example 8.6,12.0")
        found.append(f"{match[1]}.{match[2]}")
    if len(set(found)) < len(found):
        raise InputError(f"compute capability {text!r}: one is given twice", cure="give each once")
    return tuple(found)


def check_support(target: Target, capabilities: Sequence[str], precision: str | None = None) -> None:
    """Refuse what a target or a GPU cannot do.

    Args:
        target: the builder.
        capabilities: the GPUs to build for.
        precision: one of PRECISIONS; None looks at the GPUs alone.

    Raises:
        InputError: an unknown precision or compute capability, or a combination that does not work.
    """
    if precision not in (None, *PRECISIONS):
        raise InputError(f"precision {precision!r}: unknown", cure=f"choose from {', '.join(PRECISIONS)}")
    gpus = {gpu.capability: gpu for gpu in GPUS}
    for capability in capabilities:
        if capability not in gpus:
            raise InputError(f"compute capability {capability}: unknown", cure=f"choose from {', '.join(gpus)}")
        gpu = gpus[capability]
        if capability not in target.capabilities:
            raise InputError(
                f"compute capability {capability} ({gpu.architecture}): {target.name} does not build for it, only for "
                f"{', '.join(target.capabilities)}",
                cure=f"use --target tensorrt on the device, or --target tensorrt --script here ({gpu.examples})",
            )
        if precision is None:
            continue
        if precision in gpu.lacks:
            able = [each.capability for each in GPUS if precision not in each.lacks]
            raise InputError(
                f"precision {precision}: compute capability {capability} ({gpu.architecture}) does not have it; "
                f"{', '.join(able)} do",
                cure="choose fp16",
            )
        if (capability, precision) in target.refused:
            raise InputError(
                f"precision {precision}: {target.name} for compute capability {capability}: "
                f"{target.refused[capability, precision]}",
                cure="choose fp16",
            )


def support_table() -> str:
    """The table of docs/how-to/build-engines.md, in Markdown."""
    lines = ["| compute capability | GPUs | tensorrt | tensorrt-rtx |", "|---|---|---|---|"]
    for gpu in GPUS:
        cells = [", ".join(_able(target, gpu)) or "no" for target in TARGETS.values()]
        lines.append(f"| {gpu.capability} ({gpu.architecture}) | {gpu.examples} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _able(target: Target, gpu: Gpu) -> list[str]:
    able = []
    for precision in PRECISIONS:
        try:
            check_support(target, (gpu.capability,), precision)
        except InputError:
            continue
        able.append(precision)
    return able
