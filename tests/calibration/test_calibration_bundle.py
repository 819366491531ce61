"""From a bundle and pictures to ranges: every graph, the cache, and a decoder behind other encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from ebseg_deploy.calibration.calibrate import CalibrationConfig, calibrate, product_inputs
from ebseg_deploy.calibration.feeds import DecoderFeeds, PictureFeeds, graph_hash
from ebseg_deploy.calibration.observed_tensors import tensors_for_any_recipe
from ebseg_deploy.calibration.observers import MseObserver
from ebseg_deploy.calibration.pictures import CalibrationPicture
from ebseg_deploy.calibration.quantize_bundle import tensors_to_observe
from ebseg_deploy.calibration.ranges import GraphRanges, Range, Ranges, read_ranges, write_ranges
from ebseg_deploy.calibration.survey import SurveyedPictures, survey
from ebseg_deploy.contract import (
    ADAB_DECODER,
    CLIP_IMAGE_ENCODER,
    SAM_IMAGE_ENCODER,
    SIZED_GRAPHS,
    ComputeRecord,
    GraphName,
    Size,
)
from ebseg_deploy.errors import CalibrationError
from ebseg_deploy.export.precision.recipes import RECIPES
from ebseg_deploy.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from ebseg_deploy.runtime.bundle import Bundle, read_manifest
from ebseg_deploy.runtime.canvas import choose_canvas, place_picture
from tiny_bundles import seal

SQUARE = Size(height=64, width=64)


class Pictures:
    """Pictures of coloured blocks."""

    name = "blocks"
    classes = ()

    def __init__(self, count: int = 5) -> None:
        self.pixels = np.random.default_rng(9).integers(0, 256, (count, 5, 7, 3), np.uint8).repeat(9, 1).repeat(9, 2)

    def __len__(self) -> int:
        return len(self.pixels)

    def title(self, index: int) -> str:
        return f"blocks {index}"

    def picture(self, index: int) -> CalibrationPicture:
        return CalibrationPicture(name=self.title(index), pixels=self.pixels[index])


@pytest.fixture(scope="module")
def pictures() -> SurveyedPictures:
    return survey(Pictures())


@pytest.fixture
def bundle(make_tiny_bundle: Callable[..., Path]) -> Bundle:
    return Bundle.open(make_tiny_bundle(sizes=(SQUARE,)))


def test_border_tensors_have_the_ranges_the_backend_gives(bundle: Bundle, pictures: SurveyedPictures) -> None:
    """Inputs and outputs of graphs as tensors to observe: what the runtime itself hands from graph to graph."""
    border = {
        CLIP_IMAGE_ENCODER: ["clip_cls", "clip_dense"],
        SAM_IMAGE_ENCODER: ["sam_feature_0", "sam_feature_3"],
        ADAB_DECODER: ["sam_feature_3", "clip_cls", "mask_logits", "embeddings_a"],
    }
    config = CalibrationConfig(tensors=lambda bundle, record: border[record.name])
    ranges = calibrate(bundle, pictures, config)
    seen: dict[str, list[np.ndarray]] = {}
    with OnnxRuntimeBackend() as backend:
        graphs = {name: backend.open(bundle.file(bundle.graph(name, SQUARE).file)) for name in SIZED_GRAPHS}
        for pixels in Pictures().pixels:
            placement = choose_canvas(*pixels.shape[:2], [SQUARE])
            given = {
                "image": place_picture(pixels, placement)[None],
                "valid_size": np.array([placement.valid_size], np.int32),
            }
            encoded = {
                **backend.run(graphs[CLIP_IMAGE_ENCODER], given),
                **backend.run(graphs[SAM_IMAGE_ENCODER], given),
            }
            for name, values in {**encoded, **backend.run(graphs[ADAB_DECODER], encoded)}.items():
                seen.setdefault(name, []).append(values)
    for graph in SIZED_GRAPHS:
        found = ranges.of(graph, SQUARE)
        assert list(found) == border[graph]
        for tensor, each in found.items():
            values = np.stack(seen[tensor])
            assert (each.low, each.high) == pytest.approx((values.min(), values.max()), rel=1e-5)


def test_factors_of_products_are_observed_by_default(bundle: Bundle, pictures: SurveyedPictures) -> None:
    ranges = calibrate(bundle, pictures, CalibrationConfig())
    assert [each.graph for each in ranges.graphs] == list(SIZED_GRAPHS)
    for each in ranges.graphs:
        record = bundle.graph(each.graph, SQUARE)
        file = bundle.file(record.file)
        model = onnx.load(file)
        weights = {weight.name for weight in model.graph.initializer}
        convolutions = {node.input[0] for node in model.graph.node if node.op_type == "Conv"}
        assert set(each.ranges) == convolutions
        producers = {output: node.op_type for node in model.graph.node for output in node.output}  # nodes have no names
        assert {tensor: found.node for tensor, found in each.ranges.items()} == {
            tensor: producers.get(tensor, "") for tensor in convolutions
        }
        assert not weights & set(each.ranges)
        assert each.sha256 == graph_hash(file)
        assert product_inputs(bundle, record) == list(each.ranges)
    assert ranges.pictures == pictures.records
    assert (ranges.model, ranges.precision, ranges.observer) == ("ebseg-tiny", "fp32", "max")


@pytest.mark.parametrize("graph", SIZED_GRAPHS)
def test_ranges_for_any_recipe_are_ranges_for_each(bundle: Bundle, graph: GraphName) -> None:
    record = bundle.graph(graph, SQUARE)
    found = tensors_for_any_recipe(bundle, record)
    assert len(set(found)) == len(found)
    assert set(product_inputs(bundle, record)) <= set(found)
    quantising = [recipe for recipe in RECIPES.values() if recipe.graphs[graph].quantised]
    assert quantising
    for recipe in quantising:
        assert set(tensors_to_observe(recipe)(bundle, record)) <= set(found), recipe.name


def test_every_canvas_has_its_own_ranges(tiny_bundle: Path, pictures: SurveyedPictures) -> None:
    ranges = calibrate(Bundle.open(tiny_bundle), pictures, CalibrationConfig(graphs=(SAM_IMAGE_ENCODER,)))
    assert [str(each.size) for each in ranges.graphs] == ["64x64", "64x96"]
    with pytest.raises(CalibrationError, match="none of graph adab_decoder for canvas 64x64"):
        ranges.of(ADAB_DECODER, SQUARE)
    one = CalibrationConfig(graphs=(SAM_IMAGE_ENCODER,), sizes=(Size(height=64, width=96),))
    assert calibrate(Bundle.open(tiny_bundle), pictures, one).graphs == ranges.graphs[1:]


def test_a_batch_is_filled_up_with_the_first_pictures(pictures: SurveyedPictures) -> None:
    feeds = PictureFeeds(pictures, SQUARE, batch=2)
    assert len(feeds) == 3
    last = feeds.feed(2)
    assert last["image"].shape == (2, 3, 64, 64)
    assert last["image"][1].tolist() == feeds.feed(0)["image"][0].tolist()
    assert feeds.label(2) == "blocks 4, blocks 0"


def test_a_bundle_of_batch_two_is_calibrated(
    make_tiny_bundle: Callable[..., Path], bundle: Bundle, pictures: SurveyedPictures
) -> None:
    pairs = Bundle.open(make_tiny_bundle("pairs.ebseg", sizes=(SQUARE,), batch=2))
    config = CalibrationConfig(graphs=(SAM_IMAGE_ENCODER,))
    found = calibrate(pairs, pictures, config).of(SAM_IMAGE_ENCODER, SQUARE)
    single = calibrate(bundle, pictures, config).of(SAM_IMAGE_ENCODER, SQUARE)
    for tensor, each in single.items():
        assert (found[tensor].low, found[tensor].high) == pytest.approx((each.low, each.high), rel=1e-5)


def test_the_decoder_stands_behind_the_encoders_it_is_given(
    make_tiny_bundle: Callable[..., Path], bundle: Bundle, pictures: SurveyedPictures
) -> None:
    other = Bundle.open(make_tiny_bundle("other.ebseg2", sizes=(SQUARE,), seed=11))
    encoders = {
        (name, SQUARE): other.file(other.graph(name, SQUARE).file) for name in (CLIP_IMAGE_ENCODER, SAM_IMAGE_ENCODER)
    }
    config = CalibrationConfig(graphs=(ADAB_DECODER,), tensors=lambda bundle, record: ["sam_feature_0", "mask_logits"])
    own = calibrate(bundle, pictures, config)
    behind = calibrate(bundle, pictures, CalibrationConfig(**{**vars(config), "encoders": encoders}))
    theirs = calibrate(
        other,
        pictures,
        CalibrationConfig(graphs=(SAM_IMAGE_ENCODER,), tensors=lambda bundle, record: ["sam_feature_0"]),
    )
    fed = behind.of(ADAB_DECODER, SQUARE)["sam_feature_0"]
    given = theirs.of(SAM_IMAGE_ENCODER, SQUARE)["sam_feature_0"]
    assert (fed.low, fed.high) == (given.low, given.high)
    assert fed != own.of(ADAB_DECODER, SQUARE)["sam_feature_0"]
    assert (fed.node, given.node) == ("", "Conv")
    assert behind.of(ADAB_DECODER, SQUARE)["mask_logits"] != own.of(ADAB_DECODER, SQUARE)["mask_logits"]
    assert behind.graphs[0].fed_by == {name: graph_hash(file) for (name, _), file in encoders.items()}
    assert behind.graphs[0].sha256 == own.graphs[0].sha256


def test_a_decoder_without_both_encoders_is_refused(bundle: Bundle, pictures: SurveyedPictures) -> None:
    file = bundle.file(bundle.graph(SAM_IMAGE_ENCODER, SQUARE).file)
    with pytest.raises(CalibrationError, match="no clip_image_encoder to feed it"):
        DecoderFeeds(PictureFeeds(pictures, SQUARE), {SAM_IMAGE_ENCODER: file})


def test_graphs_that_see_no_picture_are_refused(bundle: Bundle, pictures: SurveyedPictures) -> None:
    with pytest.raises(CalibrationError, match="text_encoder: is not calibrated"):
        calibrate(bundle, pictures, CalibrationConfig(graphs=("text_encoder",)))


def test_a_quantised_bundle_is_refused(tiny_bundle_copy: Path, pictures: SurveyedPictures) -> None:
    manifest = read_manifest(tiny_bundle_copy)
    graphs = tuple(
        msgspec.structs.replace(record, precision="int8", compute=ComputeRecord(base="fp16", quantised="int8"))
        for record in manifest.graphs
    )
    seal(tiny_bundle_copy, msgspec.structs.replace(manifest, graphs=graphs))
    with pytest.raises(CalibrationError, match="is int8 already; give the FP32 bundle"):
        calibrate(Bundle.open(tiny_bundle_copy), pictures, CalibrationConfig())


class Counting(Pictures):
    """Counts how often a picture is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def picture(self, index: int) -> CalibrationPicture:
        self.asked += 1
        return super().picture(index)


