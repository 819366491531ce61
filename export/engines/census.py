"""Precision census: which types an engine's layers really compute in, against what its precision promises.

A graph that was to be half precision and is not gives an engine that builds, runs, is right, and is half as fast as it
should be. Nothing says so, unless somebody counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ...contract import (
    CLIP_IMAGE_ENCODER,
    OPEN_VOCAB_HEAD,
    SAM_IMAGE_ENCODER,
    EngineSidecar,
    GraphName,
    LayerRecord,
)
from ...errors import ExportError

PRODUCTS = ("gemm", "convolution", "attention")
"""The roles whose type is the engine's speed."""

ALLOWED = {
    "fp32": {"Float"},
    "fp16": {"Half"},
    "bf16": {"BFloat16"},
    "int8": {"Int8", "Half"},
    "fp8": {"FP8", "Half"},
}
"""Types that products may have, outside the islands."""

REQUIRED = {"int8": "Int8", "fp8": "FP8"}
"""The type that the image encoders must have products of; the other graphs are half precision."""

USUAL = {"fp16": "Half", "bf16": "BFloat16", "int8": "Half", "fp8": "Half"}
"""The type that some layer must have at least, in a graph that is no island as a whole."""

QUANTISED: tuple[GraphName, ...] = (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER)


@dataclass(frozen=True, kw_only=True)
class Island:
    """Nodes that stay in FP32 whatever the precision."""

    graph: GraphName
    nodes: str
    """Pattern of ONNX node names."""
    reason: str


