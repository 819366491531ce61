"""A bundle of five tiny graphs with the right borders: seconds of work in milliseconds, and real ONNX all the way.

The graphs compute something simple from their inputs (colours decide the masks), so that other pictures, words and
seen flags give other label maps. Nothing here resembles a trained model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from ebseg_deploy.contract import (
    BACKGROUND_NAME,
    GRAPH_NAMES,
    MANIFEST_NAME,
    MASK_STRIDE,
    SAM_FEATURES,
    SCHEMA_VERSION,
    SIZED_GRAPHS,
    TOKENIZER_NAME,
    BundleManifest,
    FileRecord,
    GraphName,
    GraphRecord,
    GraphSpec,
    ModelSpec,
    ReferenceRecord,
    Size,
    TensorSpec,
    TextRecord,
    graph_spec,
    manifest_bytes,
    sample_axes,
)
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.tokenizer import END_OF_TEXT, START_OF_TEXT
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

TINY_MODEL = ModelSpec(
    name="ebseg-tiny",
    queries=8,
    embedding_dim=16,
    clip_width=16,
    clip_heads=2,
    clip_patch=16,
    clip_input_scale=0.5,
    head_blocks=2,
    sam_width=8,
    context_length=77,
    alpha=0.1,
    beta=0.3,
    gamma=0.6,
    logit_scale=100.0,
)
TINY_SIZES = (Size(height=64, width=64), Size(height=64, width=96))
OPSET = 18
TOKEN_BUCKETS = 97


def write_tiny_bundle(
    folder: Path,
    *,
    model: ModelSpec = TINY_MODEL,
    sizes: Sequence[Size] = TINY_SIZES,
    precisions: Sequence[str] = ("fp32",),
    batch: int = 1,
    dynamic_batch: bool = False,
    seed: int = 3,
) -> Path:
    """Write a valid bundle to `folder` and return it.

    Another `seed` gives other weights and with them another text encoder hash.
    """
    (folder / "vocabularies").mkdir(parents=True)
    records = []
    for precision in precisions:
        (folder / "graphs" / precision).mkdir(parents=True)
        for name in GRAPH_NAMES:
            for size in sizes if name in SIZED_GRAPHS else (None,):
                spec = graph_spec(name, model, size, "batch" if dynamic_batch else batch)
                file = f"graphs/{precision}/{name}{'' if size is None else f'_{size}'}.onnx"
                onnx.save(_graph(name, spec, model, size, seed), folder / file)
                records.append(
                    GraphRecord(
                        name=name,
                        precision=precision,
                        size=size,
                        file=file,
                        weights=None,
                        spec=spec,
                        opset=OPSET,
                        parity={output.name: 1e-6 for output in spec.outputs},
                    )
                )
    background = np.random.default_rng(seed).normal(size=(1, model.embedding_dim)).astype(np.float32)
    save_file({"background": background / np.linalg.norm(background)}, folder / BACKGROUND_NAME)
    _tokenizer().save(str(folder / TOKENIZER_NAME))
    manifest = BundleManifest(
        schema_version=SCHEMA_VERSION,
        model=model,
        sizes=tuple(sizes),
        batch=batch,
        graphs=tuple(records),
        text=TextRecord(
            encoder_sha256=hashlib.sha256(f"tiny text encoder {seed}".encode()).hexdigest(),
            templates=("a photo of a {}.", "There is a {} in the scene."),
            background=BACKGROUND_NAME,
            tokenizer=TOKENIZER_NAME,
        ),
        files={},
        provenance={"checkpoint": f"tiny weights, seed {seed}"},
    )
    return seal(folder, manifest)


def add_references(folder: Path, *, classes: int = 7, seed: int = 0, pictures: int | None = None) -> Path:
    """Give a tiny bundle references, with what ONNX Runtime computes as the expected outputs.

    They have as many pictures as a run takes, or of a dynamic batch `pictures`.
    """
    import onnxruntime

    bundle = Bundle.open(folder)
    random = np.random.default_rng(seed)
    (folder / "references").mkdir()
    references = []
    for size in bundle.sizes:
        rows = random.normal(size=(classes + 1, bundle.model.embedding_dim)).astype(np.float32)
        batch = pictures or bundle.manifest.batch
        tensors = {
            "image": random.integers(0, 256, (batch, 3, size.height, size.width), dtype=np.uint8),
            "valid_size": np.array([[size.height - 4, size.width - 8]] * batch, dtype=np.int32),
            "text_embeddings": rows / np.linalg.norm(rows, axis=1, keepdims=True),
            "seen": (np.arange(classes) % 2).astype(np.float32),
            "tokens": np.pad(np.array([[400, 70, 401], [400, 90, 401]], dtype=np.int32), ((0, 0), (0, 74))),
        }
        kept = dict(tensors)
        for name in GRAPH_NAMES:
            record = bundle.graph(name, size)
            session = onnxruntime.InferenceSession(bundle.file(record.file), providers=["CPUExecutionProvider"])
            found = session.run(None, {tensor.name: tensors[tensor.name] for tensor in record.spec.inputs})
            for tensor, array in zip(record.spec.outputs, found, strict=True):
                tensors[tensor.name] = array
                kept[f"expected.{tensor.name}"] = np.ascontiguousarray(array[sample_axes(array.shape)])
        file = f"references/{size}.safetensors"
        save_file(kept, folder / file)
        references.append(ReferenceRecord(size=size, file=file))
    return seal(folder, msgspec.structs.replace(bundle.manifest, references=tuple(references)))


def seal(folder: Path, manifest: BundleManifest) -> Path:
    """Write `bundle.json` with sizes and hashes as the files are now; for tests that change a bundle."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST_NAME:
            content = path.read_bytes()
            files[path.relative_to(folder).as_posix()] = FileRecord(
                bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
            )
    manifest = msgspec.structs.replace(manifest, files=files)
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
    return folder


