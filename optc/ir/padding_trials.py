"""Whether a token is treated as padding is treated: tried out, by putting it among others.

Padding in the middle of a row takes nothing from the other tokens but itself:

1. a mask hides its key from every other query, and shows each of them the other keys as before;
2. positions go on behind it as if it were not there, or as before.

What separates documents, rules what a query sees, or weighs a key does something else. Queries at
places of padding may see whatever they like: nobody reads what becomes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.mask_rows import same_rows, seen_keys
from optc.ir.probe import Probe, ProbeFailure, ancestors
from optc.ir.recount import TokenAxes
from optc.ir.thresholds import HIDDEN

__all__ = ["PaddingTrials"]

_COUNT, _FEWER = 8, 5
_PLACES = ((3,), (2, 5), (1, 3, 4, 6), (5, 6, 7))
_Check = Callable[[Array, Array, Array], bool]


class PaddingTrials:
    """Evaluates values with one token at some places and others elsewhere.

    Args:
        model: The model; not changed.
        axes: Axes of the token input.
        usual: Each comparison of the tokens, boolean [B,S], and what comes out for tokens that
            are none of those that are compared with.
        tokens: Which of these comparisons are about one token, for each token.
    """

    def __init__(
        self,
        model: ir.Model,
        axes: TokenAxes,
        usual: Mapping[ir.Value, bool],
        tokens: Mapping[int, set[ir.Value]],
    ):
        self._model = model
        self._axes = axes
        self._usual = dict(usual)
        self._tokens = dict(tokens)

    def unlike(self, mask: ir.Value, *, causal: bool) -> list[int]:
        """Tokens that a mask of attention, [..,S,T], does not treat as padding.

        Args:
            mask: The mask.
            causal: Whether the attention is the tokens' own; otherwise keys are something else,
                and only queries may be hidden.
        """
        check = _hides_keys if causal else _hides_queries
        return [token for token in self._behind(mask) if not self._is_like(mask, token, check)]

    def _is_like(self, mask: ir.Value, token: int, check: _Check) -> bool:
        try:
            usual = _rows(self._content(mask, _COUNT))
            tried = [(places, _rows(found)) for places, found in self._tried(mask, token)]
        except ProbeFailure:
            return False
        return all(
            found.shape == usual.shape and check(found, usual, places) for places, found in tried
        )

    def counts(self, value: ir.Value) -> bool:
        """Whether a value runs over the tokens, is another at each, and passes over padding."""
        try:
            short, usual = (self._content(value, count) for count in (_FEWER, _COUNT))
            tried = [one for token in self._behind(value) for one in self._tried(value, token)]
        except ProbeFailure:
            return False
        if value.dtype == ir.DataType.BOOL or short.ndim != usual.ndim:
            return False
        if any(found.shape != usual.shape for _, found in tried):
            return False
        sizes = zip(short.shape, usual.shape, strict=True)
        grown = [axis for axis, (few, many) in enumerate(sizes) if few != many]
        if len(grown) != 1 or usual.shape[grown[0]] != _COUNT:
            return False
        rows = _over(usual, grown[0])
        if len(np.unique(rows, axis=0)) != len(rows):
            return False
        return all(_passes_over(_over(found, grown[0]), rows, places) for places, found in tried)

    def _behind(self, value: ir.Value) -> list[int]:
        """The tokens that a value depends on."""
        behind = ancestors(value)
        return [token for token, tests in self._tokens.items() if tests & behind]

    def _tried(self, value: ir.Value, token: int) -> Iterator[tuple[Array, Array]]:
        """Places of the token, and what the value is then."""
        for places in map(np.array, _PLACES):
            yield places, self._content(value, _COUNT, self._tokens[token], places)

    def _content(
        self,
        value: ir.Value,
        count: int,
        tests: set[ir.Value] | None = None,
        places: Array | None = None,
    ) -> Array:
        given = {test: np.full((1, count), usual) for test, usual in self._usual.items()}
        for test in tests or ():
            given[test][:, places] ^= True
        return Probe(self._model, self._axes.sizes(count)).run(value, given)


def _rows(mask: Array) -> Array:
    """[..,S,T] as [N,S,T]; queries that are all shown the same are written out.

    Raises:
        ProbeFailure: It does not run over queries.
    """
    whole = np.atleast_2d(mask)
    if whole.shape[-2] not in {1, _COUNT}:
        raise ProbeFailure("it does not run over queries")
    keys = whole.shape[-1] if whole.shape[-1] > 1 else _COUNT
    return np.broadcast_to(whole, (*whole.shape[:-2], _COUNT, keys)).reshape(-1, _COUNT, keys)


def _others(places: Array) -> Array:
    return np.setdiff1d(np.arange(_COUNT), places)


def _hides_keys(found: Array, usual: Array, places: Array) -> bool:
    if found.shape[-1] != _COUNT:
        return False
    others = _others(places)
    seen = seen_keys(np.arange(_COUNT), _COUNT)[others]
    padding = found[:, others][:, :, places]
    hidden = ~padding if padding.dtype == np.bool_ else padding <= HIDDEN
    if not (hidden | ~seen[:, places]).all():
        return False
    left, count = found[:, others][:, :, others], len(others)
    wanted = (usual[:, others][:, :, others], usual[:, :count, :count])
    return any(same_rows(left, kept, seen[:, others]) for kept in wanted)


def _hides_queries(found: Array, usual: Array, places: Array) -> bool:
    left, kept = (mask[:, _others(places)] for mask in (found, usual))
    return same_rows(left, kept, np.ones(left.shape[-2:], np.bool_))


def _over(content: Array, axis: int) -> Array:
    return np.moveaxis(content, axis, 0).reshape(content.shape[axis], -1)


def _passes_over(found: Array, usual: Array, places: Array) -> bool:
    others = _others(places)
    return any(
        np.array_equal(found[others], kept) for kept in (usual[others], usual[: len(others)])
    )
