"""Terminal manners: progress and logs on stderr, results on stdout, JSON as one document."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = [
    "Reporter",
    "harmless",
    "print_fields",
    "print_json",
    "print_rich",
    "print_table",
    "reporting",
    "size",
    "terminal_width",
]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WIDE = 160
_MANY = 10_000


def harmless(text: str) -> str:
    """Text without control characters but newline and tab.

    Names in a model file, and what a model says, may come from anyone; a terminal obeys them.
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class Reporter:
    """Says on stderr what goes on: one line per step, nothing that moves.

    Args:
        quiet: Whether to say nothing about progress, for commands that take a moment only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._last = ""

    def progress(self, what: str, done: int, total: int) -> None:
        """Report `done` of `total` units of `what`; see `optc.core.context.Progress`."""
        if what != self._last and not self._quiet:
            self._last = what
            self.log(f"{what} ...")

    def log(self, text: str) -> None:
        """Print one line."""
        click.echo(harmless(text), err=True)


class BarReporter(Reporter):
    """The same on a terminal, with bars that go away when the work is done.

    Between two pieces of work nothing is drawn, so that text on stdout is not disturbed.
    """

    def __init__(self, bars: Bars):
        super().__init__()
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar of `what`; it disappears when all is done."""
        if not self._tasks:
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, count="")
        count = _count(done, total)
        self._bars.update(self._tasks[what], completed=done, total=total, count=count)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(what))
        if not self._tasks:
            self._bars.stop()

    def log(self, text: str) -> None:
        """Print one line. It ends what went before, also work that stopped early."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self._bars.stop()
        self._bars.console.print(harmless(text), markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def reporting(*, quiet: bool = False) -> Iterator[Reporter]:
    """A reporter that fits what stderr is; `quiet` holds for what is no terminal."""
    if not sys.stderr.isatty():
        yield Reporter(quiet=quiet)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    try:
        yield BarReporter(bars)
    finally:
        bars.stop()


def _count(done: int, total: int) -> str:
    if total <= 1:
        return ""
    return f"{done}/{total}" if total < _MANY else f"{100 * done // total} %"


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def terminal_width() -> int | None:
    """Characters in a line of stdout; None where it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_rich(item: RenderableType) -> None:
    """Print text or a table on stdout, without wrapping where nobody sees the width."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(item)
        return
    console = Console(file=io.StringIO(), width=_WIDE, highlight=False)
    with console.capture() as captured:
        console.print(item)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def print_table(
    *columns: str, rows: Sequence[tuple[str, ...]], right: tuple[str, ...] = ()
) -> None:
    """Print a plain table on stdout.

    Args:
        columns: Headings.
        rows: Cells; all of one length.
        right: Headings of the columns that are flush right.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in columns:
        table.add_column(heading, justify="right" if heading in right else "left")
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))  # Text: brackets are no markup
    print_rich(table)


def print_fields(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values on stdout, values wrapped beside each other."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    for name, value in rows:
        grid.add_row(name, Text(harmless(value)))
    print_rich(grid)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
