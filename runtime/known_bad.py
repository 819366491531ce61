"""Engines that are known to give wrong numbers without a word of warning.

The table explains a sentinel's refusal; it refuses nothing by itself. Whether an entry strikes EBSeg's graphs on a
certain machine is what the sentinel measures.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..contract import (
    ADAB_DECODER,
    CLIP_IMAGE_ENCODER,
    SAM_IMAGE_ENCODER,
    TEXT_ENCODER,
    GraphName,
    GraphRecord,
)
from .gpu_host import GpuHost

ENCODERS = frozenset({CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER, TEXT_ENCODER})
WITH_ATTENTION = ENCODERS | {ADAB_DECODER}
TENSORRT = ("tensorrt", "onnxruntime:tensorrt")
ALL_TENSORRT = (*TENSORRT, "tensorrt-rtx", "onnxruntime:nv-tensorrt-rtx")
HALF = frozenset({"fp16", "bf16"})


@dataclass(frozen=True, kw_only=True)
class KnownBad:
    """One known fault; every condition that is given has to hold."""

    what: str
    reference: str
    """Where it was reported: "NVIDIA/TensorRT#4837"."""
    cure: str
    engines: tuple[str, ...] = ALL_TENSORRT
    versions: tuple[str, ...] = ("*",)
    """Shell patterns of the engine's version."""
    compute_capabilities: tuple[str, ...] = ("*",)
    """Shell patterns: "12.*"."""
    graphs: Collection[GraphName] = WITH_ATTENTION
    types: Collection[str] = ()
    """Types a graph computes in: "fp16", …; any if empty."""
    least_opset: int = 0
    least_batch: int = 1

    def strikes(self, host: GpuHost, record: GraphRecord) -> bool:
        """Whether a graph of that record, on that host, meets the conditions."""
        batch = record.spec.inputs[0].shape[0]
        return (
            host.engine in self.engines
            and any(fnmatchcase(host.engine_version, pattern) for pattern in self.versions)
            and any(fnmatchcase(host.compute_capability, pattern) for pattern in self.compute_capabilities)
            and record.name in self.graphs
            and (not self.types or not _types(record).isdisjoint(self.types))
            and record.opset >= self.least_opset
            and (self.least_batch == 1 or batch == "batch" or (isinstance(batch, int) and batch >= self.least_batch))
        )

    def __str__(self) -> str:
        return f"{self.what} ({self.reference}): {self.cure}"


KNOWN_BAD: tuple[KnownBad, ...] = (
    KnownBad(
        what="fused attention is wrong in FP16 and BF16 on consumer Blackwell",
        reference="NVIDIA/TensorRT#4837",
        cure="build the encoders and the decoder in fp32, or use another engine",
        compute_capabilities=("12.*",),
        types=HALF,
    ),
    KnownBad(
        what="transformer encoders are wrong on consumer Blackwell in every type",
        reference="NVIDIA/TensorRT#4822",
        cure="use --backend onnxruntime:cuda, which was right there",
        engines=TENSORRT,
        compute_capabilities=("12.*",),
        graphs=ENCODERS,
    ),
    KnownBad(
        what="GridSample of opset 20 or newer samples the nearest point in place of bilinearly",
        reference="NVIDIA/TensorRT#4646",
        cure="export the bundle again with this release, which writes opset 18 or 19",
        graphs=frozenset({ADAB_DECODER}),
        least_opset=20,
    ),
    KnownBad(
        what="TensorRT 10.2.0's package is faulty, and others exclude it",
        reference="ultralytics/ultralytics#24367",
        cure="install TensorRT 10.3 or newer and build again",
        engines=TENSORRT,
        versions=("10.2.0*",),
    ),
    KnownBad(
        what="TensorRT 10.3 gave one class for a whole picture with a ViT in FP16",
        reference="NVIDIA/TensorRT#4723",
        cure="use a newer TensorRT, or build the encoders in fp32",
        engines=TENSORRT,
        versions=("10.3.*",),
        graphs=ENCODERS,
        types=HALF,
    ),
    KnownBad(
        what="CLIP's ViT collapses in some FP16 builds",
        reference="NVIDIA/TensorRT#2709",
        cure="build the bundle's bf16 or fp32 graphs, or another TensorRT release",
        engines=TENSORRT,
        graphs=frozenset({CLIP_IMAGE_ENCODER, TEXT_ENCODER}),
        types=frozenset({"fp16"}),
    ),
    KnownBad(
        what="a batch above 1 gave wrong numbers with a transformer of segmentation, in every type",
        reference="NVIDIA/TensorRT#4853",
        cure="export the bundle with --batch 1",
        least_batch=2,
    ),
)
"""The most specific first."""


def suspects(engine: str, version: str, compute_capability: str | None) -> tuple[KnownBad, ...]:
    """Entries that name this release or this kind of GPU, whatever graph is to run: worth a look beforehand.

    Args:
        engine: "tensorrt" or "tensorrt-rtx".
        version: its release.
        compute_capability: of the GPU; None where there is none.
    """
    found = []
    for entry in KNOWN_BAD:
        names_release, names_gpu = entry.versions != ("*",), entry.compute_capabilities != ("*",)
        release = any(fnmatchcase(version, pattern) for pattern in entry.versions)
        gpu = any(fnmatchcase(compute_capability or "", pattern) for pattern in entry.compute_capabilities)
        if engine in entry.engines and release and gpu and (names_release or names_gpu):
            found.append(entry)
    return tuple(found)


def known_faults(host: GpuHost, record: GraphRecord) -> tuple[KnownBad, ...]:
    """Entries of the table that fit a graph on a host."""
    return tuple(entry for entry in KNOWN_BAD if entry.strikes(host, record))


def explanation(host: GpuHost, record: GraphRecord) -> str:
    """What is known of a graph that gives wrong numbers on a host, for an error's text; empty if nothing is."""
    return "; ".join(f"known: {entry}" for entry in known_faults(host, record))


def _types(record: GraphRecord) -> set[str]:
    """Types a graph computes in, its recipe's name among them."""
    compute = record.compute
    return {record.precision} | ({compute.base} if compute is not None else set())
