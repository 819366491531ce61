"""From class names to a vocabulary: prompts, text encoder, mean, seen flags."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, BundleError, VocabularyError
from .backends import Backend
from .backends.fake import FakeBackend
from .bundle import Bundle
from .cache import cache_folder
from .class_names import BENCHMARKS, ClassEntry, benchmark_classes, check_classes, read_classes
from .embedding_cache import EmbeddingCache
from .near_duplicates import describe_pairs, near_duplicates
from .seen_names import is_seen
from .text_encoder import TextEncoder
from .tokenizer import ClipTokenizer
from .vocabulary import Vocabulary, unit_rows

PROMPTS_PER_RUN = 64
"""Prompts the text encoder takes at once: ViT-B/16's tower then stays below 200 MB of activations."""

EncodePrompts = Callable[[NDArray[np.int32]], NDArray[np.float32]]
"""(T, 77) token ids -> (T, D) prompt embeddings, of any length."""
Source = str | os.PathLike[str] | Vocabulary | Iterable[str | ClassEntry]
"""A benchmark's name; a class file (text or JSON) or a vocabulary file (.safetensors); or the classes themselves."""


def build_vocabulary(
    entries: Sequence[ClassEntry],
    *,
    encode_prompts: EncodePrompts,
    tokenizer: ClipTokenizer,
    templates: Sequence[str],
    background: NDArray[np.float32],
    model: str,
    encoder_sha256: str,
    logit_scale: float,
    training_names: tuple[str, ...] | None = None,
    cache_dir: Path | None = None,
    cache_key: str | None = None,
    keep: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Vocabulary:
    """Encode class names.

    Each name goes into every template as it is spelled; the prompts' embeddings are brought to unit length, averaged,
    and brought to unit length again (ViLD's way). Synonyms are not encoded: they decide the seen flag.

    Args:
        entries: the classes, in label order.
        encode_prompts: the text encoder; called with at most PROMPTS_PER_RUN prompts.
        tokenizer: CLIP's.
        templates: prompts with one `{}` each.
        background: (1, D), the learned background embedding.
        model: name of the model, for people.
        encoder_sha256: the text encoder's identity; a bundle of another one refuses the vocabulary.
        logit_scale: factor from cosine to logit.
        training_names: classes that count as seen; COCO-Stuff's if None.
        cache_dir: folder for encoded names; None keeps nothing.
        cache_key: what else the numbers depend on (precision, backend); `encoder_sha256` is always part of the key.
        keep: asked after names were encoded, whether they may be kept.
        progress: called as progress(names done, names in all).
        warn: called with one line for each cause for doubt; `warnings.warn` by default.

    Raises:
        VocabularyError: no class, a blank name, a name twice, a template without `{}`.
        BackendError: the encoder gives embeddings of another width than the background's, or not finite, or zero.
    """
    warn = _warn if warn is None else warn
    entries = check_classes(entries)
    for template in templates:
        if template.count("{}") != 1:
            raise VocabularyError(f"template {template!r}: needs one {{}}", cure="write {} where the name goes")
    cache = EmbeddingCache(
        cache_dir,
        encoder=f"{encoder_sha256} {cache_key or ''}",
        templates=templates,
        width=background.shape[-1],
    )
    looked_up = {entry.name: cache.get(entry.name) for entry in entries}
    rows = {name: row for name, row in looked_up.items() if row is not None}
    missing = [name for name in looked_up if name not in rows]
    if progress is not None:
        progress(len(rows), len(entries))
    for name, row in _encode(missing, templates, tokenizer, encode_prompts, background.shape[-1]):
        rows[name] = row
        if keep():
            cache.put(name, row)
        if progress is not None:
            progress(len(rows), len(entries))

    for line in describe_pairs(near_duplicates(entries)):
        warn(line)
    _warn_of_cut_names(entries, templates, tokenizer, warn)
    return Vocabulary(
        names=tuple(entry.name for entry in entries),
        synonyms=tuple(entry.synonyms for entry in entries),
        seen=np.array([is_seen_class(entry, training_names) for entry in entries], dtype=np.bool_),
        embeddings=np.stack([rows[entry.name] for entry in entries]),
        background=np.asarray(background, dtype=np.float32),
        model=model,
        encoder_sha256=encoder_sha256,
        templates=tuple(templates),
        logit_scale=logit_scale,
    )


def vocabulary_for(
    bundle: Bundle,
    backend: Backend,
    source: Source,
    *,
    precision: str | None = None,
    cache: bool = True,
    sentinel: bool = True,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Vocabulary:
    """The vocabulary that `source` names, encoded by a bundle's text encoder.

    Args:
        bundle: has the text encoder, its tokenizer and the background embedding.
        backend: runs the text encoder, which is opened only when names have to be encoded.
        source: one of BENCHMARKS; a path of a class file or of a saved vocabulary; a vocabulary; or names and
            ClassEntry objects. A vocabulary is checked against the bundle's text encoder and given back.
        precision: of the text encoder; the bundle's first by default.
        cache: keep encoded names in the user's cache folder (`$EBSEG_CACHE`), and look there first.
        sentinel: on a GPU, hold the text encoder against the bundle's reference before it encodes a name.
        progress: called as progress(names done, names in all).
        warn: called with one line for each cause for doubt; `warnings.warn` by default.

    Raises:
        VocabularyError: names that cannot be a vocabulary, or a vocabulary of another text encoder.
        BundleError: the bundle's text files are damaged.
    """
    text = bundle.manifest.text
    found = resolve_source(source)
    if isinstance(found, Vocabulary):
        found.check_encoder(text.encoder_sha256, model=bundle.model.name)
        return found
    if isinstance(source, str) and source in BENCHMARKS:
        warn = _silent  # a benchmark's names are what they are ("cage" and "cages")
    cache = cache and not isinstance(backend, FakeBackend)  # canned numbers must not meet real ones
    with TextEncoder(bundle, backend, precision, sentinel) as encoder:
        return build_vocabulary(
            found,
            encode_prompts=encoder,
            tokenizer=ClipTokenizer.load(bundle.file(text.tokenizer), context_length=bundle.model.context_length),
            templates=text.templates,
            background=read_background(bundle),
            model=bundle.model.name,
            encoder_sha256=text.encoder_sha256,
            logit_scale=bundle.model.logit_scale,
            training_names=text.training_names,
            cache_dir=cache_folder("prompts") if cache else None,
            cache_key=encoder.identity,
            keep=lambda: encoder.lasting,
            progress=progress,
            warn=warn,
        )


def resolve_source(source: Source) -> Vocabulary | tuple[ClassEntry, ...]:
    """What `source` names: a vocabulary, or classes that have to be encoded.

    Raises:
        VocabularyError: neither a benchmark nor a file, or names that cannot be a vocabulary.
    """
    if isinstance(source, Vocabulary):
        return source
    if isinstance(source, str | os.PathLike):
        if isinstance(source, str) and source in BENCHMARKS:
            return benchmark_classes(source)
        path = Path(source)
        if not path.is_file():
            raise VocabularyError(
                f"vocabulary {os.fspath(source)!r}: neither a file nor a benchmark",
                cure=f"give a file, a list of names, or one of {', '.join(BENCHMARKS)}",
            )
        return Vocabulary.load(path) if path.suffix.lower() == ".safetensors" else read_classes(path)
    return check_classes(ClassEntry(name=each) if isinstance(each, str) else each for each in source)


def read_background(bundle: Bundle) -> NDArray[np.float32]:
    """The bundle's learned background embedding, (1, D) float32.

    Raises:
        BundleError: the file is not the safetensors file it should be.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    relative = bundle.manifest.text.background
    try:
        tensor = load(bundle.file(relative).read_bytes())["background"]
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise BundleError(
            f"bundle {bundle.source}: {relative} has no tensor `background` ({error})", cure="export the bundle again"
        ) from error
    if tensor.shape != (1, bundle.model.embedding_dim):
        raise BundleError(
            f"bundle {bundle.source}: `background` has shape {tensor.shape}, wanted (1, {bundle.model.embedding_dim})",
            cure="export the bundle again",
        )
    background: NDArray[np.float32] = tensor.astype(np.float32)
    return background


def _encode(
    names: Sequence[str], templates: Sequence[str], tokenizer: ClipTokenizer, encode_prompts: EncodePrompts, width: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each name with its embedding (D,), as soon as the last of its prompts is encoded; runs are always full."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    rows = np.empty((0, width), dtype=np.float32)
    waiting = iter(names)
    for start in range(0, len(prompts), PROMPTS_PER_RUN):
        tokens = tokenizer.encode(prompts[start : start + PROMPTS_PER_RUN])
        encoded = np.asarray(encode_prompts(tokens))
        _check_encoded(encoded, (len(tokens), width))
        rows = np.concatenate([rows, unit_rows(encoded)])
        while len(rows) >= len(templates):
            yield next(waiting), unit_rows(rows[: len(templates)].mean(axis=0, dtype=np.float64))
            rows = rows[len(templates) :]


def _check_encoded(encoded: NDArray[Any], shape: tuple[int, int]) -> None:
    if encoded.shape != shape:
        raise BackendError(
            f"text encoder: gave embeddings of shape {encoded.shape}, wanted {shape}", cure="export the bundle again"
        )
    if not np.isfinite(encoded).all() or not np.linalg.norm(encoded.astype(np.float64), axis=1).all():
        raise BackendError(
            "text encoder: gave an embedding that is zero or not finite", cure="take a graph of higher precision"
        )


def is_seen_class(entry: ClassEntry, training_names: tuple[str, ...] | None = None) -> bool:
    """The class's seen flag: the one it was given, else what the seen rule says of a bundle with these names."""
    if entry.seen is not None:
        return entry.seen
    return is_seen(entry.name, entry.synonyms, entry.excludes, training_names=training_names)


def _warn_of_cut_names(
    entries: Sequence[ClassEntry], templates: Sequence[str], tokenizer: ClipTokenizer, warn: Callable[[str], None]
) -> None:
    longest = max(templates, key=len)
    # A token stands for a byte at least, and cleaning less than doubles the bytes: short names need no look.
    long = [entry.name for entry in entries if 2 * len((longest + entry.name).encode()) >= tokenizer.context_length]
    for name, tokens in zip(long, tokenizer.encode(longest.replace("{}", name) for name in long), strict=True):
        if tokens[-1]:
            warn(
                f"{name[:40]!r}… fills the text encoder's {tokenizer.context_length} tokens: what is beyond is not read"
            )


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _silent(message: str) -> None:
    """For names that are not the user's to change."""
