"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["as_json", "calibration", "numbers", "policy", "reference", "seed"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Callback of options that take whole numbers with commas between them."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        problem = f"'{value}' is not a list of whole numbers such as 32,128"
        raise click.BadParameter(problem, ctx, param) from error


as_json: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
)
policy: Decorator = click.option(
    "--policy", metavar="FILE", help="Limits (TOML) to judge by.  [default: from the passes]"
)
reference: Decorator = click.option(
    "--reference",
    metavar="FILE",
    help="Inputs and PyTorch's answers.  [default: reference.npz beside the model]",
)
calibration: Decorator = click.option(
    "--calibration",
    metavar="FILE",
    help="Inputs to calibrate with (.npz): one array per input, samples first, or a reference.",
)
seed: Decorator = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of everything random."
)
