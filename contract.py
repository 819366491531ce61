"""What the rooms hand one another: graph names, tensor specs and the bundle's manifest.

Everything that crosses from one room to another is a file described here. The structs are frozen and read with
msgspec, which refuses unknown fields and wrong types and names the path of the first fault. `bundle_json_schema()`
gives the same description as JSON Schema for hosts in other languages (docs/schema/bundle-1.json).
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal

import msgspec

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"
TOKENIZER_NAME = "tokenizer.json"
BACKGROUND_NAME = "vocabularies/background.safetensors"

GraphName = Literal["clip_image_encoder", "sam_image_encoder", "adab_decoder", "open_vocab_head", "text_encoder"]
CLIP_IMAGE_ENCODER: GraphName = "clip_image_encoder"
SAM_IMAGE_ENCODER: GraphName = "sam_image_encoder"
ADAB_DECODER: GraphName = "adab_decoder"
OPEN_VOCAB_HEAD: GraphName = "open_vocab_head"
TEXT_ENCODER: GraphName = "text_encoder"
GRAPH_NAMES: tuple[GraphName, ...] = (
    CLIP_IMAGE_ENCODER,
    SAM_IMAGE_ENCODER,
    ADAB_DECODER,
    OPEN_VOCAB_HEAD,
    TEXT_ENCODER,
)
SIZED_GRAPHS: tuple[GraphName, ...] = (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER, ADAB_DECODER)
"""Graphs exported once per canvas size; the other two serve every size."""

DType = Literal["uint8", "int32", "float32", "float16"]
Dimension = int | str
"""A fixed length, or the name of a dynamic one: "classes", "classes_and_background", "prompts", "tokens", "batch"."""

VILD_TEMPLATES = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
"""The 14 prompts EBSeg averages per class. Source: ViLD (Gu et al. 2022), as the published code spells them."""

CANVAS_DIVISOR = 32
MASK_STRIDE = 4
SAM_FEATURES = 4


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything written to a manifest."""


class TensorSpec(Record, frozen=True, kw_only=True):
    """One tensor at a graph's border."""

    name: str
    dtype: DType
    shape: tuple[Dimension, ...]


class GraphSpec(Record, frozen=True, kw_only=True):
    """A graph's border: what it takes and what it gives, in binding order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Size(Record, frozen=True, kw_only=True):
    """A canvas, in pixels; both sides are multiples of 32."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class ModelSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The numbers of a model that a host needs; enough to derive every graph's border."""

    name: str
    """"ebseg-b", "ebseg-l", "ebseg-nano"."""
    queries: int
    embedding_dim: int
    clip_width: int
    clip_heads: int
    clip_patch: int
    clip_input_scale: float
    head_blocks: int
    sam_width: int
    sam_patch: int = 16
    """Side of SAM's patches in canvas pixels. 16 is left out of the file, so that older seals hold."""
    context_length: int
    alpha: float
    """Weight of D for seen classes, in the geometric mean of the three probabilities."""
    beta: float
    """Weight of D for new classes."""
    gamma: float
    """Weight of B."""
    logit_scale: float
    """Factor from cosine to logit: exp of the text tower's learned scale. Lives inside `open_vocab_head`."""

    def clip_grid(self, size: Size) -> tuple[int, int]:
        """Rows and columns of CLIP's patches for a canvas: floor(floor(s·side) / patch)."""
        return (
            math.floor(size.height * self.clip_input_scale) // self.clip_patch,
            math.floor(size.width * self.clip_input_scale) // self.clip_patch,
        )