class _Builder:
    """Nodes and weights of one graph."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def node(self, op: str, *inputs: str, out: str | None = None, **attributes: object) -> str:
        out = out or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def constant(self, values: object, dtype: type = np.float32) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def normal(self, *shape: int) -> str:
        return self.constant(self.random.normal(size=shape))

    def shape(self, *lengths: int) -> str:
        return self.constant(lengths, np.int64)

    def pooled(self, image: str, valid: str, rows: int, columns: int, size: Size) -> str:
        """Mean colour of each cell, zero where the canvas holds no picture: (B, 3, rows, columns) in -1..1."""
        cell = [size.height // rows, size.width // columns]
        colour = self.node("Cast", image, to=TensorProto.FLOAT)
        colour = self.node("Mul", self.node("Sub", colour, self.constant(127.5)), self.constant(1 / 127.5))
        inside = self.constant(1.0)
        for axis, length in ((2, size.height), (3, size.width)):
            limit = self.node("Gather", valid, self.shape(axis - 2), axis=1)
            limit = self.node("Reshape", limit, self.shape(-1, 1, 1, 1))
            index = self.constant(np.arange(length).reshape((-1, 1) if axis == 2 else (1, -1))[None, None], np.int32)
            inside = self.node("Mul", inside, self.node("Cast", self.node("Less", index, limit), to=TensorProto.FLOAT))
        colour = self.node("Mul", colour, inside)
        return self.node("AveragePool", colour, kernel_shape=cell, strides=cell)


def _graph(name: GraphName, spec: GraphSpec, model: ModelSpec, size: Size | None, seed: int) -> onnx.ModelProto:
    builder = _Builder(seed + GRAPH_NAMES.index(name))
    if name == "clip_image_encoder":
        assert size is not None
        _clip(builder, model, size)
    elif name == "sam_image_encoder":
        assert size is not None
        rows, columns = size.height // model.sam_patch, size.width // model.sam_patch
        cells = builder.pooled("image", "valid_size", rows, columns, size)
        for i in range(SAM_FEATURES):
            builder.node("Conv", cells, builder.normal(model.sam_width, 3, 1, 1), out=f"sam_feature_{i}")
    elif name == "adab_decoder":
        _decoder(builder, model, spec)
    elif name == "open_vocab_head":
        _head(builder)
    else:
        _text(builder, model)
    graph = helper.make_graph(
        builder.nodes, name, _values(spec.inputs), _values(spec.outputs), initializer=builder.weights
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(proto, full_check=True)
    return onnx.shape_inference.infer_shapes(proto)  # inner shapes stand in exported graphs, too


def _clip(builder: _Builder, model: ModelSpec, size: Size) -> None:
    rows, columns = model.clip_grid(size)
    width, heads, blocks = model.clip_width, model.clip_heads, model.head_blocks
    cells = builder.pooled("image", "valid_size", rows, columns, size)
    for i in range(3):
        builder.node("Conv", cells, builder.normal(width, 3, 1, 1), out=f"clip_fusion_{i}")
    patches = builder.node("Reshape", "clip_fusion_2", builder.shape(0, width, rows * columns))
    mean = builder.node("ReduceMean", patches, builder.shape(2), keepdims=1)
    builder.node("Transpose", mean, out="clip_cls", perm=[0, 2, 1])
    split = builder.node("Reshape", patches, builder.shape(0, 1, heads, width // heads, rows * columns))
    split = builder.node("Transpose", split, perm=[0, 1, 2, 4, 3])
    for kind in ("keys", "values"):
        scales = builder.constant(builder.random.normal(size=(1, blocks, 1, 1, 1)))
        builder.node("Mul", split, scales, out=f"clip_head_{kind}")
    dense = builder.node(
        "Conv", cells, builder.normal(model.embedding_dim, 3, 1, 1), builder.normal(model.embedding_dim)
    )
    builder.node("LpNormalization", dense, out="clip_dense", axis=1, p=2)


def _decoder(builder: _Builder, model: ModelSpec, spec: GraphSpec) -> None:
    features = builder.node("Sum", *(f"sam_feature_{i}" for i in range(SAM_FEATURES)))
    masks = builder.node("Conv", features, builder.normal(model.queries, model.sam_width, 1, 1))
    scale = model.sam_patch // MASK_STRIDE
    scales = builder.constant([1, 1, scale, scale])
    masks = builder.node("Mul", masks, builder.constant(4.0))  # sure masks, so that a picture has several classes
    builder.node("Resize", masks, "", scales, out="mask_logits", mode="linear")
    # Every input has a say: a host that hands one over in the wrong place gets other numbers.
    means = [
        builder.node("ReduceMean", tensor.name, builder.shape(*range(1, len(tensor.shape))), keepdims=0)
        for tensor in spec.inputs
    ]
    stir = builder.node("Reshape", builder.node("Sum", *means), builder.shape(-1, 1, 1))
    for which in "abd":
        queries = builder.constant(builder.random.normal(size=(1, model.queries, model.embedding_dim)))
        direction = builder.node("Mul", stir, builder.normal(1, 1, model.embedding_dim))
        unit = builder.node("LpNormalization", builder.node("Add", queries, direction), axis=2, p=2)
        builder.node("Mul", unit, builder.constant(10.0 if which == "a" else 1.0), out=f"embeddings_{which}")


def _head(builder: _Builder) -> None:
    names = builder.node("Slice", "text_embeddings", builder.shape(0), builder.shape(-1), builder.shape(0))
    text = builder.node("Transpose", names, perm=[1, 0])
    total = builder.node("Sum", "embeddings_a", "embeddings_b", "embeddings_d")
    bonus = builder.node("Mul", "seen", builder.constant(0.1))
    logits = builder.node("Add", builder.node("MatMul", total, text), bonus)
    builder.node("Softmax", logits, out="class_probabilities", axis=-1)


def _text(builder: _Builder, model: ModelSpec) -> None:
    bucket = builder.node("Mod", "tokens", builder.constant(TOKEN_BUCKETS, np.int32))
    table = builder.random.normal(size=(TOKEN_BUCKETS, model.embedding_dim))
    table[0] = 0  # the padding behind a text says nothing
    vectors = builder.node("Gather", builder.constant(table), bucket)
    # Signs that change with the place: the same words of every prompt cancel, and names tell.
    positions = builder.constant(np.cos(np.arange(model.context_length) * 2.1).reshape(1, -1, 1))
    length = builder.node("Shape", "tokens", start=1, end=2)  # prompts come cut behind the longest text
    positions = builder.node("Slice", positions, builder.shape(0), length, builder.shape(1))
    total = builder.node("ReduceSum", builder.node("Mul", vectors, positions), builder.shape(1), keepdims=0)
    builder.node("LpNormalization", total, out="prompt_embeddings", axis=1, p=2)


def _values(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    types = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
    return [helper.make_tensor_value_info(spec.name, types[spec.dtype], list(spec.shape)) for spec in specs]


def _tokenizer() -> Tokenizer:
    """CLIP's kind of tokenizer without merges: one token a byte, the last byte of a word marked."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), START_OF_TEXT, END_OF_TEXT]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in (START_OF_TEXT, END_OF_TEXT)])
    return tokenizer
