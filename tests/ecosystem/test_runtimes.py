"""Packaged folders on the real runtimes write the tokens that `optc run` writes."""

from __future__ import annotations

from typing import Any

import pytest
from ecosystem_runs import needs_environment

pytestmark = [pytest.mark.ecosystem, needs_environment]
END = 256


@pytest.fixture(scope="module")
def optimum(packaged: Any) -> dict[str, Any]:
    return dict(packaged.ask("optimum"))


@pytest.fixture(scope="module")
def genai(packaged: Any) -> dict[str, Any]:
    return dict(packaged.ask("genai"))


def ended(rows: list[list[int]]) -> list[list[int]]:
    """Rows up to their end: a batch fills those that are done while others go on."""
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


def test_the_prompts_have_different_answers(packaged: Any) -> None:
    assert len({tuple(row) for row in packaged.greedy}) == len(packaged.greedy)
    assert all(len(set(row)) > 2 for row in packaged.greedy)


def test_optimum_writes_the_same_for_each_prompt(packaged: Any, optimum: dict[str, Any]) -> None:
    assert ended(optimum["alone"]) == packaged.greedy


def test_optimum_writes_the_same_for_a_batch_padded_on_the_left(
    packaged: Any, optimum: dict[str, Any]
) -> None:
    assert ended(optimum["batch"]) == packaged.greedy


def test_optimum_may_bind_its_buffers(packaged: Any, optimum: dict[str, Any]) -> None:
    assert ended(optimum["bound"]) == packaged.greedy


def test_optimum_may_hand_in_a_prompt_in_pieces(optimum: dict[str, Any]) -> None:
    assert optimum["chunked"] == optimum["whole"]


def test_optimum_has_nothing_to_warn_of(optimum: dict[str, Any]) -> None:
    assert "legacy" not in optimum["warnings"]
    assert "position_ids" not in optimum["warnings"]


@pytest.mark.parametrize("way", ["alone", "growing", "in_turns", "rewound"])
def test_genai_writes_the_same_for_each_prompt(
    way: str, packaged: Any, genai: dict[str, Any]
) -> None:
    assert ended(genai[way]) == packaged.greedy


@pytest.mark.parametrize("way", ["batch", "growing_batch"])
def test_genai_writes_the_same_for_a_batch_padded_on_the_right(
    way: str, packaged: Any, genai: dict[str, Any]
) -> None:
    assert ended(genai[way]) == packaged.greedy
