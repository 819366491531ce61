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
    """Type of its products of activations and weights."""
    attention: bool = False
    """Quantise the products of attention too: activations times activations."""
    dynamic: bool = False
    """Find the ranges of activations as they come, by operators of ONNX Runtime's own: no pictures, no engine."""
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
        return any(graph.quantised and not graph.dynamic for graph in self.graphs.values())

    def keeping(self, *keeps: Keep) -> Recipe:
        """The same recipe with further nodes kept, in every graph that has nodes of such names."""
        graphs = {name: replace(graph, keep=(*graph.keep, *keeps)) for name, graph in self.graphs.items()}
        return replace(self, graphs=MappingProxyType(graphs))


UNIT_LENGTH = Keep(pattern="*unit_length/*", reason="an epsilon of 1e-12 is 0 in FP16, and squares of 256 overflow")
MEAN_IN_MASK = Keep(
    pattern="*mean_in_mask/*",
    reason="sums over up to 25,600 pixels, 49,419 seen of FP16's 65,504; counts beyond 2,048 are not exact",
)
GROUP_NORM = Keep(
    pattern="*/InstanceNormalization*",
    reason="moments of up to 204,800 values: in what type an engine adds them up is not said",
)
HEAD_IN_FP32 = GraphRecipe(
    base="fp32",
    keep=(Keep(pattern="*", reason="cosines times 100, and shares of 1e-8, which is 0 in FP16; 0.1 % of the work"),),
)
"""The whole of open_vocab_head."""

NORMALISE = Keep(pattern="normalise/*", reason="pixels up to 255 before the division; memory-bound, a step long")
SAMPLING_PLACES = Keep(
    pattern="*.sampling_places/*",
    reason="FP16 steps of 5e-4 in -1..1 are 2 % of a cell of an 80-wide map: 45 % of its decoder's squared error",
)
SAMPLING = Keep(pattern="*/GridSample*", reason="TensorRT wants what is sampled in the type of the places")


def _half(base: FloatType, summary: str) -> Recipe:
    return Recipe(
        name=base,
        summary=summary,
        graphs=MappingProxyType(
            {
                CLIP_IMAGE_ENCODER: GraphRecipe(base=base, keep=(NORMALISE, UNIT_LENGTH)),
                SAM_IMAGE_ENCODER: GraphRecipe(base=base, keep=(NORMALISE,)),
                ADAB_DECODER: GraphRecipe(
                    base=base, keep=(UNIT_LENGTH, MEAN_IN_MASK, GROUP_NORM, SAMPLING_PLACES, SAMPLING)
                ),
                OPEN_VOCAB_HEAD: HEAD_IN_FP32,
                TEXT_ENCODER: GraphRecipe(base=base, keep=(UNIT_LENGTH,)),
            }
        ),
    )


FP16 = _half("fp16", "FP16 with islands of FP32: half the size, tensor cores on every NVIDIA GPU since 2018")
BF16 = _half("bf16", "BF16 with islands of FP32: FP32's range with 8 bits of mantissa; compute capability 8.0 and up")

PATCHES = "3 input channels: INT8 kernels take 4 or 32 at a time; 1 % of the work (nano: 5 %)"
TABLES = "constant tables of relative positions, batched: no engine quantises them; 0.4 % of the work"


def _not_quantised(base: FloatType) -> tuple[Keep, ...]:
    """Products of the encoders that stay in the base type of a quantised graph."""
    return (
        Keep(pattern="trunk.conv1/Conv", reason=PATCHES, precision=base),
        Keep(pattern="backbone.patch_embed.proj/Conv", reason=PATCHES, precision=base),
        Keep(pattern="attentions.*/MatMul", reason=TABLES, precision=base),
        Keep(pattern="attentions.*/MatMul_2", reason=TABLES, precision=base),
    )


def _quantised(name: str, to: QuantisedType, summary: str, *, attention: bool, graphs: tuple[GraphName, ...]) -> Recipe:
    """FP16 with some graphs quantised."""

    def graph_recipe(graph: GraphName) -> GraphRecipe:
        half = FP16.graphs[graph]
        if graph not in graphs:
            return half
        return replace(half, quantised=to, attention=attention, keep=(*half.keep, *_not_quantised("fp16")))

    return Recipe(
        name=name, summary=summary, graphs=MappingProxyType({graph: graph_recipe(graph) for graph in GRAPH_NAMES})
    )


ENCODERS: tuple[GraphName, ...] = (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER)

INT8 = _quantised(
    "int8", "int8", "INT8 encoders with their attention, FP16 for the rest", attention=True, graphs=ENCODERS
)
INT8_LINEAR = _quantised(
    "int8-linear",
    "int8",
    "INT8 linear layers in the encoders; attention stays FP16, where engines fuse it",
    attention=False,
    graphs=ENCODERS,
)
INT8_ALL = _quantised(
    "int8-all",
    "int8",
    "INT8 encoders and decoder: an experiment, see docs/how-to/quantize.md",
    attention=True,
    graphs=(*ENCODERS, ADAB_DECODER),
)
FP8 = _quantised(
    "fp8",
    "fp8",
    "FP8 (E4M3) linear layers in the encoders, FP16 for the rest; compute capability 8.9 and up",
    attention=False,
    graphs=ENCODERS,
)
EVERY_PRODUCT: Mapping[QuantisedType, Recipe] = MappingProxyType(
    {
        "int8": INT8_ALL,
        "fp8": _quantised(
            "fp8-all",
            "fp8",
            "FP8 encoders with their attention, and decoder",
            attention=True,
            graphs=(*ENCODERS, ADAB_DECODER),
        ),
    }
)
"""Everything that can be quantised, for measuring what each part of it costs."""

INT8_CPU = Recipe(
    name="int8-cpu",
    summary="INT8 encoders in ONNX Runtime's own operators, FP32 for the rest: for CPUs with VNNI; needs no pictures",
    graphs=MappingProxyType(
        {
            graph: GraphRecipe(
                quantised="int8" if graph in ENCODERS else None,
                attention=graph in ENCODERS,
                dynamic=graph in ENCODERS,
                keep=_not_quantised("fp32") if graph in ENCODERS else (),
            )
            for graph in GRAPH_NAMES
        }
    ),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (FP16, BF16, INT8, INT8_LINEAR, INT8_ALL, FP8, INT8_CPU)}
)


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise InputError(f"recipe {name!r}: unknown", cure=f"choose from {', '.join(RECIPES)}")
    return RECIPES[name]
