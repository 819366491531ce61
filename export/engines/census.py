"""Precision census: which types an engine's layers really compute in, against what its precision promises.

A graph that was to be half precision and is not gives an engine that builds, runs, is right, and is half as fast as it
should be. Nothing says so, unless somebody counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...contract import EngineSidecar, LayerRecord
from ...errors import ExportError
from .promise import LAYER_TYPES, Part, Promise, promise_of_sidecar

PRODUCTS = ("gemm", "convolution", "attention")
"""The roles whose type is the engine's speed."""


@dataclass(frozen=True, kw_only=True)
class Census:
    """Counts over an engine's layers."""

    layers: int
    layers_by_type: dict[str, int]
    """Every layer that has a type."""
    products_by_type: dict[str, int]
    """Matrix products, convolutions and fused attentions."""
    multiply_adds_by_type: dict[str, int]
    """Of the products whose work is known, fused attentions among them; it is not where lengths are dynamic."""
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


def offenders(layers: Sequence[LayerRecord], promise: Promise) -> list[LayerRecord]:
    """Products in a type that was not promised. A fused layer is excused when one of its ONNX nodes is."""
    return [layer for layer in layers if layer.role in PRODUCTS and not promise.allows(layer)]


def check_engine_promise(sidecar: EngineSidecar) -> Census:
    """`check_promise` of what a sidecar says."""
    return check_promise(sidecar.layers, promise_of_sidecar(sidecar), quantised_nodes=sidecar.quantised_nodes)


def check_promise(layers: Sequence[LayerRecord], promise: Promise, *, quantised_nodes: Sequence[str] = ()) -> Census:
    """Hold the layers against the promise.

    Args:
        layers: the builder's report.
        promise: what the engine was to compute in.
        quantised_nodes: products that stand between Q/DQ pairs; all of them must have become products of the
            quantised type.

    Raises:
        ExportError: the builder gave no report, a product has a type that was not promised, or quantised products
            were lost.
    """
    if not layers:
        raise ExportError(
            f"engine {promise.engine}: the builder's log has no layer report, so nobody can say what is in the engine",
            cure="use TensorRT 10.3 or newer, and report the version if it is",
        )
    census = take_census(layers)
    _check_types(layers, census, promise)
    for part in promise.parts:
        own = [layer for layer in layers if part in promise.parts_of(layer.onnx_nodes)]
        name = f"{promise.engine} {part.prefix.rstrip('/')}".strip()
        if part.quantised:
            _check_quantised(own, part, name, promise.precision, [node for node in quantised_nodes if part.owns(node)])
        elif part.base != "fp32" and LAYER_TYPES[part.base] not in take_census(own).layers_by_type:
            # Small products dissolve into other kernels, whose names do not tell: then the layers' own types must.
            raise ExportError(
                f"engine {name}: promised {promise.precision}, but none of its {len(own)} layers gives "
                f"{LAYER_TYPES[part.base]}",
                cure=f"convert the graph to {promise.precision} again",
            )
    return census


def _check_types(layers: Sequence[LayerRecord], census: Census, promise: Promise) -> None:
    wrong = offenders(layers, promise)
    if wrong:
        products = sum(census.products_by_type.values())
        types = ", ".join(
            f"{count} {name}" for name, count in _counted(layer.type or "unknown" for layer in wrong).items()
        )
        nodes = [node for layer in wrong for node in layer.onnx_nodes[:1]] or [wrong[0].name]
        raise ExportError(
            f"engine {promise.engine}: promised {promise.precision}, but {len(wrong)} of {products} products are not: "
            f"{types}, first {', '.join(nodes[:3])}",
            cure=f"convert the graph to {promise.precision} again, or name what is meant to stay with --keep-fp32 "
            "PATTERN",
        )


def _check_quantised(
    layers: Sequence[LayerRecord], part: Part, name: str, precision: str, quantised_nodes: Sequence[str]
) -> None:
    assert part.quantised is not None
    required = LAYER_TYPES[part.quantised]
    products = [layer for layer in layers if layer.role in PRODUCTS]
    found = {node for layer in products if layer.type == required for node in layer.onnx_nodes}
    if not any(layer.type == required for layer in products):
        raise ExportError(
            f"engine {name}: promised {precision}, but none of its {len(products)} products is {required}",
            cure="quantise the graph again: its Q/DQ nodes are missing or stand where no product takes them up",
        )
    lost = [node for node in quantised_nodes if node not in found and not part.keeps(node)]
    if lost:
        raise ExportError(
            f"engine {name}: promised {precision}, but {len(lost)} of {len(quantised_nodes)} products between Q/DQ "
            f"pairs do not compute in {required}, first {', '.join(lost[:3])}",
            cure="take their Q/DQ pairs out, or name them with --keep-fp32 PATTERN",
        )


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
