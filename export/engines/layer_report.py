"""Read the layer report and the memory figures out of a builder's verbose log.

With detailed profiling verbosity the builder ends its log with one line a layer:

    Name: …, LayerType: gemm, Inputs: [ { Name: …, Dimensions: [1600,768], …, Datatype: Half, … }], Constants: […],
    Outputs: […], TacticName: …, StreamId: 0, Metadata: [ONNX Layer: blocks.0/MatMul][ONNX Layer: …]

An engine inspector would say the same, but it needs a GPU. Fused kernels carry their operations in their name:
`__myl_FcAddRelu` is a matrix product ("fully connected") with its bias and ReLU.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ...contract import LayerRecord

Role = Literal["gemm", "convolution", "attention", "cast", "other"]

_LAYER = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), (?P<rest>.*)$")
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), (?P<rest>[^{}]*?)\}")
_DIMENSIONS = re.compile(r"Dimensions: \[(?P<dimensions>[-0-9, ]*)\]")
_TYPE = re.compile(r"(?:^|[ /])(?:Datatype|Format): (?P<type>[^,}]+)")
_NODE = re.compile(r"\[ONNX Layer: (?P<node>[^\]]*)\]")
_FUSED = re.compile(r"__myl_(?P<operations>[A-Za-z0-9]+?)_myl")
_WORD = re.compile(r"[A-Z][a-z0-9]*")
_MEMORY = re.compile(r"\] (?:Total|Max) (?P<what>Activation|Weights|Scratch) Memory: (?P<bytes>[0-9]+) bytes")

_TYPES = {
    "FP32": "Float",
    "FP16": "Half",
    "BF16": "BFloat16",
    "INT8": "Int8",
}
"""Older spellings, as in "Row major linear FP16 format", to those of the Datatype field."""

_GEMM_KINDS = {"gemm", "matrixmultiply", "matrix_multiply", "fullyconnected"}
_CONVOLUTION_KINDS = {"correlation", "convolution", "caskconvolution", "deconvolution", "conv"}
_MOVES = {"Cast", "Move", "Resh", "Tran", "Conc", "Slic", "Repl"}
_WIDTH = {"FP4": 4, "Int4": 4, "Int8": 8, "FP8": 8, "Half": 16, "BFloat16": 16, "Float": 32}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of the report."""

    name: str
    type: str | None
    dimensions: tuple[int, ...]
    """-1 where the length is dynamic."""


def read_layers(lines: Iterable[str]) -> tuple[LayerRecord, ...]:
    """The layers of the last report in a log, in its order; empty if there is none."""
    layers: list[LayerRecord] = []
    for line in lines:
        if line.rstrip().endswith("] Layers:"):
            layers = []  # a builder that tries again reports again
        match = _LAYER.search(line)
        if match is not None:
            layers.append(_layer(match["name"], match["kind"], match["rest"]))
    return tuple(layers)


def read_memory(lines: Iterable[str]) -> dict[str, int]:
    """ "weights", "activation" and "scratch" -> bytes, as far as the log says."""
    found = {}
    for line in lines:
        match = _MEMORY.search(line)
        if match is not None:
            found[match["what"].lower()] = int(match["bytes"])
    return found


def _layer(name: str, kind: str, rest: str) -> LayerRecord:
    inputs = _tensors(_section(rest, "Inputs", ("Constants", "Outputs")))
    constants = _tensors(_section(rest, "Constants", ("Outputs",)))
    outputs = _tensors(_section(rest, "Outputs", ("TacticName", "ParameterType", "StreamId", "Metadata")))
    tactic = re.search(r"TacticName: ([^,]*)", rest)
    operations = _operations(name)
    role = _role(name, kind, operations)
    return LayerRecord(
        name=name,
        kind=kind,
        role=role,
        type=_compute_type(role, inputs, constants, outputs),
        multiply_adds=_multiply_adds(role, inputs, constants, outputs),
        onnx_nodes=tuple(dict.fromkeys(_NODE.findall(rest))),
        tactic=tactic[1] if tactic else "",
        has_weights=role in ("gemm", "convolution") and _weights(constants) is not None,
    )


def _section(rest: str, key: str, followers: Sequence[str]) -> str:
    start = rest.find(f"{key}: [")
    if start < 0:
        return ""
    ends = [rest.find(f"], {follower}: ", start) for follower in followers]
    return rest[start : min((end for end in ends if end >= 0), default=len(rest))]


