"""The five graphs as modules with flat, named borders: what the exporter traces.

Quirks of exporting live here and not in the model: tuples are flattened into the order of contract.graph_spec, and
example inputs have the shapes it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..contract import (
    ADAB_DECODER,
    CLIP_IMAGE_ENCODER,
    OPEN_VOCAB_HEAD,
    SAM_IMAGE_ENCODER,
    TEXT_ENCODER,
    Dimension,
    GraphName,
    GraphSpec,
    ModelSpec,
    Size,
    TensorSpec,
    graph_spec,
)
from ..model.adab_decoder import AdabDecoder
from ..model.clip_image import ClipFeatures, ClipImageEncoder
from ..model.ebseg import EBSeg

EXAMPLE_LENGTHS: dict[str, int] = {"batch": 2, "prompts": 3, "tokens": 9, "classes": 5, "classes_and_background": 6}
"""Lengths of the dynamic dimensions in example inputs."""

MOST_PICTURES = 1024
"""Upper limit of a dynamic batch while tracing; a bundle's own limit is lower."""

_TORCH_TYPES = {"uint8": torch.uint8, "int32": torch.int32, "float32": torch.float32, "float16": torch.float16}


class _FlatClip(nn.Module):
    def __init__(self, encoder: ClipImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor, valid_size: Tensor) -> tuple[Tensor, ...]:
        features: ClipFeatures = self.encoder(image, valid_size)
        return (*features.fusion, features.cls, features.head_keys, features.head_values, features.dense)


class _FlatDecoder(nn.Module):
    def __init__(self, decoder: AdabDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        clip_fusion_0: Tensor,
        clip_fusion_1: Tensor,
        clip_fusion_2: Tensor,
        clip_cls: Tensor,
        clip_head_keys: Tensor,
        clip_head_values: Tensor,
        clip_dense: Tensor,
        sam_feature_0: Tensor,
        sam_feature_1: Tensor,
        sam_feature_2: Tensor,
        sam_feature_3: Tensor,
    ) -> tuple[Tensor, ...]:
        clip = ClipFeatures(
            fusion=(clip_fusion_0, clip_fusion_1, clip_fusion_2),
            cls=clip_cls,
            head_keys=clip_head_keys,
            head_values=clip_head_values,
            dense=clip_dense,
        )
        return tuple(self.decoder(clip, (sam_feature_0, sam_feature_1, sam_feature_2, sam_feature_3)))


@dataclass(frozen=True, kw_only=True)
class ExportableGraph:
    """One graph, ready to trace."""

    name: GraphName
    size: Size | None
    batch: Dimension
    module: nn.Module
    spec: GraphSpec

    @property
    def label(self) -> str:
        return f"{self.name} {self.size}" if self.size else self.name

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Zeros of the right shapes; the numbers do not matter to tracing."""
        return tuple(
            torch.zeros([_length(d) for d in tensor.shape], dtype=_TORCH_TYPES[tensor.dtype])
            for tensor in self.spec.inputs
        )

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """torch.export's dimension per input; N + 1 is derived from N."""
        classes = torch.export.Dim("classes", min=1, max=65535)
        dims: dict[str, Any] = {
            "batch": torch.export.Dim("batch", min=1, max=MOST_PICTURES),
            "prompts": torch.export.Dim("prompts", min=1, max=65535),
            "tokens": torch.export.Dim("tokens", min=2, max=77),
            "classes": classes,
            "classes_and_background": classes + 1,
        }
        return tuple(_dynamic(tensor, dims) for tensor in self.spec.inputs)


def exportable_graphs(model: EBSeg, sizes: tuple[Size, ...], batch: Dimension) -> list[ExportableGraph]:
    """Every graph of a bundle, in the order they are exported: per size the three sized ones, then the shared two.

    Args:
        model: with its weights.
        sizes: canvases.
        batch: pictures per run, or "batch" for graphs that take any number of them.
    """
    spec = model.spec
    graphs = []
    for size in sizes:
        sized = model.graphs(size)
        modules: tuple[tuple[GraphName, nn.Module], ...] = (
            (CLIP_IMAGE_ENCODER, _FlatClip(sized.clip_image_encoder)),
            (SAM_IMAGE_ENCODER, sized.sam_image_encoder),
            (ADAB_DECODER, _FlatDecoder(sized.adab_decoder)),
        )
        graphs += [_exportable(name, module, spec, size, batch) for name, module in modules]
    graphs.append(_exportable(OPEN_VOCAB_HEAD, model.open_vocab_head(), spec, None, batch))
    graphs.append(_exportable(TEXT_ENCODER, model.text_encoder(), spec, None, batch))
    return graphs


def _exportable(
    name: GraphName, module: nn.Module, spec: ModelSpec, size: Size | None, batch: Dimension
) -> ExportableGraph:
    return ExportableGraph(
        name=name, size=size, batch=batch, module=module.eval(), spec=graph_spec(name, spec, size, batch)
    )


def _length(dimension: Dimension) -> int:
    return EXAMPLE_LENGTHS[dimension] if isinstance(dimension, str) else dimension


def _dynamic(tensor: TensorSpec, dims: dict[str, Any]) -> dict[int, Any]:
    return {i: dims[d] for i, d in enumerate(tensor.shape) if isinstance(d, str)}
