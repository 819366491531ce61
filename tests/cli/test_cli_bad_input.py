"""Bad input through the real command line: exit code 1, one line with a cure, nothing half-written."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from command_line import assert_refused, run
from ebseg_deploy.contract import MANIFEST_NAME
from PIL import Image


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grey_png(height: int, width: int, rows: bytes) -> bytes:
    """A PNG of one bit a pixel, whose header may promise more than `rows` hold."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


BAD_PICTURES: dict[str, Callable[[Path], bytes]] = {
    "truncated": lambda good: good.read_bytes()[:-60],
    "empty": lambda good: b"",
    "not-a-picture": lambda good: b"Dear diary,\n" * 50,
    "html": lambda good: b"<html>404</html>",
    "20000x20000": lambda good: grey_png(20000, 20000, bytes(2501) * 20000),
    "bomb": lambda good: grey_png(60000, 60000, bytes(100)),
    "header-without-pixels": lambda good: grey_png(300, 300, bytes(10)),
}


@pytest.mark.parametrize("kind", list(BAD_PICTURES))
def test_a_picture_that_cannot_be_used(tiny_bundle: Path, picture: Path, tmp_path: Path, kind: str) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(BAD_PICTURES[kind](picture))
    out = tmp_path / "out"
    assert_refused(run("segment", tiny_bundle, bad, "--classes", "cat, dog", "-o", out), f"picture {bad}: ")
    assert list(out.iterdir()) == []


def sixteen_bit(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 257)


def turned(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rot90(rgb, k=1).copy())


GOOD_PICTURES: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "rgba.png": lambda rgb: Image.fromarray(rgb).convert("RGBA"),
    "sixteen-bit.png": sixteen_bit,
    "cmyk.jpg": lambda rgb: Image.fromarray(rgb).convert("CMYK"),
    "palette.png": lambda rgb: Image.fromarray(rgb).quantize(16),
    "grey.png": lambda rgb: Image.fromarray(rgb).convert("L"),
    "grey-alpha.png": lambda rgb: Image.fromarray(rgb).convert("LA"),
    "one-bit.png": lambda rgb: Image.fromarray(rgb).convert("1"),
    "rotated.jpg": turned,
    "photo.webp": Image.fromarray,
    "one-pixel.png": lambda rgb: Image.fromarray(rgb[:1, :1]),
}


@pytest.mark.parametrize("name", list(GOOD_PICTURES))
def test_a_picture_of_an_unusual_kind_is_handled(
    tiny_bundle: Path, picture_pixels: np.ndarray, tmp_path: Path, name: str
) -> None:
    exif = Image.Exif()
    if name == "rotated.jpg":
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise, which undoes `turned`
    GOOD_PICTURES[name](picture_pixels).save(tmp_path / name, exif=exif)
    words = ("--classes", "cat, dog", "-o", tmp_path / "out", "--json")
    outcome = run("segment", tiny_bundle, tmp_path / name, *words)
    assert outcome.exit_code == 0, outcome.output
    entry = json.loads(outcome.stdout)["pictures"][0]
    assert entry["size"] == ([1, 1] if name == "one-pixel.png" else [60, 90])


BAD_WORDS = {
    "nothing": ("", "no class names"),
    "only-commas": (",,", "blank"),
    "white-space": ("cat,  ,dog", "blank"),
    "twice": ("cat, dog, Cat", "'cat'"),
    "spaces-apart": ("red fox, red  fox", "'red fox'"),
}


