"""The process around the commands: speed of help, exit codes, pipes, bugs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from optc.cli import main as main_module
from optc.cli.main import cli
from optc.core.errors import ParityError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    "export",
    "reference",
    "build",
    "verify",
    "run",
    "bench",
    "package",
    "inspect",
    "bisect",
    "passes",
    "targets",
]


def test_all_commands_are_there_and_explain_themselves() -> None:
    assert cli.list_commands(click.Context(cli)) == COMMANDS
    for name in COMMANDS:
        result = CliRunner().invoke(cli, [name, "--help"], prog_name="optc")
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: optc {name}")


def test_help_and_usage_errors_load_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from optc.cli.main import cli\n"
        "for words in (['--help'], ['build', '--help'], ['build'], ['--version']):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        cli.main(words)\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'rich', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_version_is_the_packages() -> None:
    import optc

    assert CliRunner().invoke(cli, ["--version"]).stdout == f"optc {optc.__version__}\n"


def test_usage_errors_are_one_line_and_say_where_help_is() -> None:
    result = CliRunner().invoke(cli, ["build"], prog_name="optc")
    assert result.exit_code == 2
    assert result.stderr == "error: Missing argument 'MODEL'; see 'optc build --help'\n"
    result = CliRunner().invoke(cli, ["biuld"])
    assert result.exit_code == 2
    assert "Did you mean 'build'?" in result.stderr


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `boom` that raises what is in the list."""
    errors: list[BaseException] = []

    @click.command()
    def boom() -> None:
        click.echo("partial")
        raise errors[0]

    monkeypatch.setitem(cli.commands, "boom", boom)
    return errors


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyError("lost"), 4, "error: a bug of optc (KeyError: 'lost'); run with OPTC_DEBUG=1"),
        (ParityError("too far", where="pass 'x'"), 1, "error: pass 'x': too far"),
        (MemoryError(), 3, "not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
    ],
)
def test_errors_become_a_line_and_a_code(
    error: BaseException, code: int, words: str, raising: list[BaseException]
) -> None:
    raising.append(error)
    result = CliRunner().invoke(cli, ["boom"])
    assert result.exit_code == code
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_debug_shows_the_traceback(
    raising: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTC_DEBUG", "1")
    raising.append(KeyError("lost"))
    result = CliRunner().invoke(cli, ["boom"])
    assert result.exit_code == main_module.BUG
    assert "Traceback" in result.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m optc.cli.main targets --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in {"0", str(main_module.BROKEN_PIPE)}
    assert done.stderr == ""


def test_onnx_runtime_does_not_report_to_its_maker(tmp_path: Path) -> None:
    """Its uploader leaves a file in the temporary folder as soon as it is imported."""
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    code = "import optc, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"
    assert list(tmp_path.iterdir()) == []
