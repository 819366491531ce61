"""`ebseg verify`: is this bundle what was exported, and do its graphs compute here what the model computed there?"""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import BundleError
from .progress import progress_bar


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--hashes-only", is_flag=True, help="Check files and seal alone; run no graph.")
@click.option("--backend", default="auto", show_default=True, help="Execution engine; auto picks one.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads inside one operator; the engine decides.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable results on stdout.")
def command(bundle: Path, hashes_only: bool, backend: str, threads: int | None, as_json: bool) -> None:
    """Check a bundle: the hash of every file, the manifest's seal, and every graph's numbers.

    The graphs run on the picture the bundle carries and are held against what PyTorch gave at export. Exit code 1 if
    anything differs.
    """
    from ..runtime.bundle import Bundle
    from .tables import print_json, print_table

    opened = Bundle.open(bundle)
    files = len(opened.manifest.files)
    if hashes_only:
        if as_json:
            print_json({"bundle": str(bundle), "files": files, "passed": True, "outputs": []})
        else:
            click.echo(f"{bundle}: {files} files and the manifest are as they were written")
        return

    from ..runtime.backends import open_backend
    from ..runtime.known_bad import explanation
    from ..runtime.verify import verify_bundle

    with open_backend(backend, threads=threads) as engine, progress_bar("verifying graphs") as report:
        outputs = verify_bundle(opened, engine, progress=report)
        host = engine.gpu_host()
    failed = [output for output in outputs if not output.passed]
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "files": files,
                "passed": not failed,
                "outputs": [
                    {
                        "graph": output.graph,
                        "size": str(output.size),
                        "precision": output.precision,
                        "output": output.output,
                        "largest": output.largest,
                        "relative": output.relative,
                        "tolerance": output.tolerance,
                        "passed": output.passed,
                    }
                    for output in outputs
                ],
            }
        )
    else:
        print_table(
            f"{bundle}: {files} files are as they were written; graphs on the reference picture, against PyTorch "
            "(relative: the worst 5 % of the queries left out)",
            ("graph", "size", "precision", "output", "largest |Δ|", "relative", "allowed", ""),
            [
                (
                    output.graph,
                    output.size,
                    output.precision,
                    output.output,
                    f"{output.largest:.1e}",
                    f"{output.relative:.1e}",
                    f"{output.tolerance:.0e}",
                    "ok" if output.passed else "DIFFERS",
                )
                for output in outputs
            ],
        )
    if failed:
        worst = max(failed, key=lambda output: output.relative)
        message = (
            f"bundle {bundle}: {len(failed)} of {len(outputs)} outputs differ, most {worst.graph} {worst.output}: "
            f"relative deviation {worst.relative:.1e}, allowed {worst.tolerance:.0e}"
        )
        if host is not None:
            first = failed[0]  # what follows it differs because of it
            known = explanation(host, opened.graph(first.graph, first.size, first.precision))
            message += f"; the first is {first.graph}{f'; {known}' * bool(known)}"
        raise BundleError(message, cure="try --backend onnxruntime; if it differs there too, export the bundle again")
