"""`ebseg vocab`: build, change, list and show vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import engine_options
from .vocab_options import SUFFIX, VOCABULARY, class_options, output_options

if TYPE_CHECKING:
    from ..runtime.class_names import ClassEntry
    from ..runtime.vocabulary import Vocabulary


@click.group(no_args_is_help=True)
def command() -> None:
    """Build, change and list vocabularies: the words a picture is labelled with.

    A vocabulary belongs to the text encoder that made it; a bundle with another one refuses it.
    """


@command.command()
@click.argument("bundle", type=VOCABULARY)
@class_options
@engine_options
@output_options
def build(bundle: Path, output: Path, as_json: bool, **how: Any) -> None:
    """Encode class names with a bundle's text encoder.

    \b
    ebseg vocab build b.ebseg --classes "cat, red fox" -o pets.safetensors
    ebseg vocab build b.ebseg --dataset ade20k-150 -o ade.safetensors
    """
    vocabulary, notes = _encode(bundle, **how)
    _write(vocabulary, output, notes, as_json)


@command.command()
@click.argument("vocabulary", type=VOCABULARY)
@click.argument("bundle", type=VOCABULARY)
@class_options
@engine_options
@output_options
def add(vocabulary: Path, bundle: Path, output: Path, as_json: bool, **how: Any) -> None:
    """Add classes to a vocabulary.

    They are encoded by BUNDLE, which must be the one VOCABULARY was made with, or share its text
    encoder. Labels of the classes that were there stay the same; the added ones follow.
    """
    from ..runtime.vocabulary import Vocabulary

    first = Vocabulary.load(vocabulary)
    more, notes = _encode(bundle, base=first, **how)
    result = first.merged(more)
    _write(result, output, notes + _warn_of_pairs(result, [first, more]), as_json)


@command.command()
@click.argument("vocabulary", type=VOCABULARY)
@click.argument("names", nargs=-1, required=True)
@output_options
def remove(vocabulary: Path, names: tuple[str, ...], output: Path, as_json: bool) -> None:
    """Remove classes from a vocabulary.

    The labels of the classes after them move up.
    """
    from ..runtime.vocabulary import Vocabulary

    _write(Vocabulary.load(vocabulary).without(names), output, [], as_json)


@command.command()
@click.argument("vocabularies", nargs=-1, required=True, type=VOCABULARY)
@click.option("--keep-first", is_flag=True, help="Of a name that comes again keep the first, instead of refusing it.")
@output_options
def merge(vocabularies: tuple[Path, ...], keep_first: bool, output: Path, as_json: bool) -> None:
    """Put vocabularies of one text encoder together.

    The labels of the first stay the same; the classes of the others follow.
    """
    from ..runtime.vocabulary import Vocabulary

    parts = [Vocabulary.load(path) for path in vocabularies]
    result = parts[0].merged(*parts[1:], keep_first=keep_first)
    _write(result, output, _warn_of_pairs(result, parts), as_json)


@command.command(name="list")
@click.argument("bundle", required=False, type=VOCABULARY)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, on stdout.")
def list_(bundle: Path | None, as_json: bool) -> None:
    """List the benchmarks, and the vocabularies in BUNDLE.

    Which of a benchmark's classes were seen in training is BUNDLE's to say; without one, COCO-Stuff is taken.
    """
    from ..runtime.class_names import BENCHMARKS, benchmark_classes, load_benchmark
    from ..runtime.vocabulary_build import is_seen_class
    from .tables import print_json, print_table

    taught = None if bundle is None else _training_names(bundle)
    benchmarks = [
        {
            "name": name,
            "classes": len(benchmark_classes(name)),
            "seen": sum(is_seen_class(entry, taught) for entry in benchmark_classes(name)),
            "source": load_benchmark(name).source,
        }
        for name in BENCHMARKS
    ]
    shipped = [] if bundle is None else _shipped(bundle)
    if as_json:
        print_json({"benchmarks": benchmarks, **({} if bundle is None else {"bundle": shipped})})
        return
    columns = ("name", "classes", "seen", "source")
    print_table("Benchmarks (--dataset)", columns, [tuple(each.values()) for each in benchmarks])
    if shipped:
        print_table(f"In {bundle}", ("file", "classes", "seen"), [tuple(each.values()) for each in shipped])


@command.command()
@click.argument("source")
@click.argument("bundle", required=False, type=VOCABULARY)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, on stdout.")
def show(source: str, bundle: Path | None, as_json: bool) -> None:
    """Show a vocabulary's or a benchmark's classes.

    SOURCE is a vocabulary, a class file (text or JSON) or a benchmark's name. The classes that --json
    gives can be saved as a class file, changed and built again.

    A vocabulary knows which of its classes were seen in training; of a class file's and a benchmark's that is
    BUNDLE's to say, and without one, COCO-Stuff is taken.
    """
    from ..runtime.vocabulary import Vocabulary
    from ..runtime.vocabulary_build import is_seen_class, resolve_source
    from .tables import print_facts, print_json, print_table

    found = resolve_source(source)
    entries = _entries_of(found) if isinstance(found, Vocabulary) else found
    taught = None if bundle is None else _training_names(bundle)
    seen = [is_seen_class(entry, taught) for entry in entries]
    classes = [
        {"name": entry.name, "synonyms": list(entry.synonyms), "seen": flag}
        for entry, flag in zip(entries, seen, strict=True)
    ]
    origin: dict[str, Any] = {}
    if isinstance(found, Vocabulary):
        origin = {"model": found.model, "encoder_sha256": found.encoder_sha256, "templates": list(found.templates)}
    if as_json:
        print_json({"source": source, **origin, "classes": classes})
        return
    facts: list[tuple[str, object]] = [
        ("classes", len(classes)),
        ("seen in training", sum(seen)),
    ]
    if isinstance(found, Vocabulary):
        facts += [("model", found.model), ("text encoder", found.encoder_sha256), ("templates", len(found.templates))]
    print_facts(source, facts)
    rows = [
        (label, entry.name, ", ".join(entry.synonyms), "seen" if flag else "new")
        for label, (entry, flag) in enumerate(zip(entries, seen, strict=True))
    ]
    print_table("Classes", ("label", "name", "synonyms", ""), rows)


def _encode(
    bundle: Path,
    *,
    classes: str | None,
    file: Path | None,
    dataset: str | None,
    seen: tuple[str, ...],
    new: tuple[str, ...],
    cache: bool,
    backend: str,
    threads: int | None,
    precision: str | None,
    sentinel: bool,
    base: Vocabulary | None = None,
) -> tuple[Vocabulary, list[str]]:
    """The vocabulary that the options name, and the warnings that were printed on the way."""
    if sum(each is not None for each in (classes, file, dataset)) != 1:
        raise click.UsageError("give exactly one of --classes NAMES, --file FILE and --dataset NAME")
    from ..runtime.backends import open_backend
    from ..runtime.bundle import Bundle
    from ..runtime.class_names import benchmark_classes, classes_from_text, read_classes
    from ..runtime.vocabulary_build import Source, vocabulary_for
    from .progress import progress_bar

    source: Source
    if dataset is not None:
        benchmark_classes(dataset)  # refuses an unknown name before the bundle is read
        source = dataset
    elif file is not None:
        source = read_classes(file)
    else:
        source = classes_from_text(classes or "")
    opened = Bundle.open(bundle)
    if base is not None:
        base.check_encoder(opened.manifest.text.encoder_sha256, model=opened.model.name)
    notes: list[str] = []
    with open_backend(backend, threads=threads) as engine, progress_bar("encoding names") as report:
        vocabulary = vocabulary_for(
            opened,
            engine,
            source,
            precision=precision,
            cache=cache,
            sentinel=sentinel,
            progress=report,
            warn=notes.append,
        )
    _print_warnings(notes)
    return vocabulary.with_seen(seen=seen, new=new), notes


def _entries_of(vocabulary: Vocabulary) -> tuple[ClassEntry, ...]:
    from ..runtime.class_names import ClassEntry

    return tuple(
        ClassEntry(name=name, synonyms=synonyms, seen=bool(flag))
        for name, synonyms, flag in zip(vocabulary.names, vocabulary.synonyms, vocabulary.seen, strict=True)
    )


def _training_names(path: Path) -> tuple[str, ...] | None:
    from ..runtime.bundle import Bundle

    return Bundle.open(path, check_hashes=False).manifest.text.training_names


def _shipped(path: Path) -> list[dict[str, Any]]:
    from ..runtime.bundle import Bundle
    from ..runtime.vocabulary import Vocabulary

    bundle = Bundle.open(path, check_hashes=False)
    manifest = bundle.manifest
    files = [name for name in manifest.files if name.endswith(SUFFIX) and name.startswith("vocabularies/")]
    found = {name: Vocabulary.load(bundle.file(name)) for name in sorted(files) if name != manifest.text.background}
    return [{"file": name, "classes": len(each), "seen": int(each.seen.sum())} for name, each in found.items()]


def _warn_of_pairs(whole: Vocabulary, parts: Sequence[Vocabulary]) -> list[str]:
    """Warnings of near-duplicates that met only now, coming from different parts; printed, too."""
    from ..runtime.near_duplicates import describe_pairs, near_duplicates

    origin = {name: number for number, part in reversed(list(enumerate(parts))) for name in part.names}
    pairs = near_duplicates(_entries_of(whole))
    notes = describe_pairs([pair for pair in pairs if origin[pair[0]] != origin[pair[1]]])
    _print_warnings(notes)
    return notes


def _print_warnings(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"warning: {note}", err=True)


def _write(vocabulary: Vocabulary, output: Path, notes: list[str], as_json: bool) -> None:
    from .tables import print_json

    vocabulary.save(output)
    seen = int(vocabulary.seen.sum())
    if as_json:
        print_json(
            {
                "path": str(output),
                "classes": len(vocabulary),
                "seen": seen,
                "model": vocabulary.model,
                "encoder_sha256": vocabulary.encoder_sha256,
                "warnings": notes,
            }
        )
        return
    noun = "class" if len(vocabulary) == 1 else "classes"
    click.echo(f"wrote {output}: {len(vocabulary)} {noun}, {seen} seen in training")
