"""The model's own graphs, lowered: formulas that keep-lists name, attention that engines fuse, and the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from ebseg_deploy.contract import GRAPH_NAMES
from ebseg_deploy.export.precision.emulate import emulate
from ebseg_deploy.export.precision.formulas import name_formulas
from ebseg_deploy.export.precision.lower import lower
from ebseg_deploy.export.precision.operators import computes
from ebseg_deploy.export.precision.positions import add_positions
from ebseg_deploy.export.precision.recipes import BF16, FP16, Recipe
from ebseg_deploy.runtime.parity import CHAIN_TOLERANCES, TOLERANCES, deviation
from precision_models import casts_in_a_row, run, type_of

Traced = Callable[..., ir.Model]


def names(model: ir.Model) -> list[str]:
    return [node.name or "" for node in model.graph]


def random_inputs(model: ir.Model) -> dict[str, np.ndarray]:
    """A picture of blocks for an encoder; features of unit size for the decoder."""
    random = np.random.default_rng(5)
    inputs = {}
    for value in model.graph.inputs:
        shape = tuple(int(length) for length in value.shape)  # type: ignore[union-attr, arg-type]
        if value.name == "image":
            small = random.integers(0, 256, (*shape[:2], shape[2] // 16, shape[3] // 16), dtype=np.uint8)
            inputs[value.name] = small.repeat(16, axis=2).repeat(16, axis=3)
        elif value.name == "valid_size":
            inputs[value.name] = np.array([[56, 80]], np.int32)
        else:
            assert value.name is not None
            inputs[value.name] = random.normal(size=shape).astype(np.float32)
    return inputs


@pytest.mark.slow
def test_formulas_get_scopes_of_their_own(traced: Traced) -> None:
    model = traced("tiny-nano", "adab_decoder")
    samples = sum(node.op_type == "GridSample" for node in model.graph)
    before = len(set(names(model)))
    renamed = name_formulas(model)
    scopes = Counter(name.rpartition("/")[0].split(".")[-1] for name in names(model))
    # A and B are normalised; A and D are means in masks; a grid is a product, a sum, a transposition and a reshape.
    assert (scopes["unit_length"], scopes["mean_in_mask"], scopes["sampling_places"]) == (8, 12, 4 * samples)
    assert renamed == 8 + 12 + 4 * samples
    assert len(set(names(model))) == before
    assert name_formulas(model) == 0


@pytest.mark.parametrize("name", ["sam_image_encoder", pytest.param("adab_decoder", marks=pytest.mark.slow)])
@pytest.mark.parametrize("recipe", [FP16, BF16], ids=["fp16", "bf16"])
def test_numbers_stay_close(name: str, recipe: Recipe, traced: Traced, tmp_path: Path) -> None:
    expected_from = traced("tiny-nano", name)
    inputs = random_inputs(expected_from)
    expected = run(expected_from, inputs, tmp_path)
    model = traced("tiny-nano", name)
    name_formulas(model)
    add_positions(model)
    graph = recipe.graphs[name]  # type: ignore[index]
    done = lower(model, graph.base, graph.keep)
    assert casts_in_a_row(model) == []
    assert done.nodes[recipe.name] > 5 * done.nodes["fp32"]  # type: ignore[index]
    products = [node for node in model.graph if node.op_type in ("MatMul", "Conv")]
    full = {node.name for node in products if node.outputs[0].dtype == ir.DataType.FLOAT}
    assert all("mean_in_mask" in (each or "") for each in full)
    if recipe is FP16:
        ir.save(model, tmp_path / "native.onnx")
        run(model, inputs, tmp_path)  # checked by onnx, taken by ONNX Runtime
    emulate(model)
    got = run(model, inputs, tmp_path)
    tolerances = CHAIN_TOLERANCES if name == "adab_decoder" else TOLERANCES
    relative = {output: deviation(output, got[output], values).relative for output, values in expected.items()}
    assert 0 < max(relative.values()) <= tolerances[recipe.name], relative


@pytest.mark.parametrize(("variant", "blocks"), [("tiny-nano", 4), pytest.param("tiny-b", 6, marks=pytest.mark.slow)])
def test_positions_become_a_bias(variant: str, blocks: int, traced: Traced, tmp_path: Path) -> None:
    expected_from = traced(variant, "sam_image_encoder")
    inputs = random_inputs(expected_from)
    expected = run(expected_from, inputs, tmp_path)
    model = traced(variant, "sam_image_encoder")
    products = [name for name in names(model) if name.startswith("attentions.") and "/MatMul" in name]
    assert add_positions(model) == blocks
    # Keep-lists and ranges know the products of attention by their names.
    assert [name for name in names(model) if name.startswith("attentions.") and "/MatMul" in name] == products
    for node in model.graph:
        if node.op_type == "Softmax":
            added = node.inputs[0].producer()  # type: ignore[union-attr]
            assert added is not None
            assert added.op_type == "Add"
            assert added.inputs[0].producer().op_type == "MatMul"  # type: ignore[union-attr]
            assert node.outputs[0].shape is not None
            assert len(node.outputs[0].shape) == 4
            assert {use.node.op_type for use in node.outputs[0].uses()} == {"MatMul"}
    assert add_positions(model) == 0
    got = run(model, inputs, tmp_path)
    for output, values in expected.items():
        np.testing.assert_allclose(got[output], values, atol=2e-5)


@pytest.mark.slow
def test_positions_of_any_number_of_pictures(traced: Traced, tmp_path: Path) -> None:
    one = random_inputs(traced("tiny-nano", "sam_image_encoder"))
    inputs = {name: np.concatenate([values, values[..., ::-1]]) for name, values in one.items()}
    inputs["valid_size"] = np.array([[56, 80], [64, 96]], np.int32)
    expected = run(traced("tiny-nano", "sam_image_encoder", "batch"), inputs, tmp_path)
    model = traced("tiny-nano", "sam_image_encoder", "batch")
    assert add_positions(model) == 4
    lower(model, "fp16", FP16.graphs["sam_image_encoder"].keep)
    emulate(model)
    got = run(model, inputs, tmp_path)
    for output, values in expected.items():
        assert len(values) == 2
        assert deviation(output, got[output], values).relative <= TOLERANCES["fp16"]


@pytest.mark.slow
def test_graphs_without_positions_are_left_alone(traced: Traced) -> None:
    model = traced("tiny-nano", "adab_decoder")
    before = names(model)
    assert add_positions(model) == 0
    assert names(model) == before


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [FP16, BF16], ids=["fp16", "bf16"])
def test_every_pattern_of_a_recipe_keeps_something(recipe: Recipe, traced: Traced) -> None:
    for name in GRAPH_NAMES:
        model = traced("tiny-b", name)
        name_formulas(model)
        computing = [node.name or "" for node in model.graph if computes(node)]
        for keep in recipe.graphs[name].keep:
            assert any(keep.matches(each) for each in computing), f"{name}: {keep.pattern}"


@pytest.mark.slow
def test_the_end_of_a_text_is_found_in_fp32(traced: Traced) -> None:
    """Token 49,407 ends a text; in FP16 it is 49,408, as 49,406 is, which begins it."""
    model = traced("tiny-nano", "text_encoder")
    name_formulas(model)
    lower(model, "fp16", FP16.graphs["text_encoder"].keep)
    assert type_of(model, "Cast") == ir.DataType.FLOAT
    argmax = next(node for node in model.graph if node.op_type == "ArgMax")
    assert argmax.inputs[0] is not None
    assert argmax.inputs[0].dtype == ir.DataType.FLOAT
