"""The vocabulary file: safetensors with a JSON header, and no pickle in it.

Tensors `embeddings` (N, D) and `background` (1, D) in float32 and `seen` (N,) in uint8; the header under the metadata
key `ebseg_vocabulary`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..contract import Record
from ..errors import VocabularyError
from .atomic_write import write_atomically
from .vocabulary import BUILD_AGAIN, Vocabulary

SCHEMA_VERSION = 1
HEADER_KEY = "ebseg_vocabulary"


class VocabularyHeader(Record, frozen=True, kw_only=True):
    """What a vocabulary file says beside its tensors."""

    schema_version: int
    model: str
    encoder_sha256: str
    templates: tuple[str, ...]
    logit_scale: float
    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    tensors_sha256: str
    """Over embeddings, background and seen, in this order, as little-endian bytes."""


def save_vocabulary(vocabulary: Vocabulary, path: Path) -> Path:
    """Write a vocabulary, whole or not at all; equal vocabularies give equal bytes.

    Raises:
        VocabularyError: the folder is missing or cannot be written to.
    """
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {
        "embeddings": np.ascontiguousarray(vocabulary.embeddings),
        "background": np.ascontiguousarray(vocabulary.background),
        "seen": vocabulary.seen.astype(np.uint8),
    }
    header = VocabularyHeader(
        schema_version=SCHEMA_VERSION,
        model=vocabulary.model,
        encoder_sha256=vocabulary.encoder_sha256,
        templates=vocabulary.templates,
        logit_scale=vocabulary.logit_scale,
        names=vocabulary.names,
        synonyms=vocabulary.synonyms,
        tensors_sha256=_tensors_sha256(tensors),
    )
    data = save(tensors, {HEADER_KEY: msgspec.json.encode(header).decode()})
    try:
        write_atomically(path, data)
    except OSError as error:
        raise VocabularyError(
            f"vocabulary {path}: {error.strerror}", cure="give a path in a folder that can be written to"
        ) from error
    return path


def load_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary; everything is checked, the hash of the tensors too.

    Raises:
        VocabularyError: the file is missing, damaged, of another schema version, or not a vocabulary.
    """
    from safetensors import SafetensorError, safe_open

    where = f"vocabulary {path}"
    if not path.is_file():
        raise VocabularyError(f"{where}: no such file", cure="make one with `ebseg vocab build`")
    try:
        with safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise VocabularyError(f"{where}: not a safetensors file ({error})", cure=BUILD_AGAIN) from error
    if text is None:
        raise VocabularyError(f"{where}: a safetensors file, but not a vocabulary", cure=BUILD_AGAIN)
    header = _read_header(text, where)
    if tensors.keys() != {"embeddings", "background", "seen"} or tensors["seen"].dtype != np.uint8:
        raise VocabularyError(
            f"{where}: has tensors {', '.join(sorted(tensors))}, wanted background, embeddings, seen (uint8)",
            cure=BUILD_AGAIN,
        )
    if _tensors_sha256(tensors) != header.tensors_sha256:
        raise VocabularyError(f"{where}: damaged, its tensors are not those that were saved", cure=BUILD_AGAIN)
    try:
        return Vocabulary(
            names=header.names,
            synonyms=header.synonyms,
            seen=tensors["seen"].astype(np.bool_),
            embeddings=tensors["embeddings"],
            background=tensors["background"],
            model=header.model,
            encoder_sha256=header.encoder_sha256,
            templates=header.templates,
            logit_scale=header.logit_scale,
        )
    except VocabularyError as error:
        raise VocabularyError(f"{where}: {error.message.removeprefix('vocabulary: ')}", cure=error.cure) from None


class _VersionOnly(msgspec.Struct):
    schema_version: int


def _read_header(text: str, where: str) -> VocabularyHeader:
    try:
        # The version first: another version's fields would give an error about fields, and the wrong cure.
        version = msgspec.json.decode(text, type=_VersionOnly).schema_version
        if version != SCHEMA_VERSION:
            cure = "install a newer ebseg-deploy" if version > SCHEMA_VERSION else BUILD_AGAIN
            raise VocabularyError(
                f"{where}: schema version {version}, this release reads version {SCHEMA_VERSION}", cure=cure
            )
        return msgspec.json.decode(text, type=VocabularyHeader)
    except msgspec.DecodeError as error:
        raise VocabularyError(f"{where}: header: {error}", cure=BUILD_AGAIN) from error


def _tensors_sha256(tensors: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in ("embeddings", "background", "seen"):
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
