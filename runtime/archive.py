"""Unpack a zipped bundle, once, into the cache folder."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..contract import MANIFEST_NAME
from ..errors import BundleError
from .cache import CACHE_VARIABLE, LARGEST_KIND_BYTES, cache_folder, mark_used, remove_folder, trim_folder
from .hashing import file_sha256

COPY_CHUNK_BYTES = 1 << 20
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What Python's zip reader raises on damaged files and on kinds of zip it cannot read."""


def is_archive(path: Path) -> bool:
    """Whether the file is a zip."""
    return zipfile.is_zipfile(path)


def unpack_archive(path: Path, *, again: bool = False) -> Path:
    """Unpack a zipped bundle into the cache folder, under the zip's own hash.

    Bundles that were unpacked before and not used for a day make room when all take more than LARGEST_KIND_BYTES.

    Args:
        path: the zip; `bundle.json` at its top, or in its only top folder.
        again: replace the copy that an earlier call unpacked.

    Returns:
        The folder that holds `bundle.json`.

    Raises:
        BundleError: no bundle in it, a damaged zip, an entry that would leave the folder, or no room on the disk.
    """
    target = cache_folder("bundles") / file_sha256(path)[:32]
    if again:
        remove_folder(target)
    if target.is_dir():
        mark_used(target)
        return target
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _bundle_entries(path, archive)
            target.parent.mkdir(parents=True, exist_ok=True)
            _check_room(path, target.parent, sum(info.file_size for info in entries.values()))
            _extract(archive, entries, target)
    except DAMAGE as error:
        raise BundleError(f"bundle {path}: damaged zip: {error}", cure="copy the file again") from error
    except OSError as error:
        raise BundleError(
            f"bundle {path}: cannot unpack to {target.parent}: {error.strerror or error}",
            cure=f"unzip it yourself and give the folder, or set {CACHE_VARIABLE} to a folder with room",
        ) from error
    trim_folder(target.parent, limit_bytes=LARGEST_KIND_BYTES, keep=target)
    return target


def _bundle_entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by path relative to the bundle."""
    files = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    for name, info in files.items():
        posix = PurePosixPath(name)
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if posix.is_absolute() or ".." in posix.parts or "\\" in name or PureWindowsPath(name).drive or is_link:
            raise BundleError(
                f"bundle {path}: entry {name!r} leaves the bundle",
                cure="do not use this file; get it again from where it was exported",
            )
    tops = sorted((name for name in files if PurePosixPath(name).name == MANIFEST_NAME), key=len)
    if not tops:
        raise BundleError(f"bundle {path}: no {MANIFEST_NAME} in the zip", cure="zip the folder `ebseg export` wrote")
    prefix = tops[0][: -len(MANIFEST_NAME)]
    return {name[len(prefix) :]: info for name, info in files.items() if name.startswith(prefix)}


def _check_room(path: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BundleError(
            f"bundle {path}: needs {needed / 1e6:.0f} MB unpacked, {folder} has {free / 1e6:.0f} MB free",
            cure=f"make room (`ebseg doctor --clean-cache`), or set {CACHE_VARIABLE} to a folder with room",
        )


def _extract(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], target: Path) -> None:
    """Unpack beside the target and rename: a target that exists is complete."""
    scratch = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        for relative, info in entries.items():
            out = scratch / relative
            out.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, out.open("wb") as sink:
                shutil.copyfileobj(source, sink, COPY_CHUNK_BYTES)
        try:
            os.rename(scratch, target)
        except OSError:
            if not target.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
