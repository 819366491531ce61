"""From mask logits and class probabilities to a label map, without the dense (classes, height, width) scores.

A class's score at a pixel is the sum over queries of its probability times the sigmoid of the upsampled mask; the
label is the class of the greatest score. 847 classes at 640x640 would be 1.4 GB of float32 scores, so the map is made
tile by tile, and most tiles never need a score:

1. Bilinear weights are not negative and sum to 1, so every logit in a tile lies between the least and the greatest of
   the low-resolution logits that the tile reads; the sigmoid keeps that order.
2. That bounds every class's score in the tile. A class whose upper bound is below another's lower bound cannot win.
3. A tile with one class left is that class. The others are upsampled and scored, for the classes that are left.

The result is the dense computation's, up to the rounding of float32 where two scores are equal to 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..contract import Size
from ..errors import BackendError, InputError
from .bilinear import Matrix, mask_to_output_weights, support
from .threads import single_threaded_blas, usable_cores

Labels = npt.NDArray[np.uint8 | np.uint16]
Floats = npt.NDArray[np.float32]

TILE = 16
"""Side of a tile, in output pixels."""
CHUNK_TILES = 8
"""Tiles scored at once: 16x128 pixels of 100 queries are 0.8 MB and stay in a core's cache."""
PAIRWISE_LIMIT = 64
"""Largest number of classes left after the simple bound for which the pairwise one is worth its time."""
ROUNDING = 2e-5
"""Relative margin of the bounds: more than float32 sums of some hundred non-negative products are off (about 1e-6)."""


def label_dtype(classes: int) -> type[np.uint8] | type[np.uint16]:
    """uint8 for up to 256 classes, uint16 for up to 65536."""
    return np.uint8 if classes <= 256 else np.uint16


def label_map(
    mask_logits: Floats,
    class_probabilities: Floats,
    canvas: Size,
    valid_size: tuple[int, int],
    output_size: tuple[int, int],
    *,
    threads: int | None = None,
) -> Labels:
    """The class of the greatest score at every pixel; of equals, the first.

    Args:
        mask_logits: (Q, h, w) float32, before the sigmoid.
        class_probabilities: (Q, N) float32, none negative.
        canvas: what the masks cover.
        valid_size: rows and columns of the canvas, from the upper left corner, that hold the picture.
        output_size: rows and columns of the label map.
        threads: tiles are shared among so many; all usable cores by default.

    Returns:
        (H, W) uint8 for up to 256 classes, else uint16. Needs memory for the result, three times the mask logits and
        about 4 MB + 8 KB · N per thread.

    Source: EBSeg's inference; bilinear to the canvas, crop, bilinear to the output, sigmoid, weighted sum, argmax.
    """
    scorer = _Scorer.make(mask_logits, class_probabilities, canvas, valid_size, output_size)
    labels = np.zeros(output_size, dtype=label_dtype(class_probabilities.shape[1]))
    if class_probabilities.shape[1] == 1:
        return labels

    def fill(top: int) -> None:
        strip = slice(top, min(top + TILE, output_size[0]))
        for columns, winners in scorer.strip_labels(strip):
            labels[strip, columns] = winners

    _for_each_strip(fill, output_size[0], threads)
    return labels


