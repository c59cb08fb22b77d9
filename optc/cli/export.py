"""`optc export`."""

from __future__ import annotations

import click

from optc.cli import options
from optc.cli.console import print_json, reporting


@click.command()
@click.argument("source")
@click.option("-o", "--output", metavar="DIR", required=True, help="Folder to write.")
@click.option("--opset", type=int, default=18, show_default=True, help="Opset of the graph.")
@click.option("--texts", metavar="FILE", help="Text for the samples.  [default: built in]")
@click.option("--samples", type=int, default=8, show_default=True, help="Judged samples.")
@options.seed
@options.as_json
def export(
    source: str,
    output: str,
    opset: int,
    texts: str | None,
    samples: int,
    seed: int,
    as_json: bool,
) -> None:
    """Export a PyTorch model to ONNX, with what PyTorch answers.

    SOURCE is a Hugging Face-format folder, a GGUF file, or package.module:factory.
    """
    with reporting() as report:
        from optc.api.export import export as run

        model = run(
            source,
            output,
            opset=opset,
            texts=texts,
            samples=samples,
            seed=seed,
            progress=report.progress,
            log=report.log,
        )
    if as_json:
        print_json({"schema": "optc.export/1", "model": str(model)})
    else:
        click.echo(f"wrote {model}")
