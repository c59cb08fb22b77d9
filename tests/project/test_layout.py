"""Where things are and what they are called; these rules are what lets a reader guess right."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from optc.core.base import Pass, Promise
from optc.core.registry import Registry
from optc.passes import TABLE

LONGEST_FILE = 300
LONGEST_FUNCTION = 60

# Not an error of anybody's: a part of a graph that cannot be probed, caught and put into words.
CAUGHT_INSIDE = {"optc/rewrite/scores.py:NotFused", "optc/ir/probe.py:ProbeFailure"}
CAUGHT_INSIDE |= {"optc/ir/places.py:Mixes", "optc/ir/place_trials.py:Untried"}


def code(root: Path, sources: list[str]) -> Iterator[tuple[str, ast.Module]]:
    """Our own modules, tests excluded."""
    for name in sources:
        if name.endswith(".py") and not name.startswith("tests/"):
            yield name, ast.parse((root / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["passes", "plugins"])
def test_packages_are_relative_links_into_the_top_level(name: str, root: Path) -> None:
    assert str((root / "optc" / name).readlink()) == f"../{name}"
    command = ["git", "ls-files", "--stage", f"optc/{name}"]
    mode = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    assert mode.startswith("120000 ")


def test_the_table_of_passes_is_nothing_but_a_table(root: Path) -> None:
    docstring, table = ast.parse((root / "passes" / "__init__.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(table, ast.Assign)
    assert ast.literal_eval(table.value) == TABLE


@pytest.mark.parametrize("name", TABLE)
def test_a_pass_is_one_file_named_like_it_with_a_test_named_like_it(name: str, root: Path) -> None:
    assert TABLE[name].partition(":")[0] == f"optc.passes.{name}"
    assert (root / "passes" / f"{name}.py").is_file()
    assert sorted((root / "tests" / "passes").glob(f"test_{name}*.py"))


@pytest.mark.parametrize("name", TABLE)
def test_a_pass_declares_itself(name: str) -> None:
    registry: Registry[Pass] = Registry("pass", "passes", Pass, TABLE, points=[])
    cls = registry.load(name)
    assert cls.name == name
    assert cls.promise in {Promise.EXACT, Promise.MEASURED}
    assert cls.__doc__
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for field in dataclasses.fields(cls):
        assert field.metadata["help"], field.name
    cls()  # every option has a default


def test_a_file_can_be_read_in_one_sitting(root: Path, sources: list[str]) -> None:
    sizes = {name: len((root / name).read_text().splitlines()) for name, _ in code(root, sources)}
    assert {name: size for name, size in sizes.items() if size > LONGEST_FILE} == {}


def test_a_function_can_be_seen_at_once(root: Path, sources: list[str]) -> None:
    sizes = {
        f"{name}:{node.name}": body_lines(node)
        for name, module in code(root, sources)
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: size for name, size in sizes.items() if size > LONGEST_FUNCTION} == {}


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    first = function.body[1 if ast.get_docstring(function) and function.body[1:] else 0]
    return (function.end_lineno or 0) - first.lineno + 1


def test_exceptions_are_defined_in_one_place(root: Path, sources: list[str]) -> None:
    """Private ones, that never leave their module, aside."""
    elsewhere = [
        f"{name}:{node.name}"
        for name, module in code(root, sources)
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
        and name != "optc/core/errors.py"
        and not node.name.startswith("_")
    ]
    assert set(elsewhere) <= CAUGHT_INSIDE


def test_a_catch_all_always_raises_something_better(root: Path, sources: list[str]) -> None:
    """Except where the command line turns whatever is left into a sentence and an exit code."""
    hidden = [
        f"{name}:{node.lineno}"
        for name, module in code(root, sources)
        for node in ast.walk(module)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        and name != "optc/cli/main.py"
    ]
    assert hidden == []


def test_names_say_what_a_file_is_about(sources: list[str]) -> None:
    stems = {PurePosixPath(name).stem for name in sources if name.endswith(".py")}
    assert not stems & {"utils", "util", "helpers", "common", "misc"}


def test_test_files_have_names_of_their_own(sources: list[str]) -> None:
    """Pytest imports them by bare name, because test folders are not packages."""
    names = [PurePosixPath(name).name for name in sources if name.startswith("tests/")]
    modules = [name for name in names if name.endswith(".py") and name != "conftest.py"]
    tests = [name for name in modules if name.startswith("test_")]
    assert len(tests) == len(set(tests))
    outside = [name for name in sources if name.startswith("tests/") and "__init__" in name]
    assert all(name.startswith("tests/extension_example/") for name in outside)