def graph_spec(graph: GraphName, model: ModelSpec, size: Size | None = None, batch: Dimension = 1) -> GraphSpec:
    """The border that `graph` must have.

    Args:
        graph: one of GRAPH_NAMES.
        model: numbers of the model.
        size: canvas; needed by the graphs in SIZED_GRAPHS.
        batch: pictures per run, or "batch" where that is dynamic.

    Shapes, with B pictures, Q queries, D embedding width, h×w CLIP's grid, L head blocks of M heads of width d:

        image                 (B, 3, H, W) uint8 RGB, the picture in the upper left corner, the rest of any value
        valid_size            (B, 2) int32, rows and columns of the canvas that hold the picture
        clip_fusion_{0,1,2}   (B, C, h, w) patch tokens after the fusion layers
        clip_cls              (B, 1, C) the CLS token entering the head blocks
        clip_head_keys/values (B, L, M, h·w, d) of the patches, in every head block
        clip_dense            (B, D, h, w) unit length along D
        sam_feature_{0..3}    (B, C', H/p, W/p) after the four global-attention blocks, p SAM's patch: 16, of nano 8
        mask_logits           (B, Q, H/4, W/4) before the sigmoid
        embeddings_{a,b,d}    (B, Q, D) the paper's A (fully supervised), B (mask attention), D (frozen)
        text_embeddings       (N+1, D) unit length; the last row is the learned background
        seen                  (N,) float32, 1 for a class seen in training, else 0
        class_probabilities   (B, Q, N)
        tokens                (T, L) int32, L from the longest prompt's end-of-text to 77
        prompt_embeddings     (T, D) unit length
    """

    def f32(name: str, *shape: Dimension) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=shape)

    if graph == TEXT_ENCODER:
        tokens = TensorSpec(name="tokens", dtype="int32", shape=("prompts", "tokens"))
        return GraphSpec(inputs=(tokens,), outputs=(f32("prompt_embeddings", "prompts", model.embedding_dim),))

    embeddings = tuple(f32(f"embeddings_{which}", batch, model.queries, model.embedding_dim) for which in "abd")
    if graph == OPEN_VOCAB_HEAD:
        text = f32("text_embeddings", "classes_and_background", model.embedding_dim)
        return GraphSpec(
            inputs=(*embeddings, text, f32("seen", "classes")),
            outputs=(f32("class_probabilities", batch, model.queries, "classes"),),
        )

    if size is None:
        raise ValueError(f"{graph} needs a canvas size")
    rows, columns = model.clip_grid(size)
    heads = (batch, model.head_blocks, model.clip_heads, rows * columns, model.clip_width // model.clip_heads)
    clip = (
        *(f32(f"clip_fusion_{i}", batch, model.clip_width, rows, columns) for i in range(3)),
        f32("clip_cls", batch, 1, model.clip_width),
        f32("clip_head_keys", *heads),
        f32("clip_head_values", *heads),
        f32("clip_dense", batch, model.embedding_dim, rows, columns),
    )
    sam = tuple(
        f32(f"sam_feature_{i}", batch, model.sam_width, size.height // model.sam_patch, size.width // model.sam_patch)
        for i in range(SAM_FEATURES)
    )
    if graph == ADAB_DECODER:
        masks = f32("mask_logits", batch, model.queries, size.height // MASK_STRIDE, size.width // MASK_STRIDE)
        return GraphSpec(inputs=(*clip, *sam), outputs=(masks, *embeddings))
    picture = (
        TensorSpec(name="image", dtype="uint8", shape=(batch, 3, size.height, size.width)),
        TensorSpec(name="valid_size", dtype="int32", shape=(batch, 2)),
    )
    return GraphSpec(inputs=picture, outputs=clip if graph == CLIP_IMAGE_ENCODER else sam)


FloatType = Literal["fp32", "fp16", "bf16"]
QuantisedType = Literal["int8", "fp8"]


class KeptRecord(Record, frozen=True, kw_only=True):
    """Nodes of a graph that do not follow its precision, and why."""

    pattern: str
    """Shell pattern of ONNX node names, which are module paths: "layers.*/LayerNormalization*"."""
    precision: FloatType
    """What they compute in; of a quantised graph, the base type says: not quantised, and no more than that."""
    reason: str
    nodes: int
    """How many nodes of the graph the pattern keeps."""


class ComputeRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Types a graph computes in. Its border is graph_spec's, FP32, in every precision."""

    base: FloatType
    """Type of whatever is neither kept nor quantised."""
    quantised: QuantisedType | None = None
    """Type of the products between Q/DQ pairs."""
    dynamic: bool = False
    """Whether ONNX Runtime's own operators find the ranges of activations, in place of Q/DQ pairs: no engine takes
    such a graph."""
    macs_share: float | None = None
    """Share of the graph's multiply-adds that is quantised, 0 to 1; None where nothing is."""
    kept: tuple[KeptRecord, ...] = ()
    casts: int = 0
    """Cast nodes that stand on the borders of islands and of the graph."""
    emulated: bool = False
    """Whether the graph computes in FP32 and rounds as these types would: to be measured on a CPU, not deployed."""


class GraphRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One graph file of a bundle."""

    name: GraphName
    precision: str
    """Name of the recipe it was made by: "fp32" as exported, "fp16", "int8", …"""
    size: Size | None
    """None for graphs that serve every size."""
    file: str
    """The .onnx file, relative to the bundle."""
    weights: str | None
    """External data the .onnx file refers to (same folder), or None."""
    spec: GraphSpec
    opset: int
    parity: dict[str, float]
    """Output name -> largest |difference| seen when it was made: of an FP32 graph, ONNX Runtime's from torch; of a
    graph of another precision, its own from the FP32 graph, both in ONNX Runtime."""
    compute: ComputeRecord | None = None
    """Types it computes in; None is FP32 throughout, and left out of the file, so that older seals hold."""


class FileRecord(Record, frozen=True, kw_only=True):
    """Size and hash of one file."""

    bytes: int
    sha256: str


class TextRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What ties a vocabulary to this bundle."""

    encoder_sha256: str
    """Hash over the text tower's weights, the background embedding and the logit scale; see model.text_identity."""
    templates: tuple[str, ...]
    background: str
    """Safetensors file with the learned background embedding, tensor `background` (1, D)."""
    tokenizer: str
    training_names: tuple[str, ...] | None = None
    """Names of the classes that had masks in training, for the seen rule; None stands for COCO-Stuff's 171 classes.
    Left out of the file when None, so that seals stay as they were."""


class ReferenceRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What PyTorch gave for one picture, so that a bundle can be checked where there is no PyTorch."""

    size: Size
    file: str
    """Safetensors: graph inputs by name, and `expected.<output>` sampled by contract.sample_axes."""
    precision: str | None = None
    """Of the graphs that gave the expected outputs, in ONNX Runtime on a CPU; None for PyTorch, and then it is left
    out of the file."""


class BundleManifest(Record, frozen=True, kw_only=True):
    """bundle.json."""

    schema_version: int
    model: ModelSpec
    sizes: tuple[Size, ...]
    batch: int
    graphs: tuple[GraphRecord, ...]
    text: TextRecord
    files: dict[str, FileRecord]
    """Every file of the bundle but bundle.json itself, by path relative to the bundle, with forward slashes."""
    provenance: dict[str, str]
    """Where it came from: checkpoint file and sha256, package versions, time, command."""
    references: tuple[ReferenceRecord, ...] = ()
    seal: str = ""
    """SHA-256 of this manifest with an empty seal: shows an edit by hand. No protection against an attacker."""


def seal_of(manifest: BundleManifest) -> str:
    """The seal that belongs to a manifest's other fields."""
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, seal=""), order="sorted")).hexdigest()


