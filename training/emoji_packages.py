"""Where sprites come from: three pinned npm packages, fetched through the npm client and checked by their hash.

| artist | package | licence of the graphics |
|---|---|---|
| fluent | @lobehub/fluent-emoji-3d | MIT, Microsoft's Fluent Emoji |
| noto | @iconify-json/noto | Apache-2.0, Google's Noto Emoji |
| twemoji | @iconify-json/twemoji | CC BY 4.0, Twitter's Twemoji |

Nothing of these packages is redistributed but a handful of composed scenes and the weights learnt from them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class NpmPackage:
    """A package at one version, with the hash the registry publishes for it."""

    name: str
    version: str
    integrity: str
    """`sha512-<base64>` of the tarball, as in a package lock."""
    licence: str

    @property
    def file_name(self) -> str:
        """The name `npm pack` gives the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


FLUENT = NpmPackage(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    integrity="sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    licence="MIT",
)
NOTO = NpmPackage(
    name="@iconify-json/noto",
    version="1.2.9",
    integrity="sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    licence="Apache-2.0",
)
TWEMOJI = NpmPackage(
    name="@iconify-json/twemoji",
    version="1.2.5",
    integrity="sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    licence="CC-BY-4.0",
)
PACKAGES: tuple[NpmPackage, ...] = (FLUENT, NOTO, TWEMOJI)


def default_cache() -> Path:
    """$EBSEG_DATA, else the user's cache folder."""
    if "EBSEG_DATA" in os.environ:
        return Path(os.environ["EBSEG_DATA"])
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "ebseg-deploy" / "emoji"


def fetch(
    packages: tuple[NpmPackage, ...] = PACKAGES,
    cache: Path | None = None,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Bring the tarballs into the cache; those that are there and intact are not fetched again.

    Args:
        packages: what to fetch.
        cache: folder for the tarballs; `default_cache()` unless told.
        report: gets a line for each package.

    Returns:
        The tarballs, in the order of `packages`.

    Raises:
        InputError: npm is missing, the registry does not answer, or a tarball's hash is not the pinned one.
    """
    cache = default_cache() if cache is None else cache
    cache.mkdir(parents=True, exist_ok=True)
    tarballs = []
    for package in packages:
        tarball = cache / package.file_name
        if tarball.is_file() and integrity(tarball) == package.integrity:
            report(f"{package.name} {package.version}: in {cache}")
        else:
            report(f"{package.name} {package.version}: fetching")
            _pack(package, tarball)
        tarballs.append(tarball)
    return tarballs


def _pack(package: NpmPackage, tarball: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            f"{package.name}: needs the npm client, which is not on the PATH",
            cure=f"install Node.js (apt install npm), or put {package.file_name} into {tarball.parent} yourself",
        )
    with tempfile.TemporaryDirectory(dir=tarball.parent, prefix=".fetch-") as folder:
        done = subprocess.run(
            [npm, "pack", "--silent", f"{package.name}@{package.version}"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        fetched = Path(folder) / package.file_name
        if done.returncode or not fetched.is_file():
            said = " ".join(line for line in done.stderr.split("\n") if "warn" not in line).strip() or "no message"
            raise InputError(
                f"{package.name}@{package.version}: npm pack failed ({said[:200]})",
                cure="check the network and `npm ping`, then run the command again: what is fetched is kept",
            )
        got = integrity(fetched)
        if got != package.integrity:
            raise InputError(
                f"{package.name}@{package.version}: tarball is {got[:24]}…, wanted {package.integrity[:24]}…",
                cure="the registry serves another file under this version: do not use it, and report it",
            )
        os.replace(fetched, tarball)


def integrity(path: Path) -> str:
    """`sha512-<base64>` of a file, as npm writes it."""
    digest = hashlib.sha512()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return "sha512-" + base64.b64encode(digest.digest()).decode()


def read_members(tarball: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Files of an npm tarball by path (without the leading `package/`); read in memory, never unpacked."""
    found = {}
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if member.isfile() and wanted(name):
                stream = archive.extractfile(member)
                assert stream is not None  # isfile() was asked
                found[name] = stream.read()
    return found
