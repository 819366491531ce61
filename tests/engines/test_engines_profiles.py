"""Ranges of dynamic dimensions, and how far a builder says it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from ebseg_deploy.contract import DimensionRange, graph_spec
from ebseg_deploy.errors import InputError
from ebseg_deploy.export.engines.profiles import DEFAULTS, batch_range, parse_range, profile_for
from ebseg_deploy.export.engines.progress import PhaseTree
from ebseg_deploy.export.engines.standalone import profile_shapes
from ebseg_deploy.runtime.bundle import Bundle
from ebseg_deploy.runtime.vocabulary_build import PROMPTS_PER_RUN
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundles import TINY_MODEL, TINY_SIZES, write_tiny_bundle


def test_three_numbers_or_one() -> None:
    assert parse_range("classes", "1:150:1024") == DimensionRange(min=1, opt=150, max=1024)
    assert parse_range("classes", "20") == DimensionRange(min=20, opt=20, max=20)


@pytest.mark.parametrize(
    "text",
    ["", "1:2", "1:2:3:4", "a:b:c", "-1:2:3", "3:2:5", "1:9:5", "0:1:2", "1:2:70000", "1.5", "²", "99999999999999"],
)
def test_ranges_that_cannot_be(text: str) -> None:
    with pytest.raises(InputError, match=r"--classes.*; give MIN:OPT:MAX, for example 1:150:1024"):
        parse_range("classes", text)


def test_tokens_end_where_clip_ends() -> None:
    assert parse_range("tokens", "2:16:77").max == 77
    for text in ("1:16:77", "2:16:78"):
        with pytest.raises(InputError, match="2 to 77"):
            parse_range("tokens", text)


def test_the_background_is_one_more_class() -> None:
    spec = graph_spec("open_vocab_head", TINY_MODEL)
    profile = profile_for(spec, {**DEFAULTS, "classes": DimensionRange(min=2, opt=5, max=9)})
    assert profile == {
        "classes_and_background": DimensionRange(min=3, opt=6, max=10),
        "classes": DimensionRange(min=2, opt=5, max=9),
    }
    plain = {name: {"min": each.min, "opt": each.opt, "max": each.max} for name, each in profile.items()}
    assert profile_shapes(["classes_and_background", 16], plain) == [(3, 16), (6, 16), (10, 16)]
    assert profile_for(graph_spec("sam_image_encoder", TINY_MODEL, TINY_SIZES[0]), DEFAULTS) == {}


def test_a_dimension_nobody_knows() -> None:
    with pytest.raises(InputError, match="dimension classes"):
        profile_for(graph_spec("open_vocab_head", TINY_MODEL), {"prompts": DEFAULTS["prompts"]})


def test_the_text_encoder_takes_what_the_runtime_gives() -> None:
    assert DEFAULTS["prompts"].max == PROMPTS_PER_RUN
    assert DEFAULTS["tokens"].max == TINY_MODEL.context_length


def test_phases_nest() -> None:
    tree = PhaseTree()
    tree.start("engine", None, 2)
    tree.step("engine", 0)
    assert tree.fraction == pytest.approx(0.5)
    tree.start("graph", "engine", 10)
    tree.step("graph", 4)
    assert tree.fraction == pytest.approx(0.75)
    tree.finish("graph")
    tree.start("graph", "engine", 10)  # again, from its beginning: the figure stays
    assert tree.fraction == pytest.approx(0.75)
    tree.finish("engine")
    assert tree.fraction == 1.0


_NAMES = st.sampled_from(["a", "b", "c", "d"])
_EVENTS = st.one_of(
    st.tuples(st.just("start"), _NAMES, st.none() | _NAMES, st.integers(0, 5)),
    st.tuples(st.just("step"), _NAMES, st.integers(0, 9)),
    st.tuples(st.just("finish"), _NAMES),
)


@given(st.lists(_EVENTS, max_size=40))
def test_the_fraction_never_falls_nor_leaves_its_range(events: list[tuple[object, ...]]) -> None:
    tree, before = PhaseTree(), 0.0
    for verb, *arguments in events:
        getattr(tree, str(verb))(*arguments)
        assert before <= tree.fraction <= 1
        before = tree.fraction


def test_a_fixed_batch_is_the_bundles(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    one = DimensionRange(min=1, opt=1, max=1)
    assert batch_range(bundle, None) == batch_range(bundle, one) == one
    with pytest.raises(
        InputError, match=r"--batch 1:1:8: the graphs of .* run 1 at a time.*export --batch 8 --dynamic-batch"
    ):
        batch_range(bundle, parse_range("batch", "1:1:8"))


def test_a_dynamic_batch_ends_where_the_bundle_was_exported_to(tmp_path: Path) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "b.ebseg", batch=4, dynamic_batch=True, sizes=TINY_SIZES[:1]))
    assert batch_range(bundle, None) == DimensionRange(min=1, opt=1, max=4)
    assert batch_range(bundle, parse_range("batch", "2:2:3")).max == 3
    with pytest.raises(InputError, match=r"--batch 1:1:8: .* was exported for 1 to 4 pictures; .*--batch 8"):
        batch_range(bundle, parse_range("batch", "1:1:8"))
    record = bundle.graph("adab_decoder", TINY_SIZES[0])
    assert profile_for(record.spec, {"batch": DimensionRange(min=1, opt=2, max=4)}) == {
        "batch": DimensionRange(min=1, opt=2, max=4)
    }
