"""`optc reference`."""

from __future__ import annotations

import click

from optc.cli import options
from optc.cli.console import print_json, reporting


@click.command()
@click.argument("model")
@click.option(
    "--from", "source", metavar="SOURCE", required=True, help="The PyTorch model; see optc export."
)
@click.option("-o", "--output", metavar="FILE", help="[default: reference.npz beside the model]")
@click.option("--texts", metavar="FILE", help="Text for the samples.  [default: built in]")
@click.option("--samples", type=int, default=8, show_default=True, help="Judged samples.")
@options.seed
@options.as_json
def reference(
    model: str,
    source: str,
    output: str | None,
    texts: str | None,
    samples: int,
    seed: int,
    as_json: bool,
) -> None:
    """Record what PyTorch answers, for a MODEL.onnx that came from elsewhere."""
    with reporting() as report:
        from optc.api.export import reference as run

        path = run(
            model,
            source,
            out=output,
            texts=texts,
            samples=samples,
            seed=seed,
            progress=report.progress,
            log=report.log,
        )
    if as_json:
        print_json({"schema": "optc.reference/1", "reference": str(path)})
    else:
        click.echo(f"wrote {path}")
