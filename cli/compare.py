"""`ebseg compare`: how far two bundles agree on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .options import engine_options, resize_option, vocabulary_options, vocabulary_source, warn
from .pictures import PICTURES_HELP, describe_failure, find_pictures

if TYPE_CHECKING:
    from ..benchmarks.agreement import Agreement


@click.command(epilog=PICTURES_HELP)
@click.argument("first", metavar="BUNDLE_A", type=click.Path(path_type=Path))
@click.argument("second", metavar="BUNDLE_B", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True)
@vocabulary_options
@resize_option
@engine_options
@click.option("--precision-b", help="Precision of BUNDLE_B; as --precision by default.")
@click.option(
    "--fail-under",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Exit with 1 if fewer pixels agree over all pictures.",
)
@click.option("--json", "as_json", is_flag=True, help="Everything, machine-readable, on stdout.")
@click.pass_context
def command(
    ctx: click.Context,
    first: Path,
    second: Path,
    images: tuple[str, ...],
    vocabulary_file: Path | None,
    classes: str | None,
    dataset: str | None,
    resize: str,
    backend: str,
    threads: int | None,
    precision: str | None,
    sentinel: bool,
    precision_b: str | None,
    fail_under: float | None,
    as_json: bool,
) -> None:
    """Segment IMAGES with two bundles and say how far the label maps agree.

    Of each picture and of all together: the share of pixels with the same class, and the IoU of each class between
    the two. The same bundle may be given twice, with --precision and --precision-b. A vocabulary file fits both
    bundles only if they have the same text encoder; give names with --classes or --dataset if not.
    """
    pictures = find_pictures(images)
    words = vocabulary_source(vocabulary_file, classes, dataset)

    from ..benchmarks.agreement import label_agreement
    from ..runtime.segmenter import Segmenter
    from .progress import progress_bar

    found: dict[Path, Agreement] = {}
    canvases: dict[Path, tuple[str, str]] = {}
    failed: dict[Path, str] = {}
    how: dict[str, Any] = {"backend": backend, "threads": threads, "sentinel": sentinel}
    with (
        Segmenter.load(first, precision=precision, **how) as a,
        Segmenter.load(second, precision=precision_b or precision, **how) as b,
    ):
        with progress_bar("encoding names") as report:
            words_a = a.vocabulary(words, progress=report, warn=warn)
            # Doubts about the names are the same and said once.
            words_b = b.vocabulary(words, progress=report, warn=lambda message: None)
        names = words_a.names
        with progress_bar("pictures") as report:
            for number, picture in enumerate(pictures):
                report(number, len(pictures))
                try:
                    of_a = a(picture, words_a, resize=resize)  # type: ignore[arg-type]  # click checked it
                    of_b = b(picture, words_b, resize=resize)  # type: ignore[arg-type]
                except InputError as error:
                    failed[picture] = describe_failure(picture, error)
                    click.echo(f"error: {failed[picture]}", err=True)
                    continue
                found[picture] = label_agreement(of_a.labels, of_b.labels, len(names))
                canvases[picture] = (str(of_a.canvas), str(of_b.canvas))
    agreements = list(found.values())
    total = sum(agreements[1:], start=agreements[0]) if agreements else None
    summary = _summary(total, names)
    rows = [
        {
            "picture": str(picture),
            "canvas_a": canvases[picture][0],
            "canvas_b": canvases[picture][1],
            "pixel_agreement": agreement.pixel_agreement,
            "mean_iou": agreement.mean_iou,
        }
        for picture, agreement in found.items()
    ]
    if as_json:
        from .tables import print_json

        failures = [{"picture": str(picture), "error": error} for picture, error in failed.items()]
        print_json({"a": str(first), "b": str(second), **summary, "pictures": rows, "failed": failures})
    elif rows:
        _print(rows, summary)
    if failed and len(pictures) > 1:
        click.echo(f"error: {len(failed)} of {len(pictures)} pictures failed, the others are done", err=True)
    too_low = total is not None and fail_under is not None and 100 * total.pixel_agreement < fail_under
    if too_low:
        click.echo(
            f"error: {100 * summary['pixel_agreement']:.3f} % of the pixels agree, wanted {fail_under:g} %", err=True
        )
    ctx.exit(1 if failed or too_low else 0)


def _summary(total: Agreement | None, names: tuple[str, ...]) -> dict[str, Any]:
    """All pictures together, None if there is none; classes that neither bundle saw are left out."""
    if total is None:
        return {"pixels": 0, "pixel_agreement": None, "mean_iou": None, "classes": []}
    classes = [
        {
            "index": i,
            "name": name,
            "iou": float(iou),
            "area_a": int(total.first[i]) / total.pixels,
            "area_b": int(total.second[i]) / total.pixels,
        }
        for i, (name, iou) in enumerate(zip(names, total.class_iou, strict=True))
        if total.first[i] or total.second[i]
    ]
    return {
        "pixels": total.pixels,
        "pixel_agreement": total.pixel_agreement,
        "mean_iou": total.mean_iou,
        "classes": sorted(classes, key=lambda row: row["iou"]),
    }


def _print(rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    from .tables import print_table

    pictures = [
        (row["picture"], row["canvas_a"], row["canvas_b"], _percent(row["pixel_agreement"]), _percent(row["mean_iou"]))
        for row in rows
    ]
    everything = ("all together", "", "", _percent(summary["pixel_agreement"]), _percent(summary["mean_iou"]))
    columns = ("picture", "canvas A", "canvas B", "pixels agree", "mean IoU")
    print_table("Agreement", columns, [*pictures, everything])
    classes = [
        (row["name"], _percent(row["iou"]), _percent(row["area_a"]), _percent(row["area_b"]))
        for row in summary["classes"]
    ]
    print_table("Classes, the least agreed on first", ("class", "IoU", "area A", "area B"), classes)


def _percent(part: float) -> str:
    return f"{100 * part:.2f} %"
