"""Opening a bundle, and every way in which it can be wrong: one line, with a cure."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ebseg_deploy.contract import ADAB_DECODER, OPEN_VOCAB_HEAD, Size
from ebseg_deploy.errors import BundleError
from ebseg_deploy.runtime import archive
from ebseg_deploy.runtime.bundle import Bundle


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return folder


def refusal(path: Path, **options: bool) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.cure
    assert str(path) in caught.value.message
    return caught.value


def zipped(folder: Path, target: Path, prefix: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive_file:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive_file.write(file, prefix + file.relative_to(folder).as_posix())
    return target


def test_bundle_tells_what_it_holds(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert bundle.model.name == "ebseg-tiny"
    assert bundle.sizes == (Size(height=64, width=64), Size(height=64, width=96))
    assert bundle.precisions == ("fp32",)
    decoder = bundle.graph(ADAB_DECODER, bundle.sizes[1])
    assert decoder.size == bundle.sizes[1]
    assert bundle.file(decoder.file).is_file()
    assert bundle.graph(OPEN_VOCAB_HEAD, bundle.sizes[0]).size is None
    assert bundle.changed_files() == ()


def test_precision_defaults_to_the_first(make_tiny_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(make_tiny_bundle(precisions=("fp16", "fp32")))
    assert bundle.precisions == ("fp16", "fp32")
    assert bundle.graph(ADAB_DECODER, bundle.sizes[0]).precision == "fp16"
    assert bundle.graph(ADAB_DECODER, bundle.sizes[0], "fp32").precision == "fp32"


def test_undeclared_size_and_precision(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BundleError, match="no canvas 640x640; choose from 64x64, 64x96"):
        bundle.graph(ADAB_DECODER, Size(height=640, width=640))
    with pytest.raises(BundleError, match="no canvas None"):
        bundle.graph(ADAB_DECODER)
    with pytest.raises(BundleError, match="no precision 'int8'; choose from fp32"):
        bundle.graph(ADAB_DECODER, bundle.sizes[0], "int8")


def test_not_a_bundle(tmp_path: Path) -> None:
    assert "no such folder or file" in str(refusal(tmp_path / "missing.ebseg"))
    assert "no bundle.json" in str(refusal(tmp_path))
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    assert "neither a folder nor a zip" in str(refusal(file))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[1, 2]", b'{"schema_version": "1"}', b"{}"])
def test_unreadable_manifest(tiny_bundle_copy: Path, text: bytes) -> None:
    (tiny_bundle_copy / "bundle.json").write_bytes(text)
    assert "bundle.json" in str(refusal(tiny_bundle_copy))


@pytest.mark.parametrize(("version", "cure"), [(2, "newer ebseg-deploy"), (0, "export it again")])
def test_unknown_schema_version_is_told_before_its_fields(tiny_bundle_copy: Path, version: int, cure: str) -> None:
    (tiny_bundle_copy / "bundle.json").write_text(json.dumps({"schema_version": version, "all": "different"}))
    error = refusal(tiny_bundle_copy)
    assert f"schema version {version}, this release reads version 1" in str(error)
    assert cure in str(error)


def test_wrong_field_is_named_with_its_path(tiny_bundle_copy: Path) -> None:
    change_manifest(tiny_bundle_copy, lambda manifest: manifest["model"].update(queries="many"))
    assert "$.model.queries" in str(refusal(tiny_bundle_copy))


def test_unknown_field_is_refused(tiny_bundle_copy: Path) -> None:
    change_manifest(tiny_bundle_copy, lambda manifest: manifest.update(extra=1))
    assert "extra" in str(refusal(tiny_bundle_copy))


def test_missing_file_is_found_without_hashing(tiny_bundle_copy: Path) -> None:
    name = "graphs/fp32/sam_image_encoder_64x96.onnx"
    (tiny_bundle_copy / name).unlink()
    assert f"file {name} is missing" in str(refusal(tiny_bundle_copy, check_hashes=False))


def test_graph_missing_from_the_manifest(tiny_bundle_copy: Path) -> None:
    change_manifest(tiny_bundle_copy, lambda manifest: manifest["graphs"].pop())
    assert "graph text_encoder is missing" in str(refusal(tiny_bundle_copy))


def test_graph_listed_twice(tiny_bundle_copy: Path) -> None:
    change_manifest(tiny_bundle_copy, lambda manifest: manifest["graphs"].append(manifest["graphs"][0]))
    assert "listed 2 times" in str(refusal(tiny_bundle_copy))


def test_used_file_without_a_hash(tiny_bundle_copy: Path) -> None:
    change_manifest(tiny_bundle_copy, lambda manifest: manifest["files"].pop("tokenizer.json"))
    assert "tokenizer.json is used but has no size and hash" in str(refusal(tiny_bundle_copy))


def test_canvas_that_is_no_multiple_of_32(tiny_bundle_copy: Path) -> None:
    change_manifest(tiny_bundle_copy, lambda manifest: manifest["sizes"][0].update(height=65))
    assert "canvas 65x64: sides must be positive multiples of 32" in str(refusal(tiny_bundle_copy))


@pytest.mark.parametrize("check_hashes", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["model"].update(alpha=0.5),
        lambda manifest: manifest["provenance"].update(checkpoint="another"),
        lambda manifest: manifest["graphs"][0]["parity"].update(clip_cls=0.0),
        lambda manifest: manifest.pop("seal"),
        lambda manifest: manifest.update(seal="0" * 64),
    ],
    ids=["alpha", "provenance", "parity", "no seal", "wrong seal"],
)
def test_manifest_edited_by_hand(tiny_bundle_copy: Path, change: Callable[..., object], check_hashes: bool) -> None:
    change_manifest(tiny_bundle_copy, change)
    assert "bundle.json was changed after it was written" in str(refusal(tiny_bundle_copy, check_hashes=check_hashes))


def test_layout_of_the_manifest_is_not_sealed(tiny_bundle_copy: Path) -> None:
    change_manifest(tiny_bundle_copy, lambda manifest: manifest)  # other white space, the same content
    assert Bundle.open(tiny_bundle_copy).model.name == "ebseg-tiny"


def test_changed_byte_names_the_file(tiny_bundle_copy: Path) -> None:
    name = "graphs/fp32/adab_decoder_64x64.onnx"
    path = tiny_bundle_copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert name in str(refusal(tiny_bundle_copy))
    assert Bundle.open(tiny_bundle_copy, check_hashes=False).changed_files() == (name,)


def test_changed_length_is_found_without_hashing(tiny_bundle_copy: Path) -> None:
    with (tiny_bundle_copy / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    assert "tokenizer.json has" in str(refusal(tiny_bundle_copy, check_hashes=False))


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/passwd", "graphs/../../outside", "C:\\outside", "a\\b", ""])
def test_path_that_leaves_the_bundle(tiny_bundle_copy: Path, path: str) -> None:
    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(tiny_bundle_copy).file(path)
    change_manifest(tiny_bundle_copy, lambda m: m["files"].update({path: {"bytes": 1, "sha256": "0" * 64}}))
    assert "leaves the bundle" in str(refusal(tiny_bundle_copy))


def test_link_that_leaves_the_bundle(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    inside = tiny_bundle_copy / "tokenizer.json"
    outside = tmp_path / "outside.json"
    inside.rename(outside)
    inside.symlink_to(outside)
    assert "leaves the bundle" in str(refusal(tiny_bundle_copy))


def test_bundle_that_is_itself_a_link(tiny_bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.ebseg"
    link.symlink_to(tiny_bundle)
    bundle = Bundle.open(link)
    assert bundle.file("tokenizer.json").is_file()


@pytest.mark.parametrize("prefix", ["", "tiny.ebseg/"])
def test_zip_is_unpacked_once(tiny_bundle: Path, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    path = zipped(tiny_bundle, tmp_path / "tiny.zip", prefix)
    bundle = Bundle.open(path)
    assert bundle.source == path
    assert bundle.path.is_relative_to(tmp_path / "cache")
    stamp = (bundle.path / "bundle.json").stat().st_mtime_ns
    assert (Bundle.open(path).path / "bundle.json").stat().st_mtime_ns == stamp
    assert [each.name for each in (tmp_path / "cache" / "bundles").iterdir()] == [bundle.path.name]


def test_damaged_unpacked_copy_is_unpacked_again(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    path = zipped(tiny_bundle, tmp_path / "tiny.zip")
    (Bundle.open(path).path / "tokenizer.json").write_text("{}")
    assert Bundle.open(path).changed_files() == ()


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "graphs/../../evil.txt", "C:\\evil.txt"])
def test_zip_with_an_entry_that_leaves_it(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    path = zipped(tiny_bundle, tmp_path / "evil.zip")
    with zipfile.ZipFile(path, "a") as archive_file:
        archive_file.writestr(name, "evil")
    assert "leaves the bundle" in str(refusal(path))
    assert not list(tmp_path.rglob("evil.txt"))


def test_zip_without_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive_file:
        archive_file.writestr("readme.txt", "hello")
    assert "no bundle.json in the zip" in str(refusal(path))


def test_damaged_zip_leaves_nothing(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    path = zipped(tiny_bundle, tmp_path / "tiny.zip")
    content = bytearray(path.read_bytes())
    content[2000] ^= 255  # inside the first file's data, which the zip's checksum covers
    path.write_bytes(content)
    assert "damaged zip" in str(refusal(path))
    assert not list((tmp_path / "cache" / "bundles").iterdir())


def test_damaged_compressed_zip(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage may stop the decompressor before a checksum is looked at."""
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    path = zipped(tiny_bundle, tmp_path / "tiny.zip", compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[500:700] = bytes(each ^ 0x5A for each in content[500:700])
    path.write_bytes(content)
    assert "damaged zip: Error -3" in str(refusal(path))
    assert not list((tmp_path / "cache" / "bundles").iterdir())


def test_zip_larger_than_the_disk(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    error = refusal(zipped(tiny_bundle, tmp_path / "tiny.zip"))
    assert "needs" in str(error)
    assert "EBSEG_CACHE" in str(error)


def test_cache_folder_that_is_a_file(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("EBSEG_CACHE", str(tmp_path / "cache"))
    assert "cannot unpack" in str(refusal(zipped(tiny_bundle, tmp_path / "tiny.zip")))
