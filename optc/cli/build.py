"""`optc build`."""

from __future__ import annotations

from typing import Any

import click

from optc.cli import options
from optc.cli.console import print_json, print_rich, reporting, size, terminal_width


@click.command()
@click.argument("model")
@click.option(
    "--passes",
    metavar="PIPELINE",
    required=True,
    help="Passes, in any order: quant,flash,kv or kv:max=4096,quant:scheme=w8. See optc passes.",
)
@click.option(
    "--prefill",
    metavar="PASSES",
    help="Passes in the place of those of the same name, for a second engine that reads prompts.",
)
@click.option(
    "--prefill-from",
    type=int,
    metavar="N",
    help="New tokens from which on the second engine runs a call.  [default: 9]",
)
@click.option("--target", default="ort", show_default=True, help="Runtime to build for.")
@click.option(
    "-o", "--output", "out", metavar="OUT.optc", help="[default: MODEL.optc in this folder]"
)
@click.option("--draft", metavar="DRAFT.onnx", help="Draft model for speculation (planned).")
@options.calibration
@options.reference
@options.policy
@click.option(
    "--evidence",
    default="full",
    show_default=True,
    metavar="full|none",
    help="none: compare nothing, for a model that this machine cannot run.",
)
@click.option("--dump-dir", metavar="DIR", help="Keep the graph after every pass here.")
@click.option(
    "--sm", metavar="N,N", callback=options.numbers, help="GPU architectures, such as 86,89,120."
)
@click.option("--allow-noop", is_flag=True, help="Accept passes that find nothing to rewrite.")
@click.option(
    "--force",
    is_flag=True,
    help="Write the bundle although it misses its policy; try although room is short.",
)
@click.option("--sign-key", metavar="FILE", help="Sign with this private key (PEM).")
@options.seed
@options.as_json
def build(model: str, passes: str, as_json: bool, **settings: Any) -> None:
    """Optimise MODEL.onnx, measure it after every pass, and write a bundle."""
    with reporting() as report:
        from optc.api.build import build as run

        result = run(model, passes, **settings, progress=report.progress, log=report.log)
    if as_json:
        print_json(result.as_json())
        return
    from optc.parity.report import render_table

    print_rich(render_table(result.rows, terminal_width()))
    click.echo(f"evidence: {result.evidence}")
    for sentence in result.left_out:
        click.echo(f"note: {sentence}")
    for sentence in result.violations:
        click.echo(f"forced although {sentence}")
    signed = ", signed" if result.signed else ""
    written = f"wrote {result.bundle} ({size(result.bytes)}{signed})"
    click.echo(f"{written} in {result.seconds:.0f} s")
