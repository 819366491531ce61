"""Label maps equal to the dense computation, without its memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ebseg_deploy.contract import Size
from ebseg_deploy.errors import BackendError, InputError
from ebseg_deploy.runtime import label_map as module
from ebseg_deploy.runtime import threads
from ebseg_deploy.runtime.bilinear import mask_to_output_weights, resize_weights, support
from ebseg_deploy.runtime.label_map import label_map, score_maps
from ebseg_deploy.runtime.threads import single_threaded_blas, usable_cores
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

EQUAL_SCORES = 1e-6
"""Where the dense winner leads by less, float32 may order two classes either way."""


def bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(…, h, w) to (…, height, width) in float64, pixel by pixel from the definition."""
    for axis, target in ((-2, height), (-1, width)):
        source = values.shape[axis]
        centre = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
        first = np.floor(centre).astype(int)
        second = np.minimum(first + 1, source - 1)
        fraction = centre - first
        shape = (-1, 1) if axis == -2 else (-1,)
        fraction = fraction.reshape(shape)
        values = np.take(values, first, axis) * (1 - fraction) + np.take(values, second, axis) * fraction
    return values


def dense_scores(
    masks: np.ndarray, probabilities: np.ndarray, canvas: Size, valid: tuple[int, int], output: tuple[int, int]
) -> np.ndarray:
    """(N, H, W) float64, as the paper's code computes it."""
    upsampled = bilinear(masks.astype(np.float64), canvas.height, canvas.width)[:, : valid[0], : valid[1]]
    if output != valid:
        upsampled = bilinear(upsampled, *output)
    return np.einsum("qn,qhw->nhw", probabilities.astype(np.float64), 1 / (1 + np.exp(-upsampled)))


def assert_equal_to_dense(labels: np.ndarray, scores: np.ndarray) -> None:
    """Every label is the dense winner's, or that of a class that is as good."""
    chosen = np.take_along_axis(scores, labels[None].astype(np.int64), axis=0)[0]
    behind = scores.max(axis=0) - chosen
    assert behind.max() < EQUAL_SCORES, f"{(behind >= EQUAL_SCORES).sum()} pixels behind by up to {behind.max():.2e}"
    unequal = labels != scores.argmax(axis=0)
    assert unequal.mean() < 0.01  # ties are rare: agreement is not won by the tolerance