def manifest_bytes(manifest: BundleManifest) -> bytes:
    """bundle.json's content, sealed."""
    sealed = msgspec.structs.replace(manifest, seal=seal_of(manifest))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n"


ENGINE_SCHEMA_VERSION = 1
MERGED: Literal["merged"] = "merged"
"""Stands where a graph's name does for one engine of the encoders, the decoder and the head together."""
EngineName = GraphName | Literal["merged"]
ENGINES_FOLDER = "engines"
"""Where a bundle keeps its engines: engines/<target>/<precision>/. Outside the seal: they belong to a machine."""

EngineTarget = Literal["tensorrt", "tensorrt-rtx"]
ENGINE_TARGETS: tuple[EngineTarget, ...] = ("tensorrt", "tensorrt-rtx")


class DimensionRange(Record, frozen=True, kw_only=True):
    """Lengths of a dynamic dimension that an engine takes, and the one it was made fastest for."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


class EngineSettings(Record, frozen=True, kw_only=True):
    """What the builder was told; an engine is kept when its settings and its graph are the ones asked for."""

    compute_capabilities: tuple[str, ...]
    """"8.6", "12.0", …; of `tensorrt`, the one of the GPU it was built on."""
    profile: dict[str, DimensionRange]
    """Dynamic dimension -> lengths; the names are those of the graph's spec."""
    workspace_bytes: int | None
    """Scratch memory a layer may take; None is the builder's own choice."""
    tf32: bool
    """Whether FP32 matrix products may be computed in TF32 (10 bits of mantissa)."""
    keep_fp32: tuple[str, ...]
    """Patterns of ONNX node names that may run in FP32 in spite of the precision."""
    static_memory: bool = False
    """Whether the engine was told to ask for no memory while it runs, which CUDA graph capture needs. TensorRT for RTX
    alone has to be told (REQUIRE_USER_ALLOCATION)."""


