"""`optc bench`."""

from __future__ import annotations

import click

from optc.cli import options
from optc.cli.console import print_json, print_table, reporting


@click.command()
@click.argument("bundle")
@click.option("--against", metavar="BUNDLE", multiple=True, help="Compare; may be repeated.")
@click.option(
    "--prompt-lengths", metavar="N,N", callback=options.numbers, default="32,128",
    show_default=True,
    help="Prompt lengths in tokens.",
)  # fmt: skip
@click.option(
    "--batch", "batches", metavar="N,N", callback=options.numbers, default="1", show_default=True,
    help="Prompts at a time.",
)  # fmt: skip
@click.option("--new-tokens", type=int, default=16, show_default=True, help="Tokens per prompt.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Timed turns.")
@options.as_json
def bench(
    bundle: str,
    against: tuple[str, ...],
    prompt_lengths: tuple[int, ...],
    batches: tuple[int, ...],
    new_tokens: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Time bundles in turns; medians, and ratios to the first (above 1 is faster)."""
    with reporting() as report:
        from optc.api.bench import bench as run

        result = run(
            [bundle, *against],
            prompt_lengths=prompt_lengths,
            batches=batches,
            new_tokens=new_tokens,
            repeats=repeats,
            progress=report.progress,
        )
    if as_json:
        print_json(result.as_json())
        return
    rows = []
    for t in result.timings:
        rate, ratio = t.tokens_per_second, t.tokens_ratio
        rows.append(
            (
                str(t.bundle),
                str(t.case.batch or "-"),
                str(t.case.prompt_tokens or "-"),
                f"{t.seconds * 1e3:.1f}",
                f"{t.seconds_ratio:.2f}",
                "-" if rate is None else f"{rate:.1f}",
                "-" if ratio is None else f"{ratio:.2f}",
            )
        )
    generates = any(t.case.batch for t in result.timings)
    headings = ("bundle", "batch", "prompt", "first token ms" if generates else "samples ms", "x")
    print_table(*headings, "tokens/s", "x ", rows=rows, right=(*headings[1:], "tokens/s", "x "))
