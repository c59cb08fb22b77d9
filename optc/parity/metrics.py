"""How far one model's outputs are from another's, summed up sample by sample.

Nothing is stacked: outputs pass through in blocks of rows, in float64, and only sums stay. Where
the outputs hold next-token logits (`logits` [B,S,V] beside the tokens that go in, [B,S]), the
distributions are compared too: Kullback-Leibler divergence, top-1 agreement, and perplexity on the
tokens that followed.

A value that is not finite, a missing output or a wrong shape cannot be averaged away: it is a
*fault*, every metric becomes NaN, and no policy accepts NaN.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from optc.core.context import Array, Feeds
from optc.ir.interface import LOGITS, token_name
from optc.parity.padding import valid_positions

__all__ = ["Accumulator", "Metrics"]

_BLOCK = 1 << 22  # elements looked at together: 32 MiB in float64


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Distance from the reference. Of several outputs, or ways to run, the worst.

    Attributes:
        max_abs: Largest absolute difference of any element.
        rel_l2: L2 norm of the difference over the L2 norm of the reference.
        cosine: Cosine between reference and actual, each a whole output of all samples.
        kl: Mean KL(reference || actual) of the next-token distributions, in nats; None (like the
            next two) where the outputs hold no next-token logits.
        top1: Fraction of positions whose most likely token is the same.
        ppl_ratio: Perplexity over the reference's perplexity on the tokens of the samples.
        greedy_equal: Tokens of the greedy continuations that are the same; None without prompts.
        greedy_total: Tokens of the greedy continuations that were judged.
        max_rel: `max_abs` over the largest magnitude in the reference output.
        faults: What makes the outputs unfit for comparison, each a sentence.
        notes: What was left out of the comparison and why, each a sentence.
    """

    max_abs: float
    rel_l2: float
    cosine: float
    kl: float | None = None
    top1: float | None = None
    ppl_ratio: float | None = None
    greedy_equal: int | None = None
    greedy_total: int | None = None
    max_rel: float | None = None
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_measured(self) -> bool:
        """Whether anything was compared; what could not be is a fault, and counts as compared."""
        return bool(self.faults) or not math.isnan(self.max_abs)

    def worst(self, other: Metrics) -> Metrics:
        """The worse of two measurements, metric by metric; greedy counts stay those of `self`."""
        return dataclasses.replace(
            self,
            max_abs=_larger(self.max_abs, other.max_abs),
            max_rel=_larger_if_any(self.max_rel, other.max_rel),
            rel_l2=_larger(self.rel_l2, other.rel_l2),
            cosine=-_larger(-self.cosine, -other.cosine),
            kl=_larger_if_any(self.kl, other.kl),
            top1=_smaller_if_any(self.top1, other.top1),
            ppl_ratio=_larger_if_any(self.ppl_ratio, other.ppl_ratio),
            faults=_join(self.faults, other.faults),
            notes=_join(self.notes, other.notes),
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON types; a number that is not finite becomes None (see `faults`)."""
        return {key: _jsonable(value) for key, value in dataclasses.asdict(self).items()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _join(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(first + second))


def _larger(first: float, second: float) -> float:
    """The larger one; NaN if either is (the built-in `max` depends on the order then)."""
    return math.nan if math.isnan(first) or math.isnan(second) else max(first, second)


def _larger_if_any(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return _larger(first, second)


def _smaller_if_any(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return -_larger(-first, -second)


@dataclasses.dataclass
class _Sums:
    """Running sums over one output, and over its rows as next-token distributions."""

    max_abs: float = 0.0
    magnitude: float = 0.0
    difference: float = 0.0
    expected: float = 0.0
    actual: float = 0.0
    product: float = 0.0
    rows: int = 0
    kl: float = 0.0
    agreed: int = 0
    judged_tokens: int = 0
    nll_expected: float = 0.0
    nll_actual: float = 0.0

    def add(self, expected: Array, actual: Array) -> None:
        """Add elements; both finite, float64."""
        if not expected.size:
            return
        difference = expected - actual
        self.max_abs = max(self.max_abs, float(np.abs(difference).max()))
        self.magnitude = max(self.magnitude, float(np.abs(expected).max()))
        self.difference += float(np.square(difference).sum())
        self.expected += float(np.square(expected).sum())
        self.actual += float(np.square(actual).sum())
        self.product += float((expected * actual).sum())

    def add_logits(self, expected: Array, actual: Array, following: Array) -> None:
        """Add rows [n,V]; `following` [n] is the token that came next, -1 where not known."""
        with np.errstate(invalid="ignore"):  # -inf - -inf, where a logit is -inf on both sides
            log_p, log_q = _log_softmax(expected), _log_softmax(actual)
            p = np.exp(log_p)
            self.kl += float(np.where(p > 0, p * (log_p - log_q), 0.0).sum())
        self.rows += len(expected)
        self.agreed += int((expected.argmax(axis=-1) == actual.argmax(axis=-1)).sum())
        known = np.flatnonzero(following >= 0)
        self.judged_tokens += len(known)
        self.nll_expected -= float(log_p[known, following[known]].sum())
        self.nll_actual -= float(log_q[known, following[known]].sum())

    @property
    def rel_l2(self) -> float:
        return _ratio(math.sqrt(self.difference), math.sqrt(self.expected))

    @property
    def max_rel(self) -> float:
        return _ratio(self.max_abs, self.magnitude)

    @property
    def cosine(self) -> float:
        norms = math.sqrt(self.expected) * math.sqrt(self.actual)
        if not norms:
            return 1.0 if self.expected == self.actual else 0.0
        return max(-1.0, min(1.0, self.product / norms))

    def metrics(self) -> Metrics:
        """The metrics of this output alone."""
        plain = Metrics(self.max_abs, self.rel_l2, self.cosine, max_rel=self.max_rel)
        if not self.rows:
            return plain
        ppl_ratio = None
        if self.judged_tokens:
            ppl_ratio = _exp((self.nll_actual - self.nll_expected) / self.judged_tokens)
        return dataclasses.replace(
            plain,
            kl=max(0.0, self.kl / self.rows),  # round-off can leave -1e-17
            top1=self.agreed / self.rows,
            ppl_ratio=ppl_ratio,
        )


def _ratio(error: float, size: float) -> float:
    if size:
        return error / size
    return math.inf if error else 0.0


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _log_softmax(rows: Array) -> Array:
    shifted: Array = rows - rows.max(axis=-1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


class Accumulator:
    """Collects the metrics of samples that are added one at a time.

    Args:
        causal: Whether logits at a position predict the token after it, so that perplexity means
            something; those of a masked language model do not.
    """

    def __init__(self, *, causal: bool = True) -> None:
        self._causal = causal
        self._sums: dict[str, _Sums] = {}
        self._faults: dict[str, None] = {}

    def add(self, expected: Feeds, actual: Feeds, inputs: Feeds) -> None:
        """Add one sample.

        Args:
            expected: The reference's outputs by name; all are compared.
            actual: The outputs under judgement, by name; more than `expected` names is fine.
            inputs: The inputs of the sample. Positions where `attention_mask` [B,S] is 0 are left
                out of outputs [B,S,...] of three axes or more; outputs of two axes are always
                compared whole, since [B,S] and [B,D] cannot be told apart.
        """
        for name, wanted in expected.items():
            given = actual.get(name)
            if given is None:
                self._fault(f"the output '{name}' is missing")
            elif given.shape != wanted.shape:
                have, want = list(given.shape), list(wanted.shape)
                self._fault(f"the output '{name}' has shape {have}, the reference's is {want}")
            else:
                self._add_output(name, wanted, given, inputs)

    def _fault(self, sentence: str) -> None:
        self._faults[sentence] = None

    def _add_output(self, name: str, expected: Array, actual: Array, inputs: Feeds) -> None:
        sums = self._sums.setdefault(name, _Sums())
        following = _following_tokens(name, expected, inputs)
        for rows in _blocks(expected, valid_positions(inputs)):
            want, have = _rows(expected, rows), _rows(actual, rows)
            finite = np.isfinite(want) & np.isfinite(have)
            if not (finite | (want == have)).all():
                self._fault(f"the output '{name}' has values that are not finite")
                return
            sums.add(*((want, have) if finite.all() else (want[finite], have[finite])))
            if following is not None:
                known = following[rows] if self._causal else np.full(len(rows), -1)
                sums.add_logits(want, have, known)

    def metrics(self) -> Metrics:
        """The metrics of everything added so far."""
        found = [sums.metrics() for sums in self._sums.values()]
        if self._faults or not found:
            nan = math.nan
            faults = tuple(self._faults) or ("no output was compared",)
            logits = any(sums.rows for sums in self._sums.values())
            token = nan if logits else None
            return Metrics(nan, nan, nan, token, token, token, max_rel=nan, faults=faults)
        worst = found[0]
        for other in found[1:]:
            worst = worst.worst(other)
        return worst


def _rows(array: Array, rows: Array) -> Array:
    width = array.shape[-1] if array.ndim else 1
    return array.reshape(-1, width)[rows].astype(np.float64)


def _blocks(array: Array, valid: Array | None) -> Iterator[Array]:
    """Indices into the array seen as rows of its last axis, a block at a time, padding left out."""
    if not array.size:
        return
    width = array.shape[-1] if array.ndim else 1
    keep = np.ones(array.size // width, bool)
    if valid is not None and array.ndim >= 3 and array.shape[:2] == valid.shape:
        keep = np.repeat(valid.reshape(-1), keep.size // valid.size)
    rows = np.flatnonzero(keep)
    step = max(1, _BLOCK // width)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _following_tokens(name: str, logits: Array, inputs: Mapping[str, Array]) -> Array | None:
    """The token after each position [B*S], -1 where unknown; None if these are no such logits."""
    tokens = inputs.get(token_name(inputs) or "")
    if name != LOGITS or tokens is None or logits.ndim != 3:
        return None
    if tokens.dtype.kind != "i" or tokens.shape != logits.shape[:2]:
        return None
    if tokens.size and int(tokens.max()) >= logits.shape[2]:
        return None  # scores of labels, not of tokens
    following = np.full(tokens.shape, -1, np.int64)
    following[:, :-1] = tokens[:, 1:]
    valid = valid_positions(inputs)
    if valid is not None and valid.shape == tokens.shape:
        following[:, :-1][~valid[:, 1:]] = -1
    return following.reshape(-1)