ISLANDS = (
    Island(
        graph=OPEN_VOCAB_HEAD,
        nodes="*",
        reason="logits are cosines times 100, and log(1e-8 + p) needs an epsilon that is 0 in FP16",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Census:
    """Counts over an engine's layers."""

    layers: int
    layers_by_type: dict[str, int]
    """Every layer that has a type."""
    products_by_type: dict[str, int]
    """Matrix products, convolutions and fused attentions."""
    multiply_adds_by_type: dict[str, int]
    """Of the products whose shapes are fixed and whose work is known; fused attentions are not among them."""
    fused_attentions: int
    casts: int
    """Layers that do nothing but change a type (and move)."""

    def share(self, type_name: str) -> float:
        """Share of the counted multiply-adds in that type; of the products where no work is known."""
        shares = self.multiply_adds_by_type if sum(self.multiply_adds_by_type.values()) else self.products_by_type
        return shares.get(type_name, 0) / total if (total := sum(shares.values())) else 0.0


def take_census(layers: Sequence[LayerRecord]) -> Census:
    """Count."""
    products = [layer for layer in layers if layer.role in PRODUCTS]
    work: Counter[str] = Counter()
    for layer in products:
        if layer.multiply_adds is not None:
            work[layer.type or "unknown"] += layer.multiply_adds
    return Census(
        layers=len(layers),
        layers_by_type=_counted(layer.type for layer in layers if layer.type),
        products_by_type=_counted(layer.type or "unknown" for layer in products),
        multiply_adds_by_type=dict(work.most_common()),
        fused_attentions=sum(layer.role == "attention" for layer in layers),
        casts=sum(layer.role == "cast" for layer in layers),
    )


def offenders(
    layers: Sequence[LayerRecord], graph: GraphName, precision: str, keep_fp32: Sequence[str] = ()
) -> list[LayerRecord]:
    """Products in a type that the precision does not allow, and that no island and no pattern excuses.

    A fused layer is excused when one of its ONNX nodes is.
    """
    kept = [*keep_fp32, *(island.nodes for island in ISLANDS if island.graph == graph)]
    return [
        layer
        for layer in layers
        if layer.role in PRODUCTS
        and layer.type not in ALLOWED[precision]
        and not (
            layer.type == "Float"
            and any(fnmatchcase(node, pattern) for pattern in kept for node in layer.onnx_nodes or ("",))
        )
    ]


def check_engine_promise(sidecar: EngineSidecar) -> Census:
    """`check_promise` of what a sidecar says."""
    return check_promise(
        sidecar.layers,
        sidecar.graph,
        sidecar.precision,
        keep_fp32=sidecar.settings.keep_fp32,
        quantised_nodes=sidecar.quantised_nodes,
    )


def check_promise(
    layers: Sequence[LayerRecord],
    graph: GraphName,
    precision: str,
    *,
    keep_fp32: Sequence[str] = (),
    quantised_nodes: Sequence[str] = (),
) -> Census:
    """Hold the layers against the precision's promise.

    Args:
        layers: the builder's report.
        graph: which graph it is.
        precision: what was promised.
        keep_fp32: patterns of ONNX nodes that need not keep it.
        quantised_nodes: products that stand between Q/DQ pairs; of a quantised precision, all of them must have
            become products of its type.

    Raises:
        ExportError: the builder gave no report, a product has a type that was not promised, or a quantised precision
            lost its quantised products.
    """
    if not layers:
        raise ExportError(
            f"engine {graph}: the builder's log has no layer report, so nobody can say what is in the engine",
            cure="use TensorRT 10.3 or newer, and report the version if it is",
        )
    census = take_census(layers)
    products = sum(census.products_by_type.values())
    wrong = offenders(layers, graph, precision, keep_fp32)
    if wrong:
        types = ", ".join(
            f"{count} {name}" for name, count in _counted(layer.type or "unknown" for layer in wrong).items()
        )
        nodes = [node for layer in wrong for node in layer.onnx_nodes[:1]] or [wrong[0].name]
        raise ExportError(
            f"engine {graph}: promised {precision}, but {len(wrong)} of {products} products are not: {types}, "
            f"first {', '.join(nodes[:3])}",
            cure=f"convert the graph to {precision} again, or name what is meant to stay with --keep-fp32 PATTERN",
        )
    required = REQUIRED.get(precision) if graph in QUANTISED else None
    if required and required not in census.products_by_type:
        raise ExportError(
            f"engine {graph}: promised {precision}, but none of its {products} products is {required}",
            cure="quantise the graph again: its Q/DQ nodes are missing or stand where no product takes them up",
        )
    lost = _lost(layers, REQUIRED.get(precision), quantised_nodes, keep_fp32)
    if lost:
        raise ExportError(
            f"engine {graph}: promised {precision}, but {len(lost)} of {len(quantised_nodes)} products between Q/DQ "
            f"pairs do not compute in {REQUIRED[precision]}, first {', '.join(lost[:3])}",
            cure="take their Q/DQ pairs out, or name them with --keep-fp32 PATTERN",
        )
    # Small products dissolve into other kernels, whose names do not tell: then the layers' own types must.
    usual = (
        USUAL.get(precision) if not any(island.graph == graph and island.nodes == "*" for island in ISLANDS) else None
    )
    if usual and not required and usual not in census.layers_by_type:
        raise ExportError(
            f"engine {graph}: promised {precision}, but none of its {census.layers} layers gives {usual}",
            cure=f"convert the graph to {precision} again",
        )
    return census


def _lost(
    layers: Sequence[LayerRecord], required: str | None, quantised_nodes: Sequence[str], keep: Sequence[str]
) -> list[str]:
    """Quantised nodes that no layer of the required type holds."""
    if required is None:
        return []
    found = {node for layer in layers if layer.type == required and layer.role in PRODUCTS for node in layer.onnx_nodes}
    return [
        node
        for node in quantised_nodes
        if node not in found and not any(fnmatchcase(node, pattern) for pattern in keep)
    ]


def difference(first: EngineSidecar, second: EngineSidecar) -> list[tuple[str, str, str]]:
    """What differs between two engines: (what, of the first, of the second); layers are matched by ONNX node."""
    a, b = take_census(first.layers), take_census(second.layers)
    rows: list[tuple[str, object, object]] = [
        ("graph", first.graph, second.graph),
        ("canvas", first.size or "every", second.size or "every"),
        ("precision", first.precision, second.precision),
        ("target", first.target, second.target),
        ("TensorRT", first.tensorrt_version, second.tensorrt_version),
        ("compute capabilities", _capabilities(first), _capabilities(second)),
        ("plan bytes", first.plan.bytes, second.plan.bytes),
        ("activation bytes", first.memory.activation_bytes, second.memory.activation_bytes),
        ("layers", a.layers, b.layers),
        ("fused attentions", a.fused_attentions, b.fused_attentions),
        ("casts", a.casts, b.casts),
    ]
    for kind in dict.fromkeys([*a.products_by_type, *b.products_by_type]):
        rows.append((f"products in {kind}", a.products_by_type.get(kind, 0), b.products_by_type.get(kind, 0)))
    types_a, types_b = _types_by_node(first.layers), _types_by_node(second.layers)
    for node in dict.fromkeys([*types_a, *types_b]):
        rows.append((f"node {node}", types_a.get(node, "absent"), types_b.get(node, "absent")))
    return [(what, str(one), str(other)) for what, one, other in rows if one != other]


def _capabilities(sidecar: EngineSidecar) -> str:
    return ", ".join(sidecar.settings.compute_capabilities)


def _types_by_node(layers: Sequence[LayerRecord]) -> dict[str, str]:
    """ONNX node -> type of the product it ended in."""
    return {node: layer.type or "unknown" for layer in layers if layer.role in PRODUCTS for node in layer.onnx_nodes}


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
