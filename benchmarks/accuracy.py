"""How right a bundle's label maps are, from the deployed graphs: mIoU of seen and new classes, and what is confused."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..runtime.atomic_write import write_atomically
from ..runtime.segmenter import Segmenter
from ..runtime.vocabulary import Vocabulary
from ..training.confusion import Confusion, OpenVocabularyFigures, figures
from .agreement import Agreement, label_agreement
from .label_maps import LabelMaps
from .labelled_sets import LabelledSet

SAVE_EVERY = 25
"""Pictures between two writes of the state a broken-off measurement continues from."""
MOST_CONFUSED = 10


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class's figures, in percent; None where the class does not occur."""

    name: str
    seen: bool
    background: bool
    iou: float | None
    accuracy: float | None
    pixels: int


@dataclass(frozen=True, kw_only=True)
class Confused:
    """Pixels of one class that were given another, as percent of the first's."""

    truth: str
    given: str
    percent: float


@dataclass(frozen=True, kw_only=True)
class NearClasses:
    """How often pixels of a group's classes were given another class of the group, in percent."""

    names: tuple[str, ...]
    percent: float


@dataclass(frozen=True, kw_only=True, eq=False)
class AccuracyReport:
    """A measurement."""

    dataset: str
    bundle: str
    model: str
    precision: str
    pictures: int
    figures: OpenVocabularyFigures
    """0 to 1."""
    classes: tuple[ClassRow, ...]
    near_classes: tuple[NearClasses, ...]
    most_confused: tuple[Confused, ...]
    agreement: Agreement | None
    """With the other bundle, if one was given."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the figures at the top level, in percent; None where no class occurs."""
        report: dict[str, Any] = {name: _percent(value) for name, value in asdict(self.figures).items()}
        report.update(
            dataset=self.dataset,
            bundle=self.bundle,
            model=self.model,
            precision=self.precision,
            pictures=self.pictures,
            classes=[asdict(row) for row in self.classes],
            near_classes=[asdict(group) for group in self.near_classes],
            most_confused=[asdict(pair) for pair in self.most_confused],
        )
        if self.agreement is not None:
            report["agreement"] = {
                "pixels": _percent(self.agreement.pixel_agreement),
                "mean_iou": _percent(self.agreement.mean_iou),
            }
        return report


