"""Names and border of the merged graph: what a host and a census need of it; `merge` makes it."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import (
    ADAB_DECODER,
    CLIP_IMAGE_ENCODER,
    OPEN_VOCAB_HEAD,
    SAM_IMAGE_ENCODER,
    GraphName,
    GraphRecord,
    GraphSpec,
    TensorSpec,
)

MERGED_GRAPHS: tuple[GraphName, ...] = (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER, ADAB_DECODER, OPEN_VOCAB_HEAD)
"""In the order in which they run. The text encoder stays by itself: it runs once per vocabulary, not per picture."""

RESULTS = ("mask_logits", "class_probabilities")


def merged_prefix(graph: GraphName) -> str:
    """What the node and value names of a graph begin with inside a merged one."""
    return f"{graph}/"


def merged_spec(records: Sequence[GraphRecord]) -> GraphSpec:
    """The border of the merged graph of these graphs: what none of them makes, and RESULTS."""
    made = {tensor.name: tensor for record in records for tensor in record.spec.outputs}
    taken: dict[str, TensorSpec] = {}
    for record in records:
        taken |= {tensor.name: tensor for tensor in record.spec.inputs if tensor.name not in made}
    return GraphSpec(inputs=tuple(taken.values()), outputs=tuple(made[name] for name in RESULTS))
