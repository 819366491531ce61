"""Which tensors to observe when it is not known yet what the ranges are for."""

from __future__ import annotations

from ..contract import GraphRecord
from ..export.precision.recipes import RECIPES
from ..runtime.bundle import Bundle
from .calibrate import product_inputs
from .quantize_bundle import tensors_to_observe


def tensors_for_any_recipe(bundle: Bundle, record: GraphRecord) -> list[str]:
    """For CalibrationConfig.tensors: the factors of all products, and what else a recipe of RECIPES needs."""
    tensors = list(product_inputs(bundle, record))
    for recipe in RECIPES.values():
        graph = recipe.graphs[record.name]
        if graph.quantised is not None and not graph.dynamic:
            tensors += tensors_to_observe(recipe)(bundle, record)
    return list(dict.fromkeys(tensors))
