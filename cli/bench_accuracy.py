"""`ebseg bench accuracy`: how right a bundle's label maps are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import engine_options, overlap_option, prepare_output_folder, warn

if TYPE_CHECKING:
    from ..benchmarks.accuracy import AccuracyReport
    from ..benchmarks.labelled_sets import LabelledSet


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--dataset", required=True, metavar="NAME", help="emoji-scenes, or a published benchmark: voc-20, …")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder above the benchmark's own; for emoji-scenes that of `ebseg train fetch-data`.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the pictures, if not in the usual place.")
@click.option("--labels", type=click.Path(path_type=Path), help="Folder of the label files, if not in the usual place.")
@click.option("--scenes", type=click.IntRange(min=1), default=240, show_default=True, help="Of emoji-scenes.")
@click.option("--against", type=click.Path(path_type=Path), help="Another bundle: say how far the two agree.")
@engine_options
@overlap_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for accuracy.json and accuracy.md; a broken-off run goes on from there.",
)
@click.option("--json", "as_json", is_flag=True, help="Everything, machine-readable, on stdout.")  # fmt: skip
def command(
    bundle: Path,
    dataset: str,
    data: Path | None,
    images: Path | None,
    labels: Path | None,
    scenes: int,
    against: Path | None,
    backend: str,
    threads: int | None,
    precision: str | None,
    sentinel: bool,
    overlap: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure mIoU of seen and new classes, accuracy and confusion, on the deployed graphs.

    \b
    emoji-scenes is composed on the spot: scenes by the artists of the training, then by one it never saw.
    A published benchmark is read from its folders in detectron2's layout, under --data:
      ade20k-150          ADEChallengeData2016/{images,annotations_detectron2}/validation
      ade20k-847          ADE20K_2021_17_01/{images_detectron2,annotations_detectron2}/validation
      pascal-context-59   pcontext/val/{image,label}
      pascal-context-459  pcontext_full/val/{image,label}
      voc-20              VOC2012/{images_detectron2,annotations_detectron2}/val
      coco-stuff-171      coco/val2017, coco/stuffthingmaps_detectron2/val2017

    A class that does not occur in the truth counts in no mean. Of emoji-scenes, stuff (sky, grass, …) is background:
    it is left out of the seen and new means and reported by itself.
    """
    from ..benchmarks.accuracy import markdown, measure_accuracy
    from ..benchmarks.calibration_overlap import calibration_overlap
    from ..benchmarks.labelled_sets import EMOJI_SCENES
    from ..runtime.segmenter import Segmenter
    from .progress import progress_bar
    from .tables import print_json

    if output is not None:
        prepare_output_folder(output)
    sets = _sets(dataset, data, images, labels, scenes)
    reports, overlaps = [], []
    how: dict[str, Any] = {"threads": threads, "overlap": overlap, "sentinel": sentinel}
    with Segmenter.load(bundle, backend, precision=precision, **how) as segmenter:
        other = None if against is None else Segmenter.load(against, backend, **how)
        for examples in sets:
            with progress_bar("looking for calibration pictures") as report:
                overlaps.append(calibration_overlap(segmenter.bundle, examples, progress=report))
            if overlaps[-1]:
                warn(f"{examples.name}: {overlaps[-1]}")
        for place, examples in enumerate(sets):
            vocabulary = segmenter.vocabulary(examples.source, warn=lambda line: None)
            pair = None if other is None else (other, other.vocabulary(examples.source, warn=lambda line: None))
            state = None if output is None else output / f".accuracy-{place}.npz"
            with progress_bar(examples.name) as report:
                reports.append(
                    measure_accuracy(segmenter, examples, vocabulary, against=pair, state=state, progress=report)
                )
        if other is not None:
            other.close()
    content, *others = (
        {**report.as_dict(), "calibration_pictures": None if found is None else len(found.same) + len(found.near)}
        for report, found in zip(reports, overlaps, strict=True)
    )
    if dataset == EMOJI_SCENES:
        content["unseen_artist"] = others[0]
    if output is not None:
        import json

        from ..runtime.atomic_write import write_atomically

        write_atomically(output / "accuracy.json", (json.dumps(content, indent=2) + "\n").encode())
        write_atomically(output / "accuracy.md", markdown(reports).encode())
    if as_json:
        print_json(content)
    else:
        _print(reports)


def _sets(dataset: str, data: Path | None, images: Path | None, labels: Path | None, scenes: int) -> list[LabelledSet]:
    from ..benchmarks.labelled_sets import EMOJI_SCENES, EmojiScenes, open_folders

    if dataset == EMOJI_SCENES:
        return [
            EmojiScenes("training artists", scenes, data),
            EmojiScenes("unseen artist", max(1, scenes // 2), data),
        ]
    return [open_folders(dataset, data or Path(), images=images, labels=labels)]


def _print(reports: list[AccuracyReport]) -> None:
    from ..benchmarks.accuracy import percent_text
    from .tables import print_table

    print_table(
        f"{reports[0].bundle}: {reports[0].model}, {reports[0].precision}; percent",
        ("data set", "pictures", "seen mIoU", "new mIoU", "harmonic", "mIoU", "background", "pixels", "class mean"),
        [
            (
                report.dataset, report.pictures,
                *(percent_text(value) for value in (
                    report.figures.seen_miou, report.figures.new_miou, report.figures.harmonic_miou,
                    report.figures.miou, report.figures.background_miou, report.figures.pixel_accuracy,
                    report.figures.mean_class_accuracy,
                )),
            )
            for report in reports
        ],
    )  # fmt: skip
    for report in reports:
        print_table(
            f"{report.dataset}: classes",
            ("class", "kind", "IoU", "accuracy"),
            [
                (
                    row.name,
                    "background" if row.background else "seen" if row.seen else "new",
                    *("-" if value is None else f"{value:.1f}" for value in (row.iou, row.accuracy)),
                )
                for row in report.classes
                if row.pixels
            ],
        )
        if report.near_classes:
            print_table(
                f"{report.dataset}: given another class of the group",
                ("near classes", "percent of pixels"),
                [(", ".join(group.names), f"{group.percent:.1f}") for group in report.near_classes],
            )
        print_table(
            f"{report.dataset}: most confused",
            ("truth", "given", "percent of the truth"),
            [(pair.truth, pair.given, f"{pair.percent:.1f}") for pair in report.most_confused],
        )
        if report.agreement is not None:
            pixels, iou = (percent_text(v) for v in (report.agreement.pixel_agreement, report.agreement.mean_iou))
            click.echo(f"{report.dataset}: the bundles agree on {pixels} % of the pixels, mean IoU {iou} %")
