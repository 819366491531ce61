"""What an engine promises to compute in: its graph's compute record, or the meaning of its precision's name.

`ebseg quantize` writes down what it made of each graph (contract.ComputeRecord): the base type, the quantised type, and
which nodes stay in a wider one and why. Engines are held to that. A graph without such a record is held to the usual
meaning of its label, so that FP32 graphs under the label fp16 are found out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ...contract import (
    CLIP_IMAGE_ENCODER,
    MERGED,
    OPEN_VOCAB_HEAD,
    SAM_IMAGE_ENCODER,
    ComputeRecord,
    EngineName,
    EngineSidecar,
    FloatType,
    GraphName,
    LayerRecord,
    QuantisedType,
)
from ...errors import ExportError
from ..merged_spec import merged_prefix

LAYER_TYPES: Mapping[str, str] = {
    "fp32": "Float",
    "fp16": "Half",
    "bf16": "BFloat16",
    "int8": "Int8",
    "fp8": "FP8",
}
"""Our names of types -> the builder's."""

LABELS: Mapping[str, tuple[FloatType, QuantisedType | None]] = {
    "fp32": ("fp32", None),
    "fp16": ("fp16", None),
    "bf16": ("bf16", None),
    "int8": ("fp16", "int8"),
    "fp8": ("fp16", "fp8"),
}
"""Precision -> base type, and the type of the image encoders' products, for graphs that say nothing themselves."""

QUANTISED_GRAPHS: tuple[GraphName, ...] = (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER)
FP32_GRAPHS: tuple[GraphName, ...] = (OPEN_VOCAB_HEAD,)
"""FP32 whatever the label: logits are cosines times 100, and log(1e-8 + p) needs an epsilon that is 0 in FP16."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the nodes of one graph promise; a merged engine has several."""

    prefix: str
    """Begins the names of its nodes: "" in an engine of one graph, "sam_image_encoder/" in a merged one."""
    base: FloatType
    quantised: QuantisedType | None = None
    kept: tuple[tuple[str, str], ...] = ()
    """(pattern of node names without the prefix, type), for the nodes that do not follow base and quantised."""
    strict: bool = False
    """Whether every product with weights is promised in the quantised type but the kept ones, as recipes record it. A
    label says no more than that there are some."""

    def types(self, *, has_weights: bool) -> set[str]:
        """The builder's names of the types that its products may have outside the kept nodes.

        Products of two activations, an attention's, may be in the base type in a quantised graph: some recipes leave
        them there, for a fused kernel. Where they stand between Q/DQ pairs, the census wants them quantised.
        """
        if self.quantised and self.strict and has_weights:
            return {LAYER_TYPES[self.quantised]}
        return {LAYER_TYPES[name] for name in (self.base, self.quantised) if name}

    def owns(self, node: str) -> bool:
        """Whether a node is this graph's."""
        return node.startswith(self.prefix)

    def keeps(self, node: str, type_name: str | None = None) -> bool:
        """Whether a node need not follow, and may have the builder's type of that name (any by default)."""
        inner = node.removeprefix(self.prefix)
        return self.owns(node) and any(
            fnmatchcase(inner, pattern) and type_name in (None, LAYER_TYPES[kept], LAYER_TYPES[self.base])
            for pattern, kept in self.kept
        )


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What an engine was to compute in."""

    engine: EngineName
    precision: str
    parts: tuple[Part, ...]

    def parts_of(self, nodes: Sequence[str]) -> tuple[Part, ...]:
        """The graphs that a layer's nodes belong to; all of them for a layer that names no node."""
        found = tuple(part for part in self.parts if any(part.owns(node) for node in nodes))
        return found or self.parts

    def allows(self, product: LayerRecord) -> bool:
        """Whether a product may have the type it has. One kept node excuses the layer it was fused into."""
        return any(
            product.type in part.types(has_weights=product.has_weights)
            or any(part.keeps(node, product.type) for node in product.onnx_nodes or ("",))
            for part in self.parts_of(product.onnx_nodes)
        )


def promise_of(
    engine: EngineName, precision: str, compute: Mapping[GraphName, ComputeRecord | None], keep_fp32: Iterable[str] = ()
) -> Promise:
    """The promise of an engine.

    Args:
        engine: the graph it is made of, or MERGED.
        precision: the label of its graphs.
        compute: the graphs it is made of, and what each says of itself.
        keep_fp32: further patterns of ONNX nodes that may run in FP32; of a merged engine with the graph's name in
            front.

    Raises:
        ExportError: the label has no usual meaning, and a graph says nothing.
    """
    further = tuple((pattern, "fp32") for pattern in keep_fp32)
    parts = []
    for graph, record in compute.items():
        prefix = merged_prefix(graph) if engine == MERGED else ""
        base, quantised, kept = _stated(graph, precision) if record is None else _recorded(record)
        inner = tuple((pattern.removeprefix(prefix), kind) for pattern, kind in further)
        parts.append(
            Part(prefix=prefix, base=base, quantised=quantised, kept=(*kept, *inner), strict=record is not None)
        )
    return Promise(engine=engine, precision=precision, parts=tuple(parts))


def promise_of_sidecar(sidecar: EngineSidecar) -> Promise:
    """The promise an engine was built under."""
    compute: dict[GraphName, ComputeRecord | None] = dict(sidecar.compute)
    if not compute and sidecar.graph != MERGED:
        compute = {sidecar.graph: None}
    return promise_of(sidecar.graph, sidecar.precision, compute, sidecar.settings.keep_fp32)


def _recorded(record: ComputeRecord) -> tuple[FloatType, QuantisedType | None, tuple[tuple[str, str], ...]]:
    return record.base, record.quantised, tuple((kept.pattern, kept.precision) for kept in record.kept)


def _stated(graph: GraphName, precision: str) -> tuple[FloatType, QuantisedType | None, tuple[tuple[str, str], ...]]:
    if precision not in LABELS:
        raise ExportError(
            f"graph {graph}: precision {precision!r} says nothing of its types, and the bundle records none",
            cure="make the bundle again with `ebseg quantize`",
        )
    base, quantised = LABELS[precision]
    if graph in FP32_GRAPHS:
        return "fp32", None, ()
    return base, quantised if graph in QUANTISED_GRAPHS else None, ()
