"""`optc targets`."""

from __future__ import annotations

import dataclasses

import click

from optc.cli import options
from optc.cli.console import print_json, print_table


@click.command()
@options.as_json
def targets(as_json: bool) -> None:
    """List the targets, and what is available here and why not."""
    from optc.api.describe import describe_targets

    found = describe_targets()
    if as_json:
        listed = [dataclasses.asdict(info) for info in found]
        print_json({"schema": "optc.targets/1", "targets": listed})
        return
    rows = [(t.name, "yes" if t.available else f"no: {t.reason}", t.summary) for t in found]
    print_table("target", "available here", "what it is", rows=rows)
