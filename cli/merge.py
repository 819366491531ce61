"""`ebseg merge`: a bundle's graphs as one."""

from __future__ import annotations

from pathlib import Path

import click

from .options import parse_size


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--size", metavar="HxW", callback=parse_size, help="Which canvas; the bundle's first by default.")
@click.option("--precision", help="Which of the bundle's precisions; its first by default.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The graph to make, e.g. one/ebseg.onnx."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads for the check.  Default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    bundle: Path,
    size: tuple[int, int] | None,
    precision: str | None,
    output: Path,
    threads: int | None,
    as_json: bool,
) -> None:
    """Make one ONNX graph of the image encoders, the decoder and the head, for hosts that want one file.

    It takes a picture and the words' embeddings and gives mask logits and class probabilities; the text encoder stays
    a graph of its own. The weights are not copied: the bundle's .weights files appear beside the graph as hard links.
    ONNX Runtime holds the result against the single graphs.
    """
    from ..contract import Size
    from ..errors import InputError
    from ..export.merge import write_merged
    from ..export.merged_spec import MERGED_GRAPHS, merged_spec
    from ..runtime.bundle import Bundle
    from .tables import print_json, print_table

    if output.suffix != ".onnx":
        raise InputError(f"-o {output}: no .onnx file", cure=f"give {output}/ebseg.onnx, or another name that ends so")
    opened = Bundle.open(bundle)
    canvas = opened.sizes[0] if size is None else Size(height=size[0], width=size[1])
    precision = precision or opened.precisions[0]
    differences = write_merged(opened, canvas, precision, output, threads=threads)
    records = [opened.graph(name, canvas, precision) for name in MERGED_GRAPHS]
    spec = merged_spec(records)
    weights = sorted({Path(record.weights).name for record in records if record.weights})
    sides = (("in", spec.inputs), ("out", spec.outputs))
    if as_json:
        print_json(
            {
                "graph": str(output),
                "size": str(canvas),
                "precision": precision,
                "weights": weights,
                "largest_difference": differences,
                "inputs": [{"name": each.name, "dtype": each.dtype, "shape": each.shape} for each in spec.inputs],
                "outputs": [{"name": each.name, "dtype": each.dtype, "shape": each.shape} for each in spec.outputs],
            }
        )
        return
    print_table(
        f"{output}: {precision}, {canvas}; its weights beside it: {', '.join(weights) or 'none'}",
        ("", "tensor", "type", "shape", "largest |Δ| from the single graphs"),
        [
            (
                side,
                each.name,
                each.dtype,
                " × ".join(map(str, each.shape)),
                f"{differences[each.name]:.1e}" if each.name in differences else "",
            )
            for side, tensors in sides
            for each in tensors
        ],
    )
