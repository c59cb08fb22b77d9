"""`optc package`."""

from __future__ import annotations

import click

from optc.cli import options
from optc.cli.console import print_json, reporting, size


@click.command()
@click.argument("bundle")
@click.option(
    "--for", "ecosystem", metavar="NAME", required=True,
    help="optimum (ORTModelForCausalLM) or genai (onnxruntime-genai).",
)  # fmt: skip
@click.option("-o", "--output", "out", metavar="DIR", required=True, help="A new folder.")
@click.option(
    "--context", metavar="N", type=int,
    help="Most tokens of a sequence.  [default: what the bundle says]",
)  # fmt: skip
@options.as_json
def package(bundle: str, ecosystem: str, out: str, context: int | None, as_json: bool) -> None:
    """Write a folder that another runtime of generators runs."""
    with reporting() as report:
        from optc.api.package import package as run

        result = run(bundle, ecosystem, out, context=context, progress=report.progress)
    document = result.as_json()
    if as_json:
        print_json(document)
        return
    limit = f"sequences of up to {result.context} tokens"
    click.echo(f"wrote {result.folder} ({size(document['bytes'])}) for {ecosystem}, {limit}")
    for note in result.notes:
        click.echo(f"note: {note}")
