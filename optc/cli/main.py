"""`optc`: the group of all commands, and how errors become one line and an exit code.

Exit codes: 0 good; 1 parity or policy failed; 2 bad input or usage; 3 this machine or target
cannot; 4 a bug of ours; 130 interrupted; 141 the reader of our output went away.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from optc.cli.bench import bench
from optc.cli.bisect import bisect
from optc.cli.build import build
from optc.cli.console import harmless, print_json
from optc.cli.export import export
from optc.cli.inspect import inspect
from optc.cli.package import package
from optc.cli.passes import passes
from optc.cli.reference import reference
from optc.cli.run import run
from optc.cli.targets import targets
from optc.cli.verify import verify
from optc.core.errors import EvidenceError, OptcError, RefusedError

__all__ = ["cli", "main"]

BUG, INTERRUPTED, BROKEN_PIPE = 4, 130, 141


class Group(click.Group):
    """A click group whose commands keep their listed order and whose errors are one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order of a user's day."""
        return list(self.commands)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run one command and leave the process with its exit code."""
        extra["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **extra)
            sys.stdout.flush()
        except Exception as error:
            code = _explain(error, list(sys.argv[1:] if args is None else args))
        except KeyboardInterrupt:
            code = _interrupted()
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a broken pipe must not look like exit code 1, which click makes it."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error


class _ReaderGone(Exception):
    """Whoever read our output has gone."""


def _explain(error: Exception, words: list[str]) -> int:
    """Print one line about `error`, and a document where one was asked for; the exit code."""
    if isinstance(error, _ReaderGone | BrokenPipeError):
        # The interpreter must not flush into the void at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    if isinstance(error, click.exceptions.Abort):
        return _interrupted()
    if os.environ.get("OPTC_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, OptcError):
        answers = isinstance(error, EvidenceError) and words[0] in {"verify", "bisect"}
        if "--json" in words and not answers:  # they have printed a document of their own
            print_json(_document(error))
        return _say(str(error), error.exit_code)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        return _say(_usage(error), error.exit_code)
    if isinstance(error, MemoryError):
        return _say("the machine has not enough memory for this", 3)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return _say(f"a bug of optc ({text}); run with OPTC_DEBUG=1 for the traceback", BUG)


def _document(error: OptcError) -> dict[str, Any]:
    """The document `optc.error/1`; see `docs/json.md`."""
    refusals = error.refusals if isinstance(error, RefusedError) else ()
    return {
        "schema": "optc.error/1",
        "kind": type(error).__name__,
        "exit_code": error.exit_code,
        "problem": error.problem,
        "where": error.where,
        "remedy": error.remedy,
        "refusals": [{"site": site, "reason": reason} for site, reason in refusals],
    }


def _usage(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    ctx = getattr(error, "ctx", None)
    return f"{message}; see '{ctx.command_path} --help'" if ctx else message


def _say(message: str, code: int) -> int:
    click.echo(harmless(f"error: {message}"), err=True)
    return code


def _interrupted() -> int:
    click.echo("interrupted", err=True)
    return INTERRUPTED


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from optc import __version__

        click.echo(f"optc {__version__}")
        ctx.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Print the version.",
)  # fmt: skip
def cli() -> None:
    """A compiler for transformer inference: ONNX in, a verified and optimised bundle out."""


for _command in (
    export, reference, build, verify, run, bench, package, inspect, bisect, passes, targets
):  # fmt: skip
    cli.add_command(_command)


def main() -> NoReturn:
    """Entry point of the `optc` script."""
    cli.main(prog_name="optc")


if __name__ == "__main__":
    main()
