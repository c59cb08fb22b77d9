"""One exception tree, drawn where it is defined; every message is one line."""

from __future__ import annotations

import re

import pytest

from optc.core import errors
from optc.core.errors import OptcError

TREE_LINE = re.compile(r"^([│├└─ ]*)(\w+) +(\d)\b")


def drawn_tree() -> dict[str, tuple[str, int]]:
    """Name to (parent's name, exit code), read from the module's docstring."""
    drawn: dict[str, tuple[str, int]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").split("```")[1].strip().splitlines():
        match = TREE_LINE.match(line)
        assert match, line
        depth = len(match[1]) // 4
        path[depth:] = [match[2]]
        drawn[match[2]] = (path[depth - 1] if depth else "Exception", int(match[3]))
    return drawn


def defined_tree(cls: type[OptcError] = OptcError) -> dict[str, tuple[str, int]]:
    parent = cls.__base__
    assert parent is not None
    found = {cls.__name__: (parent.__name__, cls.exit_code)}
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            found |= defined_tree(child)
    return found


def test_the_drawn_tree_is_the_defined_tree() -> None:
    assert drawn_tree() == defined_tree()


def test_every_class_is_exported() -> None:
    assert set(errors.__all__) == set(defined_tree())


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ParityError", 1),
        ("PolicyError", 1),
        ("UsageError", 2),
        ("ModelFileError", 2),
        ("SampleError", 2),
        ("OutputError", 2),
        ("MissingDependencyError", 3),
        ("NotYetError", 3),
        ("NotEnoughDiskError", 3),
        ("RefusedError", 3),
        ("NoRewriteError", 3),
        ("PassContractError", 4),
        ("OptcError", 4),
    ],
)
def test_exit_codes(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_a_message_is_place_problem_and_remedy() -> None:
    error = OptcError("it is too small", where="tune:level", remedy="use 3")
    assert str(error) == "tune:level: it is too small; use 3"
    assert str(OptcError("it is too small")) == "it is too small"


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    error = OptcError("the parser said:\n  line 1\n\n  line 2", where="a\nb", remedy="ask\nit")
    assert str(error) == "a b: the parser said: line 1 line 2; ask it"