class LayerRecord(Record, frozen=True, kw_only=True):
    """One layer of the builder's report."""

    name: str
    kind: str
    """The builder's own word: "gemm", "kgen", "correlation", "runtime_fusion", …"""
    role: Literal["gemm", "convolution", "attention", "cast", "other"]
    type: str | None
    """Type it computes in: "Float", "Half", "BFloat16", "Int8", "FP8"; None if it moves no numbers."""
    multiply_adds: int | None
    """Of a product whose shapes are fixed and can be told from the report; else None."""
    onnx_nodes: tuple[str, ...]
    tactic: str
    has_weights: bool = False
    """Whether one factor of a product is a constant matrix; an attention's products have two activations."""


class EngineMemory(Record, frozen=True, kw_only=True):
    """Bytes, as the builder's log gives them; None where it is silent."""

    weights_bytes: int | None
    activation_bytes: int | None
    scratch_bytes: int | None
    builder_peak_bytes: int | None
    """Resident memory of the building process at its peak."""


class EngineSidecar(Record, frozen=True, kw_only=True):
    """`<engine>.plan.json`: what a plan is, to be read before its bytes are given to TensorRT."""

    schema_version: int
    plan: FileRecord
    graph: EngineName
    precision: str
    size: Size | None
    model: str
    spec: GraphSpec
    """The engine's tensors; their types and shapes are those of the ONNX graph."""
    source: dict[str, str]
    """Files of the bundle it was built from -> sha256."""
    target: EngineTarget
    tensorrt_version: str
    platform: str
    """Operating system and processor: "linux-x86_64"."""
    settings: EngineSettings
    memory: EngineMemory
    layers: tuple[LayerRecord, ...]
    """Empty when the builder gave no report."""
    quantised_nodes: tuple[str, ...] = ()
    """ONNX nodes of products whose two factors come out of Q/DQ pairs: those that are meant to be Int8 or FP8."""
    compute: dict[GraphName, ComputeRecord | None] = {}
    """The graphs it is made of, and the types each was made to compute in; None is what its precision's name says."""
    build_seconds: float
    provenance: dict[str, str]


REFERENCE_SAMPLES = 8
"""Samples per axis of an expected output, about."""


def sample_axes(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Which elements of an output a reference keeps: all of the first two axes, every n-th of the others."""
    return tuple(
        slice(None) if axis < 2 else slice(None, None, -(-length // REFERENCE_SAMPLES))
        for axis, length in enumerate(shape)
    )


def bundle_json_schema() -> dict[str, Any]:
    """The manifest's JSON Schema (2020-12)."""
    schema = msgspec.json.schema(BundleManifest)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
