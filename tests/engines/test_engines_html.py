"""The HTML page about engines: whole, readable by a parser, self-contained, and right."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from ebseg_deploy.cli import ebseg
from ebseg_deploy.contract import EngineSidecar, LayerRecord
from ebseg_deploy.export.engines.html_report import COLOURS, WIDTH, html_report
from rtx import needs_rtx
from sidecars import make_layer, make_sidecar

ALONE = {"meta", "br"}


class Reader(HTMLParser):
    """Checks nesting; keeps rectangles, what they say, and what is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rectangles: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ALONE:
            self.open.append(tag)
        if tag == "rect":
            self.rectangles.append(dict(attrs))
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        assert tag not in ("script", "link", "iframe", "img")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.links == []
    assert "http" not in page
    assert "url(" not in page
    return reader


LAYERS = [
    make_layer("Half", "gemm", 30_000_000, "layers.0.mlp.c_fc/MatMul"),
    make_layer("Int8", "gemm", 60_000_000, "layers.1.attn.qkv/MatMul"),
    make_layer("Half", "attention", None, "layers.1.attn/MatMul"),
    make_layer("Half", "cast", None, "layers.1/Cast<3>"),
    make_layer(None, "other", None),
    make_layer("Half", "gemm", 10_000_000, "layers.1.mlp.c_fc/MatMul"),
]


def sidecar(layers: list[LayerRecord], precision: str = "int8") -> EngineSidecar:
    return make_sidecar(layers, precision=precision)


def test_shares_parts_and_verdict() -> None:
    reader = read(html_report(sidecar(LAYERS)))
    for said in (
        "sam_image_encoder 64x64 int8",
        "60.0%of the work in Int8",
        "1fused attentions",
        "1casts",
        "Every product computes in a type that int8 promises.",
        "layers.1.attn.qkv/MatMul",
        "layers.1/Cast<3>",
        "t&1",
    ):
        assert said in reader.text, said
    # Parts of the model: two blocks, the heavier one first.
    assert re.search(r"layers\.1.*70\.0 M.*70\.0%.*layers\.0.*30\.0 M.*30\.0%", reader.text, re.DOTALL)


def test_a_broken_promise_is_said() -> None:
    page = html_report(sidecar([*LAYERS, make_layer("Float", "gemm", 5, "layers.2/MatMul")]))
    assert "1 of 5 products are not: 1 Float, first layers.2/MatMul" in read(page).text
    assert 'class="broken"' in page


def test_the_timeline_is_as_wide_as_the_work() -> None:
    page = html_report(sidecar(LAYERS))
    timeline = page.split("Layers in their order")[1].split("</svg>")[0]
    rectangles = read(f"<svg>{timeline[timeline.index('<rect') :]}</svg>").rectangles
    widths = [float(each["width"] or 0) for each in rectangles]
    colours = [each["fill"] for each in rectangles]
    assert colours[:3] == [COLOURS["Half"], COLOURS["Int8"], COLOURS["Half"]]
    assert widths[1] / widths[0] == pytest.approx(2, rel=0.02)
    assert len(rectangles) == len(LAYERS) + 1  # the cast has a mark of its own
    last = rectangles[-1]
    assert float(last["x"] or 0) + float(last["width"] or 0) == pytest.approx(WIDTH, abs=0.1)


def test_two_engines_are_held_against_each_other() -> None:
    other = sidecar([make_layer("Half", "gemm", 30_000_000, "layers.1.attn.qkv/MatMul")], precision="fp16")
    text = read(html_report(sidecar(LAYERS), other)).text
    assert "sam_image_encoder 64x64 int8 against sam_image_encoder 64x64 fp16" in text
    assert re.search(r"node layers\.1\.attn\.qkv/MatMul\s*Int8\s*Half", text)
    assert "The two are made alike." in read(html_report(other, other)).text


def test_engines_without_a_report_or_without_work() -> None:
    assert "The builder gave no layer report." in read(html_report(sidecar([]))).text
    read(html_report(sidecar([make_layer("Half", "other", None)])))
    many = [make_layer("Half", "gemm", 1 + i, f"layers.{i}/MatMul") for i in range(3000)]
    reader = read(html_report(sidecar(many)))
    assert "2960 lighter parts are not listed." in reader.text
    assert "2600 lighter ones are not listed." in reader.text


@needs_rtx
def test_the_command(bundle: Path, tmp_path: Path) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        outcome = CliRunner().invoke(ebseg, [str(word) for word in words])
        return outcome.exit_code, outcome.stdout, outcome.stderr

    for precision in ("fp16", "fp32"):
        words = ("build", bundle, "--target", "tensorrt-rtx", "--graph", "adab_decoder", "--precision", precision)
        assert run(*words)[0] == 0
    plans = [bundle / f"engines/tensorrt-rtx/{each}/adab_decoder.64x64.plan" for each in ("fp16", "fp32")]
    page = tmp_path / "page.html"
    code, out, _ = run("inspect", plans[0], "--against", plans[1], "--html", page)
    assert (code, out) == (0, f"{page}: open it in a browser\n")
    assert "adab_decoder 64x64 fp16 against adab_decoder 64x64 fp32" in read(page.read_text(encoding="utf-8")).text
    code, _, err = run("inspect", plans[0], "--html", tmp_path / "nowhere" / "page.html")
    assert code == 1
    assert "nowhere/page.html: No such file or directory; give a file" in err
    code, _, err = run("inspect", bundle, "--html", page)
    assert code == 1
    assert "is no engine; give a .plan file" in err