def measure_accuracy(
    segmenter: Segmenter,
    examples: LabelledSet,
    vocabulary: Vocabulary,
    *,
    against: tuple[Segmenter, Vocabulary] | None = None,
    state: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AccuracyReport:
    """Segment every picture and count.

    Args:
        segmenter: the bundle under test.
        examples: pictures and truth.
        vocabulary: of `examples.source`, by the bundle's text encoder.
        against: another bundle and its vocabulary, to say how far the two agree.
        state: file from which a broken-off measurement of the same bundle and pictures goes on; nothing is kept
            without.
        progress: called as progress(pictures done, pictures in all).

    Raises:
        InputError: a label beyond the vocabulary, or a label map of another size than its picture.
    """
    report = measure_label_maps(
        LabelMaps(segmenter, vocabulary),
        examples,
        against=None if against is None else LabelMaps(*against),
        state=state,
        progress=progress,
    )
    if state is not None:
        state.unlink(missing_ok=True)
    return report


def measure_label_maps(
    maps: LabelMaps,
    examples: LabelledSet,
    *,
    against: LabelMaps | None = None,
    state: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AccuracyReport:
    """As `measure_accuracy`, for one measurement of several: label maps may be shared, and the state stays.

    Args:
        maps: of the bundle under test.
        examples: pictures and truth.
        against: of another bundle.
        state: file from which this measurement goes on, or is had at once if it was finished; the caller removes it
            when the last of them is done.
        progress: called as progress(pictures done, pictures in all).

    Raises:
        InputError: as `measure_accuracy`.
    """
    counts = _Counts(len(maps.vocabulary), with_agreement=against is not None)
    key = _state_key(maps, examples, against)
    done = 0 if state is None else counts.load(state, key)
    for index in range(done, len(examples)):
        example = examples.example(index)
        labels = maps.of(index, example.picture)
        if labels.shape != example.truth.shape:
            raise InputError(
                f"{example.name}: labels of {example.truth.shape}, its picture is {labels.shape}",
                cure="make picture and label map of one size",
            )
        try:
            counts.confusion.add(example.truth, labels, examples.ignore)
        except InputError as error:
            raise InputError(f"{example.name}: {error.message}", cure=error.cure) from error
        if against is not None:
            counts.agree(label_agreement(labels, against.of(index, example.picture), len(maps.vocabulary)))
        progress(index + 1, len(examples))
        if state is not None and ((index + 1) % SAVE_EVERY == 0 or index + 1 == len(examples)):
            counts.save(state, key, index + 1)
    return _report(maps, examples, counts)


class _Counts:
    """What is counted, and how it survives a break."""

    def __init__(self, classes: int, *, with_agreement: bool) -> None:
        self.confusion = Confusion(classes)
        nothing = np.zeros(classes, np.int64)
        self.agreement = Agreement(both=nothing, first=nothing, second=nothing) if with_agreement else None

    def agree(self, more: Agreement) -> None:
        assert self.agreement is not None
        self.agreement = self.agreement + more

    def save(self, path: Path, key: str, done: int) -> None:
        arrays: dict[str, Any] = {"key": key, "done": done, "confusion": self.confusion.counts}
        if self.agreement is not None:
            arrays.update(both=self.agreement.both, first=self.agreement.first, second=self.agreement.second)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomically(path, buffer.getvalue())

    def load(self, path: Path, key: str) -> int:
        """Take up the counts of a broken-off measurement; 0 pictures if there is none, or of something else."""
        if not path.is_file():
            return 0
        try:
            with np.load(path, allow_pickle=False) as held:
                if str(held["key"]) != key:
                    return 0
                self.confusion.counts += held["confusion"]
                if self.agreement is not None:
                    self.agreement = Agreement(both=held["both"], first=held["first"], second=held["second"])
                return int(held["done"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(f"{path}: a damaged state of a measurement", cure="delete it") from error


def _state_key(maps: LabelMaps, examples: LabelledSet, against: LabelMaps | None) -> str:
    words = maps.vocabulary
    parts = [examples.fingerprint, str(len(examples)), *words.names, str(words.seen.tolist())]
    for each in (maps,) if against is None else (maps, against):
        segmenter = each.segmenter
        parts += [segmenter.bundle.manifest.seal, segmenter.precision, segmenter.backend.name]
    return "\n".join(parts)


def _report(maps: LabelMaps, examples: LabelledSet, counts: _Counts) -> AccuracyReport:
    segmenter, vocabulary = maps.segmenter, maps.vocabulary
    names, confusion = vocabulary.names, counts.confusion
    background = np.array([name in set(examples.background) for name in names])
    seen = np.asarray(vocabulary.seen, bool)
    pixels = confusion.counts.sum(1)
    return AccuracyReport(
        dataset=examples.name,
        bundle=str(segmenter.bundle.source),
        model=segmenter.bundle.model.name,
        precision=segmenter.precision,
        pictures=len(examples),
        figures=figures(confusion, seen, background),
        classes=tuple(
            ClassRow(
                name=name,
                seen=bool(seen[i]),
                background=bool(background[i]),
                iou=_percent(confusion.iou[i]) if pixels[i] else None,
                accuracy=_percent(confusion.accuracy[i]),
                pixels=int(pixels[i]),
            )
            for i, name in enumerate(names)
        ),
        near_classes=tuple(near_confusion(confusion.counts, names, group) for group in examples.near_classes),
        most_confused=most_confused(confusion.counts, names),
        agreement=counts.agreement,
    )


def near_confusion(counts: npt.NDArray[np.int64], names: tuple[str, ...], group: tuple[str, ...] | Any) -> NearClasses:
    """Share of the group's true pixels that were given another member."""
    members = [names.index(name) for name in group if name in names]
    block = counts[np.ix_(members, members)]
    total = counts[members].sum()
    wrong = block.sum() - np.trace(block)
    return NearClasses(names=tuple(names[i] for i in members), percent=100 * float(wrong / total) if total else 0.0)


def most_confused(counts: npt.NDArray[np.int64], names: tuple[str, ...]) -> tuple[Confused, ...]:
    """The pairs (truth, given) that hold the largest share of their true class's pixels."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    best = np.argsort(-share, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = (divmod(int(place), len(names)) for place in best)
    return tuple(
        Confused(truth=names[row], given=names[column], percent=100 * float(share[row, column]))
        for row, column in pairs
        if share[row, column] > 0
    )


def markdown(reports: list[AccuracyReport]) -> str:
    """Tables for a document: the figures of each data set, then each data set's classes."""
    lines = [
        "| data set | pictures | seen mIoU | new mIoU | harmonic | mIoU | background | pixels | class mean |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        f = report.figures
        values = (
            f.seen_miou, f.new_miou, f.harmonic_miou, f.miou, f.background_miou, f.pixel_accuracy,
            f.mean_class_accuracy,
        )  # fmt: skip
        lines.append(f"| {report.dataset} | {report.pictures} | " + " | ".join(map(percent_text, values)) + " |")
    for report in reports:
        lines += ["", f"## {report.dataset}", "", "| class | seen | IoU | accuracy | pixels |", "|---|---|---|---|---|"]
        for row in report.classes:
            iou, accuracy = ("–" if value is None else f"{value:.1f}" for value in (row.iou, row.accuracy))
            kind = "background" if row.background else "yes" if row.seen else "no"
            lines.append(f"| {row.name} | {kind} | {iou} | {accuracy} | {row.pixels} |")
    return "\n".join(lines) + "\n"


def percent_text(value: float) -> str:
    """0.6123 as 61.2; a dash for NaN."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * float(value), 4)
