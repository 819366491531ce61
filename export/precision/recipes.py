"""Recipes: named answers to "which type does each graph compute in, and what of it stays in a wider one".

A pattern is matched against ONNX node names, which are places in the model: "blocks.3.attn.qkv/MatMul". Whatever no
pattern names follows the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

from ...contract import (
    ADAB_DECODER,
    CLIP_IMAGE_ENCODER,
    GRAPH_NAMES,
    OPEN_VOCAB_HEAD,
    SAM_IMAGE_ENCODER,
    TEXT_ENCODER,
    FloatType,
    GraphName,
    QuantisedType,
)
from ...errors import InputError


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Nodes that do not follow their graph's recipe."""

    pattern: str
    """Shell pattern of ONNX node names."""
    reason: str
    precision: FloatType = "fp32"
    """What they compute in; the graph's base type means: not quantised, and no more than that."""

    def matches(self, node: str) -> bool:
        """Whether a node of that name is kept."""
        return fnmatchcase(node, self.pattern)


@dataclass(frozen=True, kw_only=True)
class GraphRecipe:
    """What one graph computes in."""

    base: FloatType = "fp32"
    quantised: QuantisedType | None = None
    keep: tuple[Keep, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all graphs of a bundle compute in."""

    name: str
    """Becomes the precision of the graphs made by it."""
    summary: str
    graphs: Mapping[GraphName, GraphRecipe]
    """One entry for every name in contract.GRAPH_NAMES."""

    def __post_init__(self) -> None:
        missing = [name for name in GRAPH_NAMES if name not in self.graphs]
        assert not missing, f"recipe {self.name} says nothing of {missing}"

    @property
    def needs_pictures(self) -> bool:
        """Whether ranges have to be measured on pictures before it can be carried out."""
        return any(graph.quantised for graph in self.graphs.values())

    def keeping(self, *keeps: Keep) -> Recipe:
        """The same recipe with further nodes kept, in every graph that has nodes of such names."""
        graphs = {name: replace(graph, keep=(*graph.keep, *keeps)) for name, graph in self.graphs.items()}
        return replace(self, graphs=MappingProxyType(graphs))


UNIT_LENGTH = Keep(pattern="*unit_length/*", reason="an epsilon of 1e-12 is 0 in FP16, and squares of 256 overflow")
MEAN_IN_MASK = Keep(
    pattern="*mean_in_mask/*",
    reason="sums over up to 25,600 pixels: beyond 65,504, and counts beyond 2,048 are not exact",
)
GROUP_NORM = Keep(pattern="*/InstanceNormalization*", reason="moments of up to 204,800 values")
HEAD_IN_FP32 = GraphRecipe(
    base="fp32",
    keep=(Keep(pattern="*", reason="cosines times 100, and shares of 1e-8, which is 0 in FP16; 0.1 % of the work"),),
)
"""The whole of open_vocab_head."""

NORMALISE = Keep(pattern="normalise/*", reason="pixels up to 255 before the division; memory-bound, a step long")
SAMPLING_PLACES = Keep(
    pattern="*.sampling_places/*",
    reason="sampling places: half a cell of the 80-wide map is 6e-3 of -1..1, and FP16's step there is 5e-4",
)


def _half(base: FloatType, summary: str) -> Recipe:
    return Recipe(
        name=base,
        summary=summary,
        graphs=MappingProxyType(
            {
                CLIP_IMAGE_ENCODER: GraphRecipe(base=base, keep=(NORMALISE, UNIT_LENGTH)),
                SAM_IMAGE_ENCODER: GraphRecipe(base=base, keep=(NORMALISE,)),
                ADAB_DECODER: GraphRecipe(base=base, keep=(UNIT_LENGTH, MEAN_IN_MASK, GROUP_NORM, SAMPLING_PLACES)),
                OPEN_VOCAB_HEAD: HEAD_IN_FP32,
                TEXT_ENCODER: GraphRecipe(base=base, keep=(UNIT_LENGTH,)),
            }
        ),
    )


FP16 = _half("fp16", "FP16 with islands of FP32: half the size, tensor cores on every NVIDIA GPU since 2018")
BF16 = _half("bf16", "BF16 with islands of FP32: FP32's range with 8 bits of mantissa; compute capability 8.0 and up")

RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in (FP16, BF16)})


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise InputError(f"recipe {name!r}: unknown", cure=f"choose from {', '.join(RECIPES)}")
    return RECIPES[name]
