"""Options are typed, bounded and documented; a wrong one is answered with what would be right."""

from __future__ import annotations

import dataclasses

import pytest
from toy_passes import Tune

from optc.core.base import Pass
from optc.core.errors import UsageError
from optc.core.grammar import parse_pass
from optc.core.registry import Registry


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tune:level=many", "tune:level: 'many' is not a whole number"),
        ("tune:level=1.5", "tune:level: '1.5' is not a whole number"),
        ("tune:ratio=half", "tune:ratio: 'half' is not a number"),
        ("tune:keep-last=maybe", "tune:keep-last: 'maybe' is not true or false"),
        ("tune:limit=all", "tune:limit: 'all' is not a whole number"),
        ("tune:level=0", "tune:level: 0 is too small, the smallest is 1"),
        ("tune:level=10", "tune:level: 10 is too large, the largest is 9"),
        ("tune:ratio=nan", "tune:ratio: 'nan' is not a finite number"),
        ("tune:limit=-1", "tune:limit: -1 is too small, the smallest is 0"),
        ("tune:scheme=in4", "tune:scheme: 'in4' is not allowed; did you mean 'int4'?"),
        ("tune:group=7", "tune:group: '7' is not allowed; known: 128, 32, 64"),
    ],
)
def test_a_bad_value_names_the_option_and_the_limit(
    text: str, message: str, registry: Registry[Pass]
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pass(text, registry)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("bound", [1, 9])
def test_bounds_are_inclusive(bound: int, registry: Registry[Pass]) -> None:
    assert parse_pass(f"tune:level={bound}", registry) == Tune(level=bound)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("True", True), ("on", True), ("0", False), ("NO", False), ("off", False)],
)
def test_switches_take_the_usual_words(text: str, value: bool, registry: Registry[Pass]) -> None:
    assert parse_pass(f"tune:keep-last={text}", registry) == Tune(keep_last=value)


@pytest.mark.parametrize("word", ["none", "auto", "None"])
def test_an_optional_value_can_be_left_to_the_pass(word: str, registry: Registry[Pass]) -> None:
    assert parse_pass(f"tune:limit={word}", registry) == Tune(limit=None)


def test_a_misspelt_option_is_answered_with_the_nearest(registry: Registry[Pass]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pass("tune:levle=2", registry)
    assert str(caught.value) == "the pass 'tune' has no option 'levle'; did you mean 'level'?"


def test_an_option_of_a_pass_without_options_is_refused(registry: Registry[Pass]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pass("plain:level=2", registry)
    assert str(caught.value) == "the pass 'plain' has no option 'level'; it takes no options"


def test_options_are_the_fields_and_cannot_change() -> None:
    tune = Tune(level=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tune.level = 5  # type: ignore[misc]
    helps = [field.metadata["help"] for field in dataclasses.fields(tune)]
    assert helps[0] == "A bounded whole number."
    assert all(text.endswith(".") for text in helps)