def test_the_cache_skips_the_work_and_says_so(bundle: Bundle, tmp_path: Path) -> None:
    source = Counting()
    pictures = survey(source)
    config = CalibrationConfig(cache=tmp_path / "cache")
    first = calibrate(bundle, pictures, config)
    source.asked = 0
    said: list[str] = []
    assert calibrate(bundle, pictures, config, notice=said.append) == first
    assert source.asked == 0
    assert [line.partition(":")[0] for line in said] == [f"graph {name}" for name in SIZED_GRAPHS]
    assert all("were found before" in line for line in said)

    other = CalibrationConfig(cache=tmp_path / "cache", observer=MseObserver())
    found = calibrate(bundle, pictures, other)
    assert source.asked == 0, "another observer needs no further run"
    assert found == calibrate(bundle, pictures, CalibrationConfig(observer=MseObserver()))


def test_the_cache_is_readable_json(bundle: Bundle, pictures: SurveyedPictures, tmp_path: Path) -> None:
    ranges = calibrate(bundle, pictures, CalibrationConfig(cache=tmp_path, graphs=(SAM_IMAGE_ENCODER,)))
    (file,) = tmp_path.glob("*.json")
    content = json.loads(file.read_text())
    assert content["graph"] == "sam_image_encoder_64x64"
    assert content["pictures"] == [f"blocks {index}" for index in range(5)]
    assert content["observer"] == "max"
    assert content["graph_sha256"] == ranges.graphs[0].sha256
    assert {name: each["high"] for name, each in content["ranges"].items()} == {
        name: each.high for name, each in ranges.graphs[0].ranges.items()
    }


