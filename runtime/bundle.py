"""Read a bundle: the folder (or the zip of it) that holds a model's graphs, tokenizer and background embedding.

Nothing of a bundle is used before its manifest is understood and found as it was written, and every file it names is
inside the bundle, of the size it says and, unless told otherwise, of the hash it says.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath

import msgspec

from ..contract import (
    CANVAS_DIVISOR,
    GRAPH_NAMES,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    SIZED_GRAPHS,
    BundleManifest,
    GraphName,
    GraphRecord,
    ModelSpec,
    Size,
    seal_of,
)
from ..errors import BundleError
from .archive import is_archive, unpack_archive
from .hashing import file_sha256

DERIVED_FROM_SEAL = "derived_from_seal"
"""Key of a manifest's provenance: the seal of the FP32 bundle that one of another precision was made of."""
EXPORT_AGAIN = "copy the bundle again, or export it again with `ebseg export`"


class Bundle:
    """An opened bundle. Make one with `Bundle.open`.

    Attributes:
        path: the folder that holds the files; for a zip, the folder it was unpacked to.
        source: what was opened: the folder or the zip.
        manifest: what `bundle.json` says.
    """

    def __init__(self, path: Path, manifest: BundleManifest, *, source: Path | None = None) -> None:
        self.path = path
        self.source = path if source is None else source
        self.manifest = manifest
        self._root = path.resolve()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check_hashes: bool = True) -> Bundle:
        """Read and check a bundle.

        Args:
            path: a bundle's folder, or a .zip of it. A zip is unpacked once, into the cache folder, under its hash.
            check_hashes: compare each file's sha256 with the manifest's. Without it only the manifest's seal, presence
                and size are checked: for a bundle that was verified before.

        Raises:
            BundleError: not a bundle, damaged, incomplete, or of a schema version this release cannot read.
        """
        source = Path(path)
        if not source.exists():
            raise BundleError(
                f"bundle {source}: no such folder or file", cure="give the path that `ebseg export` wrote"
            )
        if source.is_dir():
            return cls._open_folder(source, source, check_hashes)
        if not is_archive(source):
            raise BundleError(
                f"bundle {source}: neither a folder nor a zip", cure="give the path that `ebseg export` wrote"
            )
        folder = unpack_archive(source)
        try:
            return cls._open_folder(folder, source, check_hashes)
        except BundleError:
            # The zip may be sound and its unpacked copy damaged: unpack once more before blaming the zip.
            return cls._open_folder(unpack_archive(source, again=True), source, check_hashes)

    @classmethod
    def _open_folder(cls, folder: Path, source: Path, check_hashes: bool) -> Bundle:
        bundle = cls(folder, read_manifest(folder, source), source=source)
        bundle._check_records()
        bundle._check_files()
        if bundle.manifest.seal != seal_of(bundle.manifest):
            raise BundleError(f"bundle {source}: {MANIFEST_NAME} was changed after it was written", cure=EXPORT_AGAIN)
        if check_hashes:
            changed = bundle.changed_files()
            if changed:
                raise BundleError(
                    f"bundle {source}: sha256 of {', '.join(changed)} differs from the manifest's", cure=EXPORT_AGAIN
                )
        return bundle

    @property
    def model(self) -> ModelSpec:
        """The model's numbers."""
        return self.manifest.model

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The canvases, in the manifest's order."""
        return self.manifest.sizes

    @property
    def dynamic_batch(self) -> bool:
        """Whether the graphs run 1 to `manifest.batch` pictures at a time, rather than exactly so many."""
        return any("batch" in tensor.shape for record in self.manifest.graphs for tensor in record.spec.outputs)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Every precision the graphs come in, the manifest's first first: that one is the default."""
        return tuple(dict.fromkeys(record.precision for record in self.manifest.graphs))

    def file(self, relative: str) -> Path:
        """The path of one of the bundle's files.

        Args:
            relative: path relative to the bundle, with forward slashes.

        Raises:
            BundleError: the path is absolute, has a `..`, or a link in it leads out of the bundle.
        """
        posix = PurePosixPath(relative)
        leaves = posix.is_absolute() or ".." in posix.parts or "\\" in relative or bool(PureWindowsPath(relative).drive)
        path = self._root / posix
        if leaves or not relative or not path.resolve().is_relative_to(self._root):
            raise BundleError(
                f"bundle {self.source}: file path {relative!r} leaves the bundle",
                cure="do not use this bundle; get it again from where it was exported",
            )
        return path

    def graph_hashes(self, record: GraphRecord) -> dict[str, str]:
        """sha256 of a graph's files: the graph and, where it has them, its weights."""
        files = [file for file in (record.file, record.weights) if file is not None]
        return {file: self.manifest.files[file].sha256 for file in files}

    def graph(self, name: GraphName, size: Size | None = None, precision: str | None = None) -> GraphRecord:
        """The record of one graph.

        Args:
            name: one of contract.GRAPH_NAMES.
            size: canvas; needed by the graphs that are exported per size, ignored by the two that serve every size.
            precision: one of `precisions`; the first one by default.

        Raises:
            BundleError: the bundle has no such graph, size or precision.
        """
        if precision is None:
            precision = self.precisions[0]
        elif precision not in self.precisions:
            raise BundleError(
                f"bundle {self.source}: no precision {precision!r}", cure=f"choose from {', '.join(self.precisions)}"
            )
        if name not in SIZED_GRAPHS:
            size = None
        elif size not in self.sizes:
            raise BundleError(
                f"bundle {self.source}: no canvas {size}",
                cure=f"choose from {', '.join(map(str, self.sizes))}, or export it with `ebseg export --size {size}`",
            )
        for record in self.manifest.graphs:
            if (record.name, record.size, record.precision) == (name, size, precision):
                return record
        where = "" if size is None else f" for canvas {size}"
        raise BundleError(f"bundle {self.source}: no graph {name}{where} in {precision}", cure=EXPORT_AGAIN)

    def changed_files(self) -> tuple[str, ...]:
        """Names of the files whose sha256 is not the manifest's; hashes of several files are taken side by side."""
        names = sorted(self.manifest.files, key=lambda name: -self.manifest.files[name].bytes)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashlib releases the GIL
            hashes = pool.map(lambda name: file_sha256(self.file(name)), names)
            return tuple(
                sorted(
                    name
                    for name, found in zip(names, hashes, strict=True)
                    if found != self.manifest.files[name].sha256.lower()
                )
            )

    def _check_records(self) -> None:
        """Check what the manifest's types cannot say."""
        manifest = self.manifest
        for canvas in manifest.sizes:
            sides = (canvas.height, canvas.width)
            if min(sides) < CANVAS_DIVISOR or any(side % CANVAS_DIVISOR for side in sides):
                raise self._fault(f"canvas {canvas}: sides must be positive multiples of {CANVAS_DIVISOR}")
        if not manifest.sizes or not manifest.graphs or manifest.batch < 1:
            raise self._fault("no canvas, no graph, or a batch below 1")
        seen = Counter((record.name, record.size, record.precision) for record in manifest.graphs)
        for (name, size_or_none, precision), count in seen.items():
            if count > 1:
                raise self._fault(f"graph {name} {size_or_none or ''} {precision} is listed {count} times")
        for name in GRAPH_NAMES:
            for size in manifest.sizes if name in SIZED_GRAPHS else (None,):
                if not any(record.name == name and record.size == size for record in manifest.graphs):
                    raise self._fault(f"graph {name}{'' if size is None else f' for canvas {size}'} is missing")
        named = [manifest.text.background, manifest.text.tokenizer]
        named += [file for record in manifest.graphs for file in (record.file, record.weights) if file is not None]
        named += [record.file for record in manifest.references]
        for relative in named:
            if relative not in manifest.files:
                raise self._fault(f"{relative} is used but has no size and hash in `files`")

    def _check_files(self) -> None:
        for relative, record in self.manifest.files.items():
            path = self.file(relative)
            if not path.is_file():
                raise BundleError(f"bundle {self.source}: file {relative} is missing", cure=EXPORT_AGAIN)
            found = path.stat().st_size
            if found != record.bytes:
                raise BundleError(
                    f"bundle {self.source}: file {relative} has {found} bytes, the manifest says {record.bytes}",
                    cure=EXPORT_AGAIN,
                )

    def _fault(self, what: str) -> BundleError:
        return BundleError(f"bundle {self.source}: {MANIFEST_NAME}: {what}", cure=EXPORT_AGAIN)

    def __repr__(self) -> str:
        return f"Bundle({str(self.source)!r}, model={self.model.name!r}, sizes=[{', '.join(map(str, self.sizes))}])"


