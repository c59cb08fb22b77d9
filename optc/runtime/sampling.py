"""From logits to a token: greedy, temperature, top-k, top-p."""

from __future__ import annotations

import dataclasses

import numpy as np

from optc.core.context import Array
from optc.core.errors import UsageError

__all__ = ["GREEDY", "Sampling", "choose"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Divisor of the logits; 0 takes the most likely token and ignores the rest.
        top_k: Keep this many of the most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens with at least this probability.
        seed: Seed of the choices; row r of a batch draws from its own stream (seed, r).

    Raises:
        UsageError: A value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"the temperature {self.temperature} is not 0 or larger")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k} is not 0 (all) or larger")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p} is not above 0 and at most 1")
        if self.seed < 0:
            raise UsageError(f"the seed {self.seed} is negative")

    def rng(self, row: int) -> np.random.Generator:
        """The stream of row `row`: what it draws does not depend on the other rows."""
        return np.random.default_rng([self.seed, row])


GREEDY = Sampling()


def choose(logits: Array, sampling: Sampling, rng: np.random.Generator) -> int:
    """Choose one token.

    Args:
        logits: [vocabulary], any float type.
        sampling: How.
        rng: Source of chance; untouched when greedy.

    Returns:
        The token's id; among equals the lowest.
    """
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    scores = logits[order].astype(np.float64) / sampling.temperature
    weights = np.exp(scores - scores[0])
    weights /= weights.sum()
    if sampling.top_p < 1:
        # A token stays while the mass in front of it is below top_p: the first always does.
        before = np.cumsum(weights) - weights
        weights = weights[before < sampling.top_p]
        weights /= weights.sum()
    return int(order[rng.choice(len(weights), p=weights)])