def random_case(seed: int, queries: int, classes: int, rows: int, columns: int, sharpness: float) -> tuple:
    """Masks from noise to sure blobs, and probabilities from flat to peaked, with `sharpness` from 0 to 1."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    masks = random.normal(size=(queries, rows, columns)) * 3 * (1 - sharpness)
    for mask in masks:
        distance = np.hypot(y - random.uniform(0, rows), x - random.uniform(0, columns))
        mask += sharpness * np.clip(4 * (random.uniform(0, max(rows, columns) / 2) - distance), -15, 12)
    logits = random.normal(size=(queries, classes)) * (1 + 6 * sharpness)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return masks.astype(np.float32), probabilities.astype(np.float32)


class TestWeights:
    @given(st.integers(1, 40), st.integers(1, 90))
    def test_resize_is_the_definition(self, source: int, target: int) -> None:
        values = np.random.default_rng(source).normal(size=(1, source))
        wanted = bilinear(values[None], 1, target)[0, 0]
        np.testing.assert_allclose(resize_weights(source, target) @ values[0], wanted, atol=1e-12)

    def test_resize_is_torchs(self) -> None:
        torch = pytest.importorskip("torch")
        values = torch.randn(1, 1, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for size in ((28, 20), (3, 4), (7, 5), (1, 1), (9, 31)):
            wanted = torch.nn.functional.interpolate(values, size=size, mode="bilinear", align_corners=False)
            found = resize_weights(7, size[0]) @ values[0, 0].numpy() @ resize_weights(5, size[1]).T
            np.testing.assert_allclose(found, wanted[0, 0].numpy(), atol=1e-12)

    @given(st.integers(1, 12), st.data())
    def test_rows_are_convex(self, cells: int, data: st.DataObject) -> None:
        canvas = 4 * cells
        valid, output = data.draw(st.integers(1, canvas)), data.draw(st.integers(1, 100))
        weights = mask_to_output_weights(cells, canvas, valid, output)
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
        first, end = support(weights)
        assert not weights[:, :first].any()
        assert not weights[:, end:].any()


class TestLabels:
    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_equal_to_the_dense_computation(self, data: st.DataObject) -> None:
        rows, columns = data.draw(st.integers(1, 24), "rows"), data.draw(st.integers(1, 24), "columns")
        canvas = Size(height=4 * rows, width=4 * columns)
        valid = (data.draw(st.integers(1, canvas.height)), data.draw(st.integers(1, canvas.width)))
        output = data.draw(st.one_of(st.just(valid), st.tuples(st.integers(1, 150), st.integers(1, 150))), "output")
        masks, probabilities = random_case(
            data.draw(st.integers(0, 2**32 - 1), "seed"),
            data.draw(st.integers(1, 30), "queries"),
            data.draw(st.integers(1, 300), "classes"),
            rows,
            columns,
            data.draw(st.floats(0, 1), "sharpness"),
        )
        labels = label_map(masks, probabilities, canvas, valid, output, threads=data.draw(st.integers(1, 3)))
        assert labels.shape == output
        assert labels.dtype == (np.uint8 if probabilities.shape[1] <= 256 else np.uint16)
        assert_equal_to_dense(labels, dense_scores(masks, probabilities, canvas, valid, output))

    @pytest.mark.parametrize("sharpness", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("output", [(160, 128), (333, 250), (80, 70)])
    def test_larger_cases(self, sharpness: float, output: tuple[int, int]) -> None:
        canvas, valid = Size(height=160, width=160), (160, 128)
        masks, probabilities = random_case(1, 50, 60, 40, 40, sharpness)
        labels = label_map(masks, probabilities, canvas, valid, output)
        assert_equal_to_dense(labels, dense_scores(masks, probabilities, canvas, valid, output))

    def test_threads_do_not_change_the_result(self) -> None:
        masks, probabilities = random_case(2, 20, 30, 40, 40, 0.5)
        arguments = (masks, probabilities, Size(height=160, width=160), (150, 160), (300, 320))
        np.testing.assert_array_equal(label_map(*arguments, threads=1), label_map(*arguments, threads=4))

    def test_where_no_mask_is_sure_the_relative_order_decides(self) -> None:
        # Sigmoids of -30 and -31 are 9e-14 and 3e-14: far below float32's steps at 1, and still in order.
        masks = np.stack([np.full((8, 8), -31.0), np.full((8, 8), -30.0)]).astype(np.float32)
        labels = label_map(masks, np.eye(2, dtype=np.float32), Size(height=32, width=32), (32, 32), (32, 32))
        assert (labels == 1).all()

    def test_of_equal_classes_the_first_wins(self) -> None:
        masks, probabilities = random_case(3, 10, 3, 16, 16, 0.3)
        doubled = np.concatenate([probabilities, probabilities], axis=1)
        labels = label_map(masks, doubled, Size(height=64, width=64), (64, 64), (64, 64))
        assert labels.max() < 3
        zeros = label_map(masks, np.zeros_like(doubled), Size(height=64, width=64), (64, 64), (64, 64))
        assert not zeros.any()

    def test_extreme_logits(self) -> None:
        masks, probabilities = random_case(4, 6, 5, 8, 8, 0.0)
        labels = label_map(masks * 1e4, probabilities, Size(height=32, width=32), (32, 32), (40, 40))
        with np.errstate(over="ignore"):
            scores = dense_scores(masks * 1e4, probabilities, Size(height=32, width=32), (32, 32), (40, 40))
        chosen = np.take_along_axis(scores, labels[None].astype(np.int64), axis=0)[0]
        # A sigmoid is a step here; a pixel on the step may fall on either side in float32.
        assert ((scores.max(axis=0) - chosen) < EQUAL_SCORES).mean() > 0.999

    def test_sure_tiles_are_not_scored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        y = np.mgrid[:40, :40][0]
        masks = np.where(y < 20, 8.0, -8.0).astype(np.float32)
        masks = np.stack([masks, -masks])
        scored = []
        real = module._Scorer.scores

        def count(self: module._Scorer, strip: slice, columns: slice, classes: np.ndarray) -> np.ndarray:
            scored.append((strip.start, strip.stop))
            return real(self, strip, columns, classes)

        monkeypatch.setattr(module._Scorer, "scores", count)
        size = Size(height=160, width=160)
        labels = label_map(masks, np.eye(2, dtype=np.float32), size, (160, 160), (160, 160))
        assert {top for top, _ in scored} <= {64, 80}  # the strips on both sides of row 80
        assert (labels[:78] == 0).all()
        assert (labels[82:] == 1).all()

    def test_one_class(self) -> None:
        masks, probabilities = random_case(5, 3, 1, 8, 8, 0.0)
        labels = label_map(masks, probabilities, Size(height=32, width=32), (30, 32), (10, 12))
        assert labels.shape == (10, 12)
        assert not labels.any()


class TestScores:
    def test_equal_to_the_dense_computation(self) -> None:
        masks, probabilities = random_case(6, 12, 9, 20, 24, 0.4)
        arguments = (Size(height=80, width=96), (77, 96), (140, 170))
        wanted = dense_scores(masks, probabilities, *arguments)
        np.testing.assert_allclose(score_maps(masks, probabilities, *arguments), wanted, atol=2e-6)
        some = score_maps(masks, probabilities, *arguments, classes=[7, 2])
        assert some.dtype == np.float32
        np.testing.assert_allclose(some, wanted[[7, 2]], atol=2e-6)

    def test_labels_are_where_scores_are_greatest(self) -> None:
        masks, probabilities = random_case(7, 12, 9, 20, 24, 0.4)
        arguments = (masks, probabilities, Size(height=80, width=96), (80, 96), (80, 96))
        assert (label_map(*arguments) == score_maps(*arguments).argmax(axis=0)).mean() > 0.9999


class TestRefusals:
    def case(self) -> list:
        masks, probabilities = random_case(8, 4, 3, 8, 8, 0.0)
        return [masks, probabilities, Size(height=32, width=32), (32, 32), (32, 32)]

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            (0, np.zeros((5, 8, 8), np.float32), "do not fit"),
            (1, np.zeros((4, 0), np.float32), "0 classes"),
            (3, (33, 32), "valid size"),
            (3, (0, 32), "valid size"),
            (4, (0, 5), "output size"),
        ],
    )
    def test_what_does_not_fit(self, place: int, value: object, message: str) -> None:
        arguments = self.case()
        arguments[place] = value
        with pytest.raises(InputError, match=message):
            label_map(*arguments)

    @pytest.mark.parametrize("place", [0, 1])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_broken_numbers_are_not_turned_into_labels(self, place: int, value: float) -> None:
        arguments = self.case()
        arguments[place].flat[5] = value
        with pytest.raises(BackendError, match="NaN or infinity"):
            label_map(*arguments)


class TestThreads:
    def test_blas_is_limited_inside_and_restored_after(self) -> None:
        before = blas_threads()
        with single_threaded_blas():
            assert set(blas_threads()) <= {1}
        assert blas_threads() == before

    def test_a_second_thread_neither_waits_nor_leaves_the_limit_behind(self) -> None:
        before = blas_threads()
        inside, leave = threading.Event(), threading.Event()

        def other() -> None:
            with single_threaded_blas():
                inside.set()
                leave.wait(timeout=10)

        thread = threading.Thread(target=other)
        with single_threaded_blas():
            thread.start()
            assert inside.wait(timeout=10)
        assert blas_threads() == before
        leave.set()
        thread.join()
        assert blas_threads() == before

    @pytest.mark.parametrize("quota", ["50000 100000", "199999 100000", "max 100000", "", None])
    def test_a_containers_quota_counts(
        self, quota: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(threads, "CONTAINER_QUOTA", tmp_path / "no-such-file")
        all_of_them = usable_cores()
        assert all_of_them >= 1
        if quota is not None:
            (tmp_path / "cpu.max").write_text(f"{quota}\n")
            monkeypatch.setattr(threads, "CONTAINER_QUOTA", tmp_path / "cpu.max")
        assert usable_cores() == (1 if quota and quota[0].isdigit() else all_of_them)


def blas_threads() -> list[int]:
    """Of NumPy's BLAS; another test may have loaded SciPy, which brings one of its own that label maps never call."""
    found = [each for each in threadpool_info() if each["user_api"] == "blas"]
    return [each["num_threads"] for each in found if "scipy.libs" not in each["filepath"]]


MEMORY_PROGRAM = """
import sys, threading, time
import numpy as np
from ebseg_deploy.contract import Size
from ebseg_deploy.runtime.label_map import label_map

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

random = np.random.default_rng(0)
masks = (random.normal(size=(100, 160, 160)) * float(sys.argv[1])).astype(np.float32)
probabilities = random.random((100, 847), dtype=np.float32)
probabilities /= probabilities.sum(axis=1, keepdims=True)
label_map(masks[:, :8, :8], probabilities, Size(height=32, width=32), (32, 32), (32, 32))
before, peak, done = resident(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
labels = label_map(masks, probabilities, Size(height=640, width=640), (480, 640), (3000, 4000))
done = True
watcher.join()
assert labels.shape == (3000, 4000) and labels.dtype == np.uint16
print((peak - before) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_memory_for_847_classes_on_12_megapixels(spread: float) -> None:
    """Below 300 MB beyond what is there before, the 24 MB result included; the dense scores would take 40 GB."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, str(spread)], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 300, f"{result.stdout.strip()} MB"
