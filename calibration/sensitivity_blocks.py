"""The blocks of a graph: products that belong together, by their place in the model."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir

from ..export.precision.recipes import GraphRecipe
from .quantize import reason_to_keep
from .quantize_products import products

_NUMBERED = re.compile(r"^(.*?\.\d+)[./]")
"""A module path up to its first index: "backbone.blocks.3" of "backbone.blocks.3.mlp.lin1/MatMul"."""


def blocks(model: ir.Model, recipe: GraphRecipe) -> Mapping[str, tuple[str, ...]]:
    """Block -> names of its products, of those that a recipe quantises, in the graph's order.

    A product that no module path names (SAM's windowed qkv is a matrix of the block, used outside of it) belongs to
    the block of the next one that has a path.
    """
    found: dict[str, list[str]] = {}
    waiting: list[str] = []
    chosen = [product for product in products(model) if reason_to_keep(product, recipe) is None]
    for product in chosen:
        waiting.append(product.name)
        block = block_of(product.name)
        if block is not None:
            found.setdefault(block, []).extend(waiting)
            waiting = []
    if waiting:
        found.setdefault("last", []).extend(waiting)
    return {block: tuple(names) for block, names in found.items()}


def block_of(node: str) -> str | None:
    """The block that a node's name tells; None for a node at the top of its graph."""
    numbered = _NUMBERED.match(node)
    if numbered:
        return numbered[1]
    place = node.rpartition("/")[0]
    return place or None