@pytest.mark.parametrize("kind", list(BAD_WORDS))
def test_names_that_are_no_vocabulary(tiny_bundle: Path, picture: Path, tmp_path: Path, kind: str) -> None:
    words, needle = BAD_WORDS[kind]
    out = tmp_path / "out"
    assert_refused(run("segment", tiny_bundle, picture, "--classes", words, "-o", out), needle)
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"\n  \n", b"[]", b"{", b'[{"nam": "cat"}]', b"cat\ncat\n", b"\xff\xfe\x00"])
def test_class_files_that_are_no_vocabulary(tiny_bundle: Path, picture: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / f"names.{'json' if content[:1] in (b'[', b'{') else 'txt'}"
    file.write_bytes(content)
    assert_refused(run("segment", tiny_bundle, picture, "-v", file, "-o", tmp_path / "out"), file)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x10" + bytes(7) + b"{" * 16])
def test_vocabulary_files_that_are_damaged(tiny_bundle: Path, picture: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "words.safetensors"
    file.write_bytes(content)
    assert_refused(run("segment", tiny_bundle, picture, "-v", file, "-o", tmp_path / "out"), f"vocabulary {file}")
    assert_refused(run("inspect", file), f"vocabulary {file}")


def test_a_vocabulary_that_is_not_there(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    assert_refused(run("segment", tiny_bundle, picture, "-v", tmp_path / "no.txt", "-o", tmp_path / "o"), "no.txt")
    assert_refused(run("segment", tiny_bundle, picture, "--dataset", "voc-21", "-o", tmp_path / "o"), "voc-20")


def test_a_vocabulary_of_another_text_encoder(
    tiny_bundle: Path, make_tiny_bundle: Callable[..., Path], picture: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words.safetensors"
    assert run("vocab", "build", tiny_bundle, "--classes", "cat, dog", "-o", words).exit_code == 0
    other = make_tiny_bundle(seed=1)
    out = tmp_path / "out"
    assert_refused(run("segment", other, picture, "-v", words, "-o", out), "text encoder", "vocab build")
    assert_refused(run("compare", tiny_bundle, other, picture, "-v", words), "text encoder")
    assert list(out.iterdir()) == []


def flip_a_byte(bundle: Path) -> str:
    graph = bundle / "graphs/fp32/adab_decoder_64x64.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    return "adab_decoder_64x64.onnx"


def lose_a_graph(bundle: Path) -> str:
    (bundle / "graphs/fp32/open_vocab_head.onnx").unlink()
    return "open_vocab_head.onnx"


def edit_manifest(bundle: Path, change: Callable[[dict], None]) -> None:
    path = bundle / MANIFEST_NAME
    manifest = msgspec.json.decode(path.read_bytes())
    change(manifest)
    path.write_bytes(msgspec.json.encode(manifest))


def leave_the_bundle(bundle: Path) -> str:
    outside = bundle.parent / "outside.onnx"
    shutil.copy(bundle / "graphs/fp32/open_vocab_head.onnx", outside)

    def change(manifest: dict) -> None:
        record = next(each for each in manifest["graphs"] if each["name"] == "open_vocab_head")
        manifest["files"]["../outside.onnx"] = manifest["files"].pop(record["file"])
        record["file"] = "../outside.onnx"

    edit_manifest(bundle, change)
    return "../outside.onnx"


def drop_a_record(bundle: Path) -> str:
    edit_manifest(bundle, lambda manifest: manifest["graphs"].pop(0))
    return "clip_image_encoder"


def come_from_the_future(bundle: Path) -> str:
    edit_manifest(bundle, lambda manifest: manifest.update(schema_version=99, news="all is different"))
    return "schema version 99"


def spoil_the_manifest(bundle: Path) -> str:
    (bundle / MANIFEST_NAME).write_text('{"schema_version": 1, ')
    return MANIFEST_NAME


def lose_the_manifest(bundle: Path) -> str:
    (bundle / MANIFEST_NAME).unlink()
    return MANIFEST_NAME


BREAKS = [
    flip_a_byte,
    lose_a_graph,
    leave_the_bundle,
    drop_a_record,
    come_from_the_future,
    spoil_the_manifest,
    lose_the_manifest,
]


@pytest.mark.parametrize("damage", BREAKS)
@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_a_damaged_bundle(
    tiny_bundle_copy: Path, picture: Path, tmp_path: Path, damage: Callable[[Path], str], zipped: bool
) -> None:
    needle = damage(tiny_bundle_copy)
    bundle = tiny_bundle_copy
    if zipped:
        bundle = tmp_path / "bundle.zip"
        with zipfile.ZipFile(bundle, "w") as archive:
            for path in sorted(tiny_bundle_copy.rglob("*")):
                archive.write(path, path.relative_to(tiny_bundle_copy))
    out = tmp_path / "out"
    assert_refused(run("segment", bundle, picture, "--classes", "cat, dog", "-o", out), f"bundle {bundle}", needle)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("what", ["missing", "empty folder", "text", "empty"])
def test_what_is_no_bundle(picture: Path, tmp_path: Path, what: str) -> None:
    bundle = tmp_path / "thing.ebseg"
    if what == "empty folder":
        bundle.mkdir()
    elif what != "missing":
        bundle.write_text("hello" if what == "text" else "")
    words = ("--classes", "cat, dog", "-o", tmp_path / "out")
    for verb in (("segment", bundle, picture, *words), ("inspect", bundle), ("bench", "latency", bundle)):
        assert_refused(run(*verb), bundle)


def test_a_precision_backend_or_canvas_the_bundle_has_not(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    words = ("segment", tiny_bundle, picture, "--classes", "cat, dog", "-o", tmp_path / "out")
    assert_refused(run(*words, "--precision", "int4"), "int4", "fp32")
    assert_refused(run(*words, "--backend", "abacus"), "abacus", "onnxruntime")
    assert_refused(run("bench", "latency", tiny_bundle, "--size", "32x32"), "32x32", "64x96")


def test_an_output_folder_that_is_a_file_is_found_before_the_model_is_loaded(picture: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out in (taken, taken / "below"):
        # There is no such bundle either: that it is not complained of shows the order.
        assert_refused(run("segment", tmp_path / "none.ebseg", picture, "--classes", "cat", "-o", out), "output folder")
    assert taken.read_text() == "mine"


def test_an_output_folder_without_write_permission(
    tiny_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write anywhere, so chmod would test nothing
    outcome = run("segment", tiny_bundle, picture, "--classes", "cat, dog", "-o", tmp_path / "out")
    assert_refused(outcome, f"output folder {tmp_path / 'out'}: Permission denied")


def test_pictures_that_are_not_there(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ("--classes", "cat", "-o", tmp_path / "out")
    for missing in ("no.jpg", tmp_path / "*.jpg", "@no.txt"):
        assert_refused(run("segment", tiny_bundle, missing, *words), str(missing).lstrip("@"))
    assert_refused(run("segment", tiny_bundle, "-", *words, stdin=""), "-: no picture")
    assert not (tmp_path / "out").exists()


def test_in_a_process_of_its_own_too(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    command = [
        sys.executable,
        "-m",
        "ebseg_deploy",
        "segment",
        tiny_bundle,
        "empty.png",
        "--classes",
        "a,b",
        "-o",
        "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: picture empty.png: 0 bytes; give a PNG or JPEG file\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_graph_that_is_not_onnx(tmp_path: Path) -> None:
    for content in (b"", b"hello there, this is text"):
        (tmp_path / "x.onnx").write_bytes(content)
        assert_refused(run("inspect", tmp_path / "x.onnx"), "x.onnx")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"hello"])
def test_a_checkpoint_that_is_something_else(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("torch")
    (tmp_path / "w.pth").write_bytes(content)
    outcome = run("export", "--model", "ebseg-b", "--checkpoint", tmp_path / "w.pth", "-o", tmp_path / "b.ebseg")
    assert_refused(outcome, "w.pth: not a file of PyTorch's")
    assert not (tmp_path / "b.ebseg").exists()
