"""From logits to a token: greedy, temperature, top-k, top-p."""

from __future__ import annotations

import dataclasses

import numpy as np

from optc.core.context import Array
from optc.core.errors import UnsupportedError, UsageError

__all__ = ["GREEDY", "Sampling", "choose"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Divisor of the logits; 0 takes the most likely token, and takes neither of the
            next two.
        top_k: Keep this many of the most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens with at least this probability.
        seed: Seed of the choices; row r of a batch draws from its own stream (seed, r).

    Raises:
        UsageError: A value out of range, or `top_k` or `top_p` at temperature 0.
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
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            problem = (
                "top-k and top-p choose among likely tokens, and temperature 0 takes the likeliest"
            )
            raise UsageError(
                problem, remedy="give a temperature above 0, such as 0.8, or leave it out"
            )
        if self.seed < 0:
            raise UsageError(f"the seed {self.seed} is negative")

    def rng(self, row: int) -> np.random.Generator:
        """The stream of row `row`: what it draws does not depend on the other rows."""
        return np.random.default_rng([self.seed, row])


GREEDY = Sampling()

_FEW = 256


def choose(logits: Array, sampling: Sampling, rng: np.random.Generator) -> int:
    """Choose one token.

    Args:
        logits: [vocabulary], any float type.
        sampling: How.
        rng: Source of chance; untouched when greedy.

    Returns:
        The token's id; among equals the lowest.

    Raises:
        UnsupportedError: No token is the most likely: the logits are not numbers.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise UnsupportedError("the engine gave logits that are not numbers")
    if sampling.temperature == 0:
        return best
    # The difference first: a quotient by a tiny temperature is too large for a number.
    scores = logits.astype(np.float64) - float(logits[best])
    with np.errstate(over="ignore"):
        weights = np.exp(scores / sampling.temperature)
    if sampling.top_k or sampling.top_p < 1:
        order = _most_likely(weights, sampling.top_k or len(weights), sampling.top_p)
        return int(order[_draw(weights[order], rng)])
    return _draw(weights, rng)


def _most_likely(weights: Array, top_k: int, top_p: float) -> Array:
    """Ids of the tokens that are kept, most likely first, among equals the lowest first.

    Only as many are put in order as are needed: a few hundred of a vocabulary, most of the time.
    """
    count = min(top_k, len(weights)) if top_p == 1 else min(top_k, len(weights), _FEW)
    while True:
        order = _largest(weights, count)
        if top_p == 1:
            return order
        # Top-p is about what top-k left.
        total = weights.sum() if top_k >= len(weights) else weights[_largest(weights, top_k)].sum()
        # A token stays while the mass in front of it is below top_p: the first always does.
        sums = np.cumsum(weights[order])
        if sums[-1] >= top_p * total or count == min(top_k, len(weights)):
            return order[: 1 + int(np.searchsorted(sums[:-1], top_p * total))]
        count = min(top_k, len(weights), 8 * count)


def _largest(weights: Array, count: int) -> Array:
    """Ids of the `count` largest, in order."""
    if count < len(weights):
        least = np.partition(weights, len(weights) - count)[len(weights) - count]
        found = np.flatnonzero(weights >= least)
    else:
        found = np.arange(len(weights))
    order = np.argsort(-weights[found], kind="stable")
    chosen: Array = found[order[:count]]
    return chosen


def _draw(weights: Array, rng: np.random.Generator) -> int:
    """An index, with a probability in proportion to its weight."""
    sums = np.cumsum(weights)
    index = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
    return min(index, len(weights) - 1)  # the product may be rounded up to the sum
