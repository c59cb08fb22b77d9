"""Calibration text that a model writes: drawn from its own distribution, the same every time."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import torch

from optc.core.context import no_progress
from optc.frontend.written import written

LIKELY = np.array([0.6, 0.25, 0.1, 0.05])


class Biased(torch.nn.Module):
    """Gives token t the probability LIKELY[t], whatever came before."""

    def forward(self, input_ids: torch.Tensor) -> Any:
        logits = torch.log(torch.tensor(LIKELY, dtype=torch.float32))
        return types.SimpleNamespace(logits=logits.expand(*input_ids.shape, len(LIKELY)))


class Counting(torch.nn.Module):
    """The token after t is t + 1, for sure; a cache holds how many tokens were seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(
        self, input_ids: torch.Tensor, past_key_values: int | None = None, use_cache: bool = False
    ) -> Any:
        self.seen.append(input_ids.shape[1])
        logits = torch.nn.functional.one_hot((input_ids + 1) % 9, 9) * 1000.0
        return types.SimpleNamespace(logits=logits, past_key_values=(past_key_values or 0) + 1)


def _write(model: Any, count: int = 4, length: int = 40, seed: int = 0) -> np.ndarray:
    starts = np.tile(np.array([[1, 2]]), (count, 1))
    return written(model, starts, length, np.random.default_rng(seed), no_progress)


def test_texts_begin_as_they_are_told_and_have_the_length_asked_for() -> None:
    texts = _write(Biased())
    assert (texts.shape, texts.dtype) == ((4, 40), np.int64)
    assert (texts[:, :2] == [1, 2]).all()


def test_tokens_are_drawn_from_the_models_distribution() -> None:
    drawn = _write(Biased(), count=64, length=102)[:, 2:]
    shares = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    # 6400 draws: four standard errors of a share are at most 0.025
    np.testing.assert_allclose(shares, LIKELY, atol=0.025)
    assert len({tuple(row) for row in drawn.tolist()}) == 64


def test_the_same_seed_gives_the_same_texts() -> None:
    assert (_write(Biased()) == _write(Biased())).all()
    assert (_write(Biased()) != _write(Biased(), seed=1)).any()


def test_a_cache_is_used_where_there_is_one() -> None:
    model = Counting()
    texts = _write(model, count=1, length=8)
    assert texts.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert model.seen == [2, 1, 1, 1, 1, 1]
