"""What flows into a weight, as far as rounding it must know: second moments of its inputs.

With inputs X [R,K], the error of the products of weights Q [C,K] in the place of W is
tr((Q-W) G (Q-W)'), G = X'X. Few samples, dead channels and channels that are sums of others make G
singular; a small multiple of the identity is added ("damping", as in GPTQ, Frantar et al., 2022,
arXiv 2210.17323), which also says that a weight should not move far for what was seen once.

Where the graph before the weight has been quantised already, its inputs are Y, not X. Then
|Y Q' - X W'|^2 = tr((Q-T) H (Q-T)') + a constant, with H = Y'Y and T H = W X'Y: the weights are
rounded towards T, which make up for what went wrong before them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from optc.core.context import Array

__all__ = ["DAMPING", "Inputs"]

DAMPING = 0.01


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of the weights that read one activation, ready for use by each of them.

    Attributes:
        gram: Damped and divided by the mean power of a channel, float32 [K,K].
        order: Channels by falling power, int64 [K].
        feedback: M of gram = (I+M) D (I+M)', D diagonal, M zero on and below the diagonal, rows
            and columns in `order`, float32 [K,K]: what the error in one channel does to those
            after it.
        pull: Y'X - Y'Y over the same mean power, float32 [K,K]: gram (T-W)' = pull W'. None for
            nothing.
    """

    gram: Array
    order: Array
    feedback: Array
    pull: Array | None = None

    @classmethod
    def of(cls, gram: Array, cross: Array | None = None, *, damping: float = DAMPING) -> Inputs:
        """Prepare second moments.

        Args:
            gram: Y'Y [K,K] of the inputs that the weights will have, float32 or float64.
            cross: Y'X [K,K] with the inputs X of the original graph, where they differ.
            damping: What is added to the diagonal, as a part of its mean; raised tenfold until
                the sum is positive definite.
        """
        mean = float(np.trace(gram)) / len(gram)
        if mean <= 0:
            return cls._of_nothing(len(gram))
        plain = np.asarray(gram, np.float64) / mean
        plain = (plain + plain.T) / 2
        order = np.argsort(-plain.diagonal(), kind="stable")
        feedback, damped = _factored(plain, order, damping)
        pull = None
        if cross is not None:
            pull = (np.asarray(cross, np.float64) / mean - plain).astype(np.float32)
        return cls(damped.astype(np.float32), order, feedback, pull)

    @classmethod
    def _of_nothing(cls, width: int) -> Inputs:
        """Where nothing flows: rounding to the nearest is as good as any."""
        return cls(
            np.eye(width, dtype=np.float32), np.arange(width), np.zeros((width,) * 2, np.float32)
        )

    def target(self, rows: Array) -> Array:
        """What weights [C,K] should be rounded towards, float32 [C,K]."""
        if self.pull is None:
            return rows
        gram = self.gram.astype(np.float64)
        shift = np.linalg.solve(gram, (self.pull @ rows.T).astype(np.float64)).T
        target: Array = rows + shift.astype(np.float32)
        return target

    def error(self, moved: Array) -> float:
        """tr(E G E') of a difference E [C,K], with the damped gram."""
        return float(np.vdot(moved @ self.gram, moved))


def _factored(plain: Array, order: Array, damping: float) -> tuple[Array, Array]:
    """M in `order`, float32, and the damped gram it belongs to, float64.

    Cholesky's factor is lower triangular: taking the channels from last to first makes it upper.
    """
    backwards = order[::-1]
    while True:
        damped = plain + damping * np.eye(len(plain))
        try:
            lower = np.linalg.cholesky(damped[np.ix_(backwards, backwards)])
        except np.linalg.LinAlgError:
            damping = max(10 * damping, 1e-6)
            continue
        lower /= lower.diagonal()
        feedback = np.ascontiguousarray(lower[::-1, ::-1], np.float32)
        np.fill_diagonal(feedback, 0)
        return feedback, damped