def _tensors(section: str) -> list[Tensor]:
    return [
        Tensor(name=match["name"], type=_type(match["rest"]), dimensions=_dimensions(match["rest"]))
        for match in _TENSOR.finditer(section)
    ]


def _dimensions(text: str) -> tuple[int, ...]:
    match = _DIMENSIONS.search(text)
    return tuple(int(part) for part in match["dimensions"].split(",") if part.strip()) if match else ()


def _type(text: str) -> str | None:
    match = _TYPE.search(text)
    if match is None:
        return None
    words = match["type"].split()
    return next((_TYPES[word] for word in words if word in _TYPES), words[0] if len(words) == 1 else None)


def _operations(name: str) -> list[str]:
    """The operations a fused kernel's name spells, or none."""
    match = _FUSED.match(name)
    return _WORD.findall(match["operations"]) if match else []


def _role(name: str, kind: str, operations: Sequence[str]) -> Role:
    lower = kind.strip().lower()
    if "mha" in name.lower():
        return "attention"
    if lower in _GEMM_KINDS or "Fc" in operations:
        return "gemm"
    if lower in _CONVOLUTION_KINDS:
        return "convolution"
    if lower in ("cast", "reformat") or ("Cast" in operations and set(operations) <= _MOVES):
        return "cast"
    return "other"


def _compute_type(
    role: Role, inputs: Sequence[Tensor], constants: Sequence[Tensor], outputs: Sequence[Tensor]
) -> str | None:
    """What a layer computes in.

    Products: the type of their weights, which strong typing makes the type of both factors; without weights, the
    narrowest of the first two inputs, because one of them may be a mask, which may be wider. The report's scalar
    constants α and β are always Float and say nothing.
    """
    if role in ("gemm", "convolution", "attention"):
        weights = _weights(constants)
        factors = [weights] if weights else inputs[:2]
        types = [tensor.type for tensor in factors if tensor.type is not None]
        return min(types, key=lambda each: _WIDTH.get(each, 64), default=None)
    return next((tensor.type for tensor in (*outputs, *inputs) if tensor.type), None)


def _weights(constants: Sequence[Tensor]) -> Tensor | None:
    """The largest constant that is a matrix at least; None if there is none, as in a product of two activations."""
    matrices = [tensor for tensor in constants if sum(length != 1 for length in tensor.dimensions) >= 2]
    return max(matrices, key=lambda tensor: math.prod(tensor.dimensions), default=None)


def _multiply_adds(
    role: Role, inputs: Sequence[Tensor], constants: Sequence[Tensor], outputs: Sequence[Tensor]
) -> int | None:
    """The work of a product whose shapes are fixed; None for others.

    Convolution: |output| · |weights| / output channels. Matrices A (…, M, K) · B (…, K, N) = C (…, M, N), of b such:
    b·M·K·N = sqrt(|A|·|B|·|C| / b_B), with b_B the number of matrices in B: 1 where all share it.
    """
    if role == "attention" and outputs:
        return _attention_work((*inputs, *constants), outputs[0])
    second = _weights(constants) or (inputs[1] if len(inputs) > 1 else None)
    if role not in ("gemm", "convolution") or not inputs or not outputs or second is None:
        return None
    a, b, c = inputs[0].dimensions, second.dimensions, outputs[0].dimensions
    if not (a and b and c) or min(*a, *b, *c) < 0:
        return None
    if role == "convolution":
        return math.prod(c) * math.prod(b[1:])
    return math.isqrt(math.prod(a) * math.prod(b) * math.prod(c) // math.prod(b[:-2]))


def _attention_work(given: Sequence[Tensor], output: Tensor) -> int | None:
    """Both products of softmax(Q·K)·V: b·M·N·(K + D), of Q (b, M, K), K (b, K, N), V (b, N, D) and output (b, M, D).

    The report does not say which tensor is which, so they are told by what fits together; a mask fits nowhere. Queries
    may be a constant. None where nothing fits: a kernel that transposes by itself, or holds more than attention.
    """
    matrices = [each.dimensions for each in given if len(each.dimensions) >= 2 and min(each.dimensions) > 0]
    if len(output.dimensions) < 2 or min(output.dimensions) < 0:
        return None
    *batch, rows, width = output.dimensions
    for query, key, value in itertools.permutations(matrices, 3):
        inner, keys = key[-2:]
        if query[-2:] == (rows, inner) and value[-2:] == (keys, width):
            return math.prod(batch) * rows * keys * (inner + width)
    return None