@pytest.mark.parametrize("damage", ["cut", "other key", "not JSON"])
def test_a_damaged_cache_is_written_anew(
    bundle: Bundle, pictures: SurveyedPictures, tmp_path: Path, damage: str
) -> None:
    config = CalibrationConfig(cache=tmp_path, graphs=(SAM_IMAGE_ENCODER,))
    first = calibrate(bundle, pictures, config)
    (file,) = tmp_path.glob("*.json")
    whole = file.read_bytes()
    broken = {"cut": whole[:200], "other key": whole.replace(b'"key": "', b'"key": "0'), "not JSON": b"\xff\xfe"}
    file.write_bytes(broken[damage])
    said: list[str] = []
    assert calibrate(bundle, pictures, config, notice=said.append) == first
    assert not any("ranges were found before" in line for line in said)
    assert file.read_bytes() == whole


def test_the_cache_knows_other_pictures_graphs_and_tensors(
    make_tiny_bundle: Callable[..., Path], bundle: Bundle, pictures: SurveyedPictures, tmp_path: Path
) -> None:
    def notices(used: Bundle, on: SurveyedPictures, **changes: object) -> list[str]:
        said: list[str] = []
        config = CalibrationConfig(**{"cache": tmp_path, "graphs": (SAM_IMAGE_ENCODER,), **changes})
        calibrate(used, on, config, notice=said.append)
        return said

    assert notices(bundle, pictures) == []
    assert notices(bundle, pictures) != []
    assert notices(bundle, survey(Pictures(), limit=4)) == []
    assert notices(Bundle.open(make_tiny_bundle("seed.ebseg", sizes=(SQUARE,), seed=5)), pictures) == []
    assert notices(bundle, pictures, tensors=lambda bundle, record: ["sam_feature_1"]) == []