def score_maps(
    mask_logits: Floats,
    class_probabilities: Floats,
    canvas: Size,
    valid_size: tuple[int, int],
    output_size: tuple[int, int],
    *,
    classes: Sequence[int] | None = None,
    threads: int | None = None,
) -> Floats:
    """The dense scores of some classes.

    Args:
        mask_logits, class_probabilities, canvas, valid_size, output_size, threads: as of `label_map`.
        classes: indices of the classes wanted; all by default.

    Returns:
        (len(classes), H, W) float32: 4 bytes a class and pixel, 245 MB for 150 classes at 640x640.
    """
    scorer = _Scorer.make(mask_logits, class_probabilities, canvas, valid_size, output_size)
    wanted = np.arange(class_probabilities.shape[1]) if classes is None else np.asarray(classes, dtype=np.int64)
    scores = np.empty((len(wanted), *output_size), dtype=np.float32)
    chunk = TILE * CHUNK_TILES

    def fill(top: int) -> None:
        strip = slice(top, min(top + TILE, output_size[0]))
        for left in range(0, output_size[1], chunk):
            columns = slice(left, min(left + chunk, output_size[1]))
            scores[:, strip, columns] = scorer.scores(strip, columns, wanted).transpose(2, 0, 1)

    _for_each_strip(fill, output_size[0], threads)
    return scores


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scorer:
    """Scores and bounds of one picture's tiles."""

    negated: Floats
    """(h, Q, w): minus the mask logits, rows first, so that upsampling is two matrix products."""
    probabilities: Floats
    """(Q, N)."""
    rows: Matrix
    """(H, h) bilinear weights."""
    columns: Matrix
    """(W, w) bilinear weights."""
    tile_columns: npt.NDArray[np.intp]
    """First and one-past-last mask column that each tile of a strip reads, one after the other: (2 T,)."""

    @classmethod
    def make(
        cls,
        mask_logits: Floats,
        class_probabilities: Floats,
        canvas: Size,
        valid_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> _Scorer:
        _check(mask_logits, class_probabilities, canvas, valid_size, output_size)
        height, width = mask_logits.shape[1:]
        rows = mask_to_output_weights(height, canvas.height, valid_size[0], output_size[0])
        columns = mask_to_output_weights(width, canvas.width, valid_size[1], output_size[1])
        return cls(
            negated=np.negative(mask_logits.transpose(1, 0, 2), dtype=np.float32, order="C"),
            probabilities=np.ascontiguousarray(class_probabilities, dtype=np.float32),
            rows=rows,
            columns=columns,
            tile_columns=np.array(
                [support(columns[left : left + TILE]) for left in range(0, output_size[1], TILE)]
            ).ravel(),
        )

    def strip_labels(self, strip: slice) -> Iterator[tuple[slice, npt.NDArray[np.intp]]]:
        """Labels of a strip of tiles, piece by piece: the columns of a piece, and what belongs there."""
        winners, candidates = self.bounds(strip)
        decided = candidates.sum(axis=1) == 1
        width = self.columns.shape[0]
        tile = 0
        while tile < len(decided):
            end = tile + 1
            while end < len(decided) and decided[end] == decided[tile] and (decided[tile] or end - tile < CHUNK_TILES):
                end += 1
            columns = slice(tile * TILE, min(end * TILE, width))
            if decided[tile]:
                yield columns, np.repeat(winners[tile:end], TILE)[: columns.stop - columns.start]
            else:
                classes = np.flatnonzero(candidates[tile:end].any(axis=0))  # ascending: of equals, the first wins
                yield columns, classes[self.scores(strip, columns, classes).argmax(axis=2)]
            tile = end

    def scores(self, strip: slice, columns: slice, classes: npt.NDArray[np.intp]) -> Floats:
        """(rows, columns, len(classes)) scores of a piece of a strip."""
        top, bottom = support(self.rows[strip])
        left, right = support(self.columns[columns])
        queries = self.negated.shape[1]
        source = self.negated[top:bottom, :, left:right].reshape(-1, right - left)
        wide = source @ self.columns[columns, left:right].T
        values = self.rows[strip, top:bottom] @ wide.reshape(bottom - top, -1)
        _sigmoid_of_negated(values)
        height, width = strip.stop - strip.start, columns.stop - columns.start
        masks = values.reshape(height, queries, width)
        every = len(classes) == self.probabilities.shape[1]
        weights = self.probabilities if every else self.probabilities[:, classes]
        scores: Floats = np.matmul(masks.transpose(0, 2, 1), weights)
        return scores

    def bounds(self, strip: slice) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """What can win in each tile of a strip.

        Returns:
            (T,) the class of the greatest lower bound; (T, N) whether a class can win some pixel of the tile.
        """
        top, bottom = support(self.rows[strip])
        # One column more than there is: reduceat takes pairs of first and one-past-last, and both must exist.
        extremes = np.zeros((2, self.negated.shape[1], self.negated.shape[2] + 1), dtype=np.float32)
        self.negated[top:bottom].max(axis=0, out=extremes[0, :, :-1])
        self.negated[top:bottom].min(axis=0, out=extremes[1, :, :-1])
        low = np.ascontiguousarray(np.maximum.reduceat(extremes[0], self.tile_columns, axis=1)[:, ::2].T)  # (T, Q)
        high = np.ascontiguousarray(np.minimum.reduceat(extremes[1], self.tile_columns, axis=1)[:, ::2].T)
        _sigmoid_of_negated(low)
        _sigmoid_of_negated(high)
        lower, upper = low @ self.probabilities, high @ self.probabilities  # (T, N)
        winners = lower.argmax(axis=1)
        tiles = np.arange(len(winners))
        candidates: npt.NDArray[np.bool_] = upper >= (lower[tiles, winners] * (1 - ROUNDING))[:, None]
        left_over = candidates.sum(axis=1)
        for tile in np.flatnonzero((left_over > 1) & (left_over <= PAIRWISE_LIMIT)):
            self._prune_pairwise(candidates[tile], winners[tile], low[tile], high[tile])
        return winners, candidates

    def _prune_pairwise(self, candidates: npt.NDArray[np.bool_], winner: np.intp, low: Floats, high: Floats) -> None:
        """Drop classes that are below the tile's winner wherever in their bounds the masks are.

        The difference of two scores has its greatest value where masks that speak for the class are at their upper
        and those that speak for the winner at their lower bound: never more than the difference of simple bounds.
        """
        classes = np.flatnonzero(candidates)
        kept = self.probabilities[:, classes]
        advantage = kept - self.probabilities[:, winner, None]
        best = high @ np.maximum(advantage, 0) + low @ np.minimum(advantage, 0)
        margin = ROUNDING * (high @ (kept + self.probabilities[:, winner, None]))
        candidates[classes] = (best >= -margin) | (classes == winner)


def _sigmoid_of_negated(values: Floats) -> None:
    """1 / (1 + exp(x)) in place. Not by tanh, which loses sigmoids below 1e-7: where no mask is sure, those decide."""
    with np.errstate(over="ignore"):  # exp(89) is inf in float32, and 1 / inf the right 0
        np.exp(values, out=values)
    np.add(values, 1, out=values)
    np.divide(1, values, out=values)


def _for_each_strip(work: Callable[[int], None], height: int, threads: int | None) -> None:
    """Call `work` with the top of every strip, on several threads; numpy releases the GIL."""
    workers = usable_cores() if threads is None else max(threads, 1)
    with single_threaded_blas(), ThreadPoolExecutor(max_workers=workers) as pool:
        for _ in pool.map(work, range(0, height, TILE)):
            pass


def _check(
    mask_logits: Floats,
    class_probabilities: Floats,
    canvas: Size,
    valid_size: tuple[int, int],
    output_size: tuple[int, int],
) -> None:
    if mask_logits.ndim != 3 or class_probabilities.ndim != 2 or len(mask_logits) != len(class_probabilities):
        raise InputError(
            f"mask logits {mask_logits.shape} and class probabilities {class_probabilities.shape} do not fit",
            cure="give (Q, h, w) and (Q, N)",
        )
    if class_probabilities.shape[1] < 1:
        raise InputError("class probabilities of 0 classes", cure="give at least one class")
    if not (1 <= valid_size[0] <= canvas.height and 1 <= valid_size[1] <= canvas.width):
        raise InputError(f"valid size {valid_size} on a canvas of {canvas}", cure="give rows and columns inside it")
    if min(output_size) < 1:
        raise InputError(f"output size {output_size}", cure="give at least one row and one column")
    for name, values in (("mask_logits", mask_logits), ("class_probabilities", class_probabilities)):
        if not np.isfinite(values).all():
            raise BackendError(
                f"{name} holds NaN or infinity", cure="check the bundle with `ebseg verify`, or use its fp32 graphs"
            )