class _VersionOnly(msgspec.Struct):
    """The one field that every version of the manifest has."""

    schema_version: int


def read_manifest(folder: Path, source: Path | None = None) -> BundleManifest:
    """Decode `bundle.json`.

    Args:
        folder: the bundle's folder.
        source: the path to name in errors; `folder` by default.

    Raises:
        BundleError: the file is missing, is no JSON, is of another schema version, or a field is wrong.
    """
    where = folder if source is None else source
    path = folder / MANIFEST_NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(
            f"bundle {where}: no {MANIFEST_NAME} in it", cure="give the path that `ebseg export` wrote"
        ) from None
    except OSError as error:
        raise BundleError(
            f"bundle {where}: {MANIFEST_NAME}: {error.strerror}", cure="check the file's rights"
        ) from error
    try:
        # The version first: another version's fields would give an error about fields, and the wrong cure.
        version = msgspec.json.decode(text, type=_VersionOnly).schema_version
        if version != SCHEMA_VERSION:
            cure = "install a newer ebseg-deploy" if version > SCHEMA_VERSION else "export it again with `ebseg export`"
            raise BundleError(
                f"bundle {where}: schema version {version}, this release reads version {SCHEMA_VERSION}", cure=cure
            )
        return msgspec.json.decode(text, type=BundleManifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"bundle {where}: {MANIFEST_NAME}: {error}", cure=EXPORT_AGAIN) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"bundle {where}: {MANIFEST_NAME} is not JSON: {error}", cure=EXPORT_AGAIN) from error