def test_ranges_files_come_back_as_they_were(tmp_path: Path) -> None:
    ranges = Ranges(
        model="ebseg-tiny",
        precision="fp32",
        observer="mse",
        pictures_from="photos",
        pictures=(),
        graphs=(
            GraphRanges(
                graph=SAM_IMAGE_ENCODER, size=SQUARE, sha256="ab", ranges={"x": Range(low=-1.5, high=2, clipped=1e-4)}
            ),
        ),
    )
    write_ranges(tmp_path / "r.json", ranges)
    assert read_ranges(tmp_path / "r.json") == ranges
    assert ranges.of(SAM_IMAGE_ENCODER, SQUARE)["x"].amax == 2
    assert Range(low=-3, high=2).amax == 3

    text = (tmp_path / "r.json").read_text()
    for broken, said in (
        (text[:40], "r.json"),
        (text.replace('"schema_version": 1', '"schema_version": 7'), "schema version 7"),
        (text.replace("-1.5", "5"), "5.0 to 2.0"),
        (text.replace('"low"', '"lowest"'), "lowest"),
    ):
        (tmp_path / "r.json").write_text(broken)
        with pytest.raises(CalibrationError, match=said):
            read_ranges(tmp_path / "r.json")
    with pytest.raises(CalibrationError, match="No such file"):
        read_ranges(tmp_path / "none.json")
