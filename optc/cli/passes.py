"""`optc passes`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from optc.cli import options
from optc.cli.console import print_json, print_table

if TYPE_CHECKING:
    from optc.api.describe import OptionInfo, PassInfo


@click.command()
@click.argument("name", required=False)
@options.as_json
def passes(name: str | None, as_json: bool) -> None:
    """List the passes, or the options of one."""
    from optc.api.describe import describe_pass, describe_passes

    if name is None:
        found = describe_passes()
        if as_json:
            rows = [dataclasses.asdict(info) for info in found]
            print_json({"schema": "optc.passes/1", "passes": rows})
        else:
            _print_all(found)
        return
    info = describe_pass(name)
    if as_json:
        print_json({"schema": "optc.passes/1", "passes": [dataclasses.asdict(info)]})
    else:
        _print_one(info)


def _print_all(found: list[PassInfo]) -> None:
    rows = [(p.name, p.promise or "planned", ", ".join(p.after) or "-", p.summary) for p in found]
    print_table("pass", "promise", "runs after", "what it does", rows=rows)


def _print_one(info: PassInfo) -> None:
    click.echo(f"{info.name}: {info.summary}")
    if info.text:
        click.echo(f"\n{info.text}")
    click.echo(f"\npromise: {info.promise}; runs after: {', '.join(info.after) or 'nothing'}")
    if info.owner != "optc":
        click.echo(f"from the package {info.owner}")
    if not info.options:
        click.echo("it has no options")
        return
    rows = [(o.name, o.type, _default(o), _allowed(o), o.help) for o in info.options]
    print_table("option", "type", "default", "allowed", "what it does", rows=rows)
    name, value = info.options[0].name, _other(info.options[0])
    before = "".join(f"{need}," for need in info.needs)
    click.echo(f"for example: --passes {before}{info.name}:{name}={value}")


def _default(option: OptionInfo) -> str:
    if option.default is None:
        return "auto"
    return str(option.default).lower() if isinstance(option.default, bool) else str(option.default)


def _other(option: OptionInfo) -> str:
    """A value that changes something, where one can be told from the declaration."""
    if isinstance(option.default, bool):
        return str(not option.default).lower()
    others = (choice for choice in option.choices or () if choice != option.default)
    return str(next(others, _default(option)))


def _allowed(option: OptionInfo) -> str:
    if option.choices:
        return ", ".join(str(choice) for choice in option.choices)
    low, high = option.minimum, option.maximum
    if low is None and high is None:
        return "-"
    return f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"
