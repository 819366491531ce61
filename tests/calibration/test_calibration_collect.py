"""Collection: what ONNX Runtime gives for inner tensors is what is counted, whole or after breaks."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from calibration_graphs import ArrayFeeds, expected, saved, two_products
from ebseg_deploy.calibration import collect as collect_module
from ebseg_deploy.calibration.collect import collect, collect_histograms
from ebseg_deploy.calibration.histogram import Histogram
from ebseg_deploy.calibration.observers import MaxObserver
from ebseg_deploy.calibration.tap import GraphTap, OpenTap
from ebseg_deploy.errors import CalibrationError
from onnx import TensorProto

TENSORS = ["x", "hidden", "active", "y"]


@pytest.fixture
def feeds() -> ArrayFeeds:
    return ArrayFeeds(np.random.default_rng(8).normal(size=(5, 4, 6)).astype(np.float32))


def counted_by_numpy(feeds: ArrayFeeds) -> dict[str, Histogram]:
    found = {tensor: Histogram() for tensor in TENSORS}
    for array in feeds.arrays:
        for tensor, values in expected(array).items():
            found[tensor].add(values)
    return found


def test_ranges_are_numpys(feeds: ArrayFeeds) -> None:
    ranges = collect(two_products(), TENSORS, feeds, MaxObserver())
    assert list(ranges) == TENSORS
    for tensor, histogram in counted_by_numpy(feeds).items():
        assert ranges[tensor].low == pytest.approx(histogram.smallest, rel=1e-5, abs=1e-6)
        assert ranges[tensor].high == pytest.approx(histogram.largest, rel=1e-5)
    assert ranges["active"].low == 0


@pytest.mark.parametrize("external", [False, True])
def test_a_file_gives_the_same_as_the_model_in_memory(feeds: ArrayFeeds, tmp_path: Path, external: bool) -> None:
    file = saved(two_products(), tmp_path / "graph.onnx", external=external)
    assert (tmp_path / "graph.weights").exists() == external
    assert collect_histograms(file, TENSORS, feeds) == collect_histograms(two_products(), TENSORS, feeds)


def test_a_small_budget_takes_more_passes_and_gives_the_same(feeds: ArrayFeeds) -> None:
    at_once = collect_histograms(two_products(), TENSORS, feeds)
    assert feeds.asked == [0, 1, 2, 3, 4]
    feeds.asked.clear()
    progress: list[tuple[int, int]] = []
    apart = collect_histograms(
        two_products(), TENSORS, feeds, budget_bytes=100, progress=lambda *figures: progress.append(figures)
    )
    assert apart == at_once
    assert feeds.asked == [0, 1, 2, 3, 4] * 4
    assert progress == [(done, 20) for done in range(21)]


def test_chunks_fit_the_budget_in_the_graphs_order() -> None:
    tap = GraphTap(two_products(), name="graph")
    assert tap.chunks(["y", "active", "hidden"], 2 * 96) == [["hidden", "active"], ["y"]]
    assert tap.chunks(TENSORS, 1) == [["x"], ["hidden"], ["active"], ["y"]]
    dynamic = GraphTap(two_products(rows="rows"), name="graph")
    assert dynamic.chunks(["hidden", "y"], 1 << 30) == [["hidden"], ["y"]]


def test_half_precision_activations_are_counted(feeds: ArrayFeeds) -> None:
    halves = ArrayFeeds([array.astype(np.float16) for array in feeds.arrays])
    found = collect(two_products(dtype=TensorProto.FLOAT16), ["hidden"], halves, MaxObserver())
    wanted = counted_by_numpy(feeds)["hidden"]
    assert found["hidden"].high == pytest.approx(wanted.largest, rel=5e-3)


def test_a_broken_off_collection_goes_on_and_gives_the_same(
    feeds: ArrayFeeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(two_products(), tmp_path / "graph.onnx")
    whole = collect_histograms(file, TENSORS, feeds)
    state = tmp_path / "state"

    for stop_at in (4, 11, 17):  # of 20 runs; killed between any two, what was saved counts
        calls = itertools.count()
        counting = collect_module._count

        def killed(*arguments: object, calls=calls, stop_at=stop_at, counting=counting) -> None:
            if next(calls) == stop_at:
                raise KeyboardInterrupt
            counting(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(collect_module, "_count", killed)
            with pytest.raises(KeyboardInterrupt):
                collect_histograms(file, TENSORS, feeds, state=state, budget_bytes=100, save_every=3)
        assert len(list(state.iterdir())) == 1
        feeds.asked.clear()
        said: list[str] = []
        resumed = collect_histograms(
            file, TENSORS, feeds, state=state, budget_bytes=100, save_every=3, notice=said.append
        )
        assert resumed == whole
        assert len(feeds.asked) == 20 - stop_at // 3 * 3
        assert "were counted before" in said[0]
        next(state.iterdir()).unlink()


def test_a_finished_collection_is_not_run_again(feeds: ArrayFeeds, tmp_path: Path) -> None:
    file = saved(two_products(), tmp_path / "graph.onnx")
    first = collect_histograms(file, TENSORS, feeds, state=tmp_path / "state")
    feeds.asked.clear()
    assert collect_histograms(file, TENSORS, feeds, state=tmp_path / "state") == first
    assert feeds.asked == []


def test_counts_of_other_data_or_graphs_are_not_taken(feeds: ArrayFeeds, tmp_path: Path) -> None:
    state = tmp_path / "state"
    file = saved(two_products(), tmp_path / "graph.onnx", external=True)
    collect_histograms(file, TENSORS, feeds, state=state)
    other = ArrayFeeds([array + 1 for array in feeds.arrays])
    assert collect_histograms(file, TENSORS, other, state=state) == collect_histograms(file, TENSORS, other)
    saved(two_products(seed=1), file, external=True)  # the .onnx file stays as it is, its weights change
    assert collect_histograms(file, TENSORS, feeds, state=state) == collect_histograms(file, TENSORS, feeds)
    assert len(list(state.iterdir())) == 3


def test_counts_serve_whoever_asks_for_some_of_their_tensors(feeds: ArrayFeeds, tmp_path: Path) -> None:
    file = saved(two_products(), tmp_path / "graph.onnx")
    state = tmp_path / "state"
    some, rest = TENSORS[:2], TENSORS[2:]
    whole = collect_histograms(file, TENSORS, feeds)
    said: list[str] = []
    assert collect_histograms(file, some, feeds, state=state) == {name: whole[name] for name in some}
    feeds.asked.clear()
    assert collect_histograms(file, TENSORS, feeds, state=state, notice=said.append) == whole
    assert len(feeds.asked) == len(feeds), "one pass for what was not counted yet"
    assert said == ["graph graph: 5 of 5 runs were counted before for 2 of 4 tensors"]
    feeds.asked.clear()
    assert collect_histograms(file, rest, feeds, state=state) == {name: whole[name] for name in rest}
    assert collect_histograms(file, TENSORS, feeds, state=state) == whole, "nothing was forgotten"
    assert feeds.asked == []
    assert len(list(state.iterdir())) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: b"",
        lambda kept: b"PK\x03\x04 no zip",
        lambda kept: kept[:-100],
        lambda kept: kept[: len(kept) // 2] + bytes(64) + kept[len(kept) // 2 + 64 :],
    ],
    ids=["empty", "no-zip", "cut", "middle-overwritten"],
)
def test_damaged_counts_are_counted_again(feeds: ArrayFeeds, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = saved(two_products(), tmp_path / "graph.onnx")
    whole = collect_histograms(file, TENSORS, feeds, state=tmp_path / "state")
    (kept,) = (tmp_path / "state").iterdir()
    kept.write_bytes(damage(kept.read_bytes()))
    assert collect_histograms(file, TENSORS, feeds, state=tmp_path / "state") == whole


def test_counts_hold_no_pickle(feeds: ArrayFeeds, tmp_path: Path) -> None:
    file = saved(two_products(), tmp_path / "graph.onnx")
    collect_histograms(file, TENSORS, feeds, state=tmp_path / "state")
    (kept,) = (tmp_path / "state").iterdir()
    with np.load(kept, allow_pickle=False) as held:
        assert {name: held[name].dtype.kind for name in held.files} == {
            "key": "U", "names": "U", "done": "i", "counts": "i", "exponents": "i", "extents": "f"
        }  # fmt: skip


@pytest.mark.parametrize("said", ["NaN", "infinite"])
@pytest.mark.parametrize("budget", [1 << 30, 1])
def test_nan_and_infinity_name_node_tensor_and_picture(feeds: ArrayFeeds, said: str, budget: int) -> None:
    model = two_products()
    if said == "infinite":
        feeds.arrays[3][2, :] = 3e38  # finite, and too large for a sum of products
    else:  # 0 times infinity, in that picture alone
        feeds.arrays = [np.abs(array) + 1 for array in feeds.arrays]
        feeds.arrays[3][2, :] = 0
        weight = np.full((6, 6), -np.inf, np.float32)
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w1"))
    tensors = ["hidden", "active", "y"] if said == "infinite" else ["active", "y"]
    with pytest.raises(CalibrationError) as caught:
        collect_histograms(model, tensors, feeds, name="toy", budget_bytes=budget)
    text = str(caught.value)
    assert text.startswith("graph toy: node 'linear/MatMul' gives")  # the first node, not those behind it
    for needle in (said, "of 24 values", "'hidden'", "array 3", "; "):
        assert needle in text


def test_the_node_where_it_begins_is_named_though_none_observes_it(feeds: ArrayFeeds) -> None:
    feeds.arrays[1][2, :] = 3e38  # hidden overflows; only what is made of it is observed
    with pytest.raises(CalibrationError, match="node 'linear/MatMul' gives"):
        collect_histograms(two_products(), ["y"], feeds)


def test_nan_in_an_input_names_the_input(feeds: ArrayFeeds) -> None:
    feeds.arrays[0][0, 0] = np.nan
    with pytest.raises(CalibrationError, match="the graph's input gives 1 NaN of 24 values"):
        collect_histograms(two_products(), ["x"], feeds)


@pytest.mark.parametrize(
    ("tensor", "said"), [("nothing", "no tensor 'nothing'"), ("w1", "is a weight"), ("length", "is INT64")]
)
def test_tensors_that_are_no_activations_are_refused(feeds: ArrayFeeds, tensor: str, said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        collect_histograms(two_products(), ["hidden", tensor], feeds)
    assert feeds.asked == []


def test_graphs_that_cannot_be_read_or_run_are_refused(feeds: ArrayFeeds, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read"):
        collect_histograms(tmp_path / "none.onnx", ["hidden"], feeds)
    (tmp_path / "bad.onnx").write_bytes(b"no graph at all")
    with pytest.raises(CalibrationError, match="cannot read"):
        collect_histograms(tmp_path / "bad.onnx", ["hidden"], feeds)
    unknown = two_products()
    unknown.graph.node[1].op_type = "Rectify"
    with pytest.raises(CalibrationError, match="refused"):
        collect_histograms(unknown, ["hidden", "active"], feeds)
    with pytest.raises(CalibrationError, match="nothing to run"):
        collect_histograms(two_products(), ["hidden"], ArrayFeeds([]))
    with pytest.raises(CalibrationError, match="failed"):
        collect_histograms(two_products(), ["hidden"], ArrayFeeds([np.zeros((3, 5), np.float32)]))


def test_an_onnxruntime_that_is_too_old_is_named(feeds: ArrayFeeds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.19.2")
    with pytest.raises(CalibrationError, match=r"onnxruntime 1.19.2: calibration needs 1.21; pip install"):
        collect_histograms(two_products(), ["hidden"], feeds)


def test_no_activation_outlives_its_run(feeds: ArrayFeeds, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    arrays: list[weakref.ref[np.ndarray]] = []
    read = OpenTap.read

    def watched(self: OpenTap, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        alive.append(sum(each() is not None for each in arrays))
        tensors = read(self, feed)
        arrays.extend(weakref.ref(tensors[name]) for name in ("hidden", "y"))
        return tensors

    monkeypatch.setattr(OpenTap, "read", watched)
    collect_histograms(two_products(), TENSORS, feeds)
    assert alive == [0] * 5
    assert len(arrays) == 10


def test_nodes_that_no_tensor_needs_are_not_run(feeds: ArrayFeeds) -> None:
    model = two_products()
    model.graph.node[2].op_type = "MatMul"
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.full((6, 6), np.nan, np.float32), "w2"))
    found = collect_histograms(model, ["hidden"], feeds)
    assert found["hidden"].values == 5 * 24
