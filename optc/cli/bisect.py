"""`optc bisect`."""

from __future__ import annotations

from typing import Any

import click

from optc.cli import options
from optc.cli.console import print_fields, print_json, reporting


@click.command()
@click.argument("model")
@click.option("--passes", metavar="PIPELINE", required=True, help="As for optc build.")
@options.calibration
@options.reference
@options.policy
@options.seed
@options.as_json
def bisect(model: str, passes: str, as_json: bool, **settings: Any) -> None:
    """Name the pass, then the place in the graph, that breaks parity."""
    with reporting() as report:
        from optc.api.bisect import bisect as search
        from optc.core.errors import ParityError

        found = search(model, passes, **settings, progress=report.progress, log=report.log)
    if as_json:
        print_json({"schema": "optc.bisect/1", "model": model, **found.as_dict()})
    elif found.name is None:
        click.echo(found.note)
    else:
        finding = f"{found.note} ({found.probes} graphs measured)"
        print_fields([("pass", found.text), ("site", found.site or "-"), ("finding", finding)])
    if found.name is not None:
        raise ParityError("; ".join(found.violations), where=f"pass '{found.name}'")
