"""The restructured model against the published order, on variants small enough to try many shapes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from ebseg_deploy.contract import Size
from ebseg_deploy.model.adab_decoder import AdabOutput
from ebseg_deploy.model.ebseg import EBSeg
from ebseg_deploy.model.reference import ReferenceOutput, segment_in_published_order
from tiny_models import TINY, tiny_model
from tolerances import SAME_ORDER
from torch import Tensor
from torch.nn import functional as F

CLASSES = 6
CANVASES = ((128, 160), (96, 96), (64, 160), (160, 96))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small lose more by sharing than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_picture(height: int, width: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def random_text(model: EBSeg) -> tuple[Tensor, Tensor]:
    rows = torch.randn(CLASSES + 1, model.config.clip.embedding_dim, generator=torch.Generator().manual_seed(2))
    return F.normalize(rows, dim=-1), torch.tensor([1.0, 0, 1, 0, 0, 1])


def restructured(model: EBSeg, canvas: Tensor, valid: tuple[int, int] | None = None) -> tuple[AdabOutput, Tensor]:
    """One canvas (3, H, W) or several (B, 3, H, W)."""
    batch = canvas if canvas.dim() == 4 else canvas[None]
    size = Size(height=batch.shape[2], width=batch.shape[3])
    valid_size = torch.tensor([valid or (size.height, size.width)] * len(batch), dtype=torch.int32)
    return model.segment(model.graphs(size), batch, valid_size, *random_text(model))


def assert_same(ours: tuple[AdabOutput, Tensor], published: ReferenceOutput) -> None:
    output, probabilities = ours
    last = published.predictions[-1]
    pairs = {
        "mask_logits": (output.mask_logits, last["masks"]),
        "embeddings_a": (output.embeddings_a, last["embeddings_a"]),
        "embeddings_b": (output.embeddings_b, last["embeddings_b"]),
        "embeddings_d": (output.embeddings_d, published.embeddings_d),
        "class_probabilities": (probabilities, published.class_probabilities),
    }
    for name, (got, expected) in pairs.items():
        limit = SAME_ORDER[name] * float(expected.abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=limit, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("canvas", CANVASES, ids=lambda canvas: f"{canvas[0]}x{canvas[1]}")
@pytest.mark.parametrize("name", TINY)
def test_same_as_published_order(name: str, canvas: tuple[int, int]) -> None:
    model = tiny_model(name)
    picture = random_picture(*canvas)
    published = segment_in_published_order(model, picture, *random_text(model))
    areas = (published.predictions[-1]["masks"] > 0).float().mean(dim=(-1, -2))
    assert ((areas > 0) & (areas < 1)).sum() > 3  # the masks are a real mix
    assert_same(restructured(model, picture), published)


@pytest.mark.parametrize("name", TINY)
def test_picture_smaller_than_its_canvas(name: str) -> None:
    """The reference pads the normalised picture with zeros; a canvas may hold anything beside the picture."""
    model = tiny_model(name)
    picture = random_picture(100, 129)
    published = segment_in_published_order(model, picture, *random_text(model))
    canvas = random_picture(128, 160, seed=3)
    canvas[:, :100, :129] = picture
    assert_same(restructured(model, canvas, (100, 129)), published)


@pytest.mark.parametrize("name", TINY)
def test_what_lies_beside_the_picture_does_not_matter(name: str) -> None:
    model = tiny_model(name)
    one, other = (random_picture(96, 96, seed=seed) for seed in (4, 5))
    other[:, :70, :65] = one[:, :70, :65]
    output, probabilities = restructured(model, one, (70, 65))
    again, again_probabilities = restructured(model, other, (70, 65))
    for tensor, same in zip((*output, probabilities), (*again, again_probabilities), strict=True):
        torch.testing.assert_close(tensor, same, rtol=0, atol=0)


@pytest.mark.parametrize("name", TINY)
def test_batch_is_its_pictures(name: str) -> None:
    model = tiny_model(name)
    pictures = torch.stack([random_picture(96, 128, seed=seed) for seed in (6, 7)])
    output, probabilities = restructured(model, pictures)
    for i, picture in enumerate(pictures):
        alone, alone_probabilities = restructured(model, picture)
        for field, tensor in {**output._asdict(), "class_probabilities": probabilities}.items():
            single = {**alone._asdict(), "class_probabilities": alone_probabilities}[field]
            limit = SAME_ORDER[field] * float(single.abs().max())
            torch.testing.assert_close(tensor[i], single[0], rtol=0, atol=limit)
    assert (probabilities[0] - probabilities[1]).abs().max() > 1e-2


@pytest.mark.parametrize("scaling", [-5.0, -0.01, 0.0])
@pytest.mark.parametrize("name", TINY)
def test_bias_scaling_of_either_sign(name: str, scaling: float) -> None:
    """A maximum taken before an affine map is only right when the map is folded in: s < 0 turns it round."""
    model = copy.deepcopy(tiny_model(name))
    model.sem_seg_head.predictor.bias_scaling.weight.data.fill_(scaling)
    picture = random_picture(96, 96)
    assert_same(restructured(model, picture), segment_in_published_order(model, picture, *random_text(model)))


def with_constant_masks(name: str, sign: float) -> EBSeg:
    """A model whose every mask logit, of every prediction, has that sign at every pixel."""
    model = copy.deepcopy(tiny_model(name))
    model.sem_seg_head.pixel_decoder.mask_features.bias.data[0] = 100.0
    last = model.sem_seg_head.predictor.mask_embed.layers[-1]
    last.weight.data[0] = 0
    last.bias.data[0] = sign * 10
    return model


@pytest.mark.parametrize("name", TINY)
def test_empty_masks(name: str) -> None:
    """Every attention row is fully blocked, hence not blocked at all; pooled embeddings are zeros, never NaN."""
    model = with_constant_masks(name, -1.0)
    picture = random_picture(96, 96)
    output, probabilities = restructured(model, picture)
    assert (output.mask_logits < 0).all()
    assert (output.embeddings_d == 0).all()
    assert torch.isfinite(output.embeddings_a).all()
    assert torch.isfinite(probabilities).all()
    published = segment_in_published_order(model, picture, *random_text(model))
    # The published D divides 0 by 1e-8, which is 0 too.
    assert_same((output, probabilities), published)


@pytest.mark.parametrize("name", TINY)
def test_masks_over_everything(name: str) -> None:
    model = with_constant_masks(name, 1.0)
    picture = random_picture(96, 96)
    output, _ = restructured(model, picture)
    assert (output.mask_logits > 0).all()
    assert_same(restructured(model, picture), segment_in_published_order(model, picture, *random_text(model)))


def test_queries_see_the_words_not_each_other() -> None:
    """Class probabilities of one query depend on that query's embeddings alone."""
    model = tiny_model("tiny-b")
    output, probabilities = restructured(model, random_picture(96, 96))
    head = model.open_vocab_head()
    one = head(
        output.embeddings_a[:, 3:4], output.embeddings_b[:, 3:4], output.embeddings_d[:, 3:4], *random_text(model)
    )
    torch.testing.assert_close(one[0, 0], probabilities[0, 3])
