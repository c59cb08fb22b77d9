"""How far a quantised graph drifts from the float graph, measured by running both.

A graph with an output `logits`: mean Kullback-Leibler divergence, in nats, of the distributions in
its last axis from those of the float graph. Any other graph: relative L2 error of its outputs, the
largest over outputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Context, Feeds
from optc.core.errors import SampleError, UnsupportedError
from optc.ir.interface import LOGITS
from optc.rewrite.evenly import evenly
from optc.rewrite.quant_apply import apply_plan
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_observe import tokens_of
from optc.rewrite.quant_plan import Plan
from optc.rewrite.quant_sites import find_sites

__all__ = ["DriftMeter", "Trial", "distance", "output_names"]

_KEPT_BYTES = 256 << 20
_USUAL_TRIALS = 10


@dataclasses.dataclass(frozen=True)
class Trial:
    """One measured plan.

    Attributes:
        narrow: How many activations it rounded.
        four_bits: How many constants it wrote in 4 bits.
        float_weights: How many constants it left in float.
        drift: What was measured; infinite where the outputs are not finite.
    """

    narrow: int
    four_bits: int
    float_weights: int
    drift: float


_Key = tuple[frozenset[tuple[str, Grid]], frozenset[str], frozenset[str], frozenset[str]]


def _key(plan: Plan) -> _Key:
    """What tells plans of one pass apart: a constant is never solved in two ways."""
    grids = frozenset(plan.weights.items())
    return grids, frozenset(plan.activations), plan.tokens, frozenset(plan.solved)


def output_names(model: ir.Model) -> list[str]:
    """The outputs that drift is measured at."""
    names = [str(out.name) for out in model.graph.outputs]
    return [LOGITS] if LOGITS in names else names


def distance(name: str, got: Array, expected: Array) -> tuple[float, float]:
    """How far rows [R,V] of an output are from what was expected, summed, and what to divide by.

    Args:
        name: The output: divergences for logits, squared differences for all others.
        got: Of the quantised graph.
        expected: Of the float graph.

    Returns:
        The distance, infinite where `got` is not finite, and the size.
    """
    if not np.isfinite(got).all():
        return math.inf, 1.0
    return _divergence(got, expected) if name == LOGITS else _squares(got, expected)


class DriftMeter:
    """Measures plans against the float graph on the same samples.

    Args:
        model: The float graph; not changed.
        ctx: Has the evaluator.
        samples: What both are run on.
        wants: Which sites, by name, may be touched.

    Raises:
        SampleError: The float graph gives NaN or infinity.
        UnsupportedError: There is no evaluator.
    """

    def __init__(
        self,
        model: ir.Model,
        ctx: Context,
        samples: Sequence[Feeds],
        wants: Callable[[str], bool],
    ):
        if ctx.evaluate is None:
            raise UnsupportedError("drift cannot be measured without a runtime")
        self._model, self._ctx, self._wants = model, ctx, wants
        self._evaluate = ctx.evaluate
        self._samples = list(samples)
        self._fetch = output_names(model)
        self.tokens = sum(tokens_of(feeds) for feeds in self._samples)
        self._known: dict[_Key, Trial] = {}
        self._expected = [self._kept(outputs) for outputs in self._outputs(model)]
        for index, outputs in enumerate(self._expected):
            if not all(np.isfinite(array).all() for array in outputs):
                problem = f"the float graph gives NaN or infinity on calibration sample {index}"
                raise SampleError(problem, remedy="give other calibration data")

    @property
    def is_divergence(self) -> bool:
        """Whether drift is a divergence of distributions, not a relative error."""
        return self._fetch == [LOGITS]

    @property
    def metric(self) -> str:
        """What drift is, in words."""
        return "KL divergence (nats)" if self.is_divergence else "relative L2 error"

    def measure(self, plan: Plan) -> float:
        """Drift of the graph that `plan` makes; infinite where its outputs are not finite."""
        key = _key(plan)
        if key not in self._known:
            trial = self._model.clone()
            sites = find_sites(trial, self._wants).sites
            apply_plan(trial, sites, plan)
            names = {str(site.weight.name) for site in sites}
            drift = self._drift(trial)
            rounded = len(plan.activations) + len(plan.tokens)
            bits = sum(grid.bits == 4 for grid in plan.weights.values())
            floats = len(names - set(plan.weights))
            self._known[key] = Trial(rounded, bits, floats, drift)
            done = len(self._known)
            self._ctx.progress("measuring drift", done, max(done, _USUAL_TRIALS))
        return self._known[key].drift

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Everything measured, in order."""
        return tuple(self._known.values())

    def _drift(self, trial: ir.Model) -> float:
        moved, size = np.zeros(len(self._fetch)), np.zeros(len(self._fetch))
        for got, expected in zip(self._outputs(trial), self._expected, strict=True):
            for output, pair in enumerate(zip(self._kept(got), expected, strict=True)):
                added = distance(self._fetch[output], *pair)
                moved[output] += added[0]
                size[output] += added[1]
        drift = float((moved / np.maximum(size, np.finfo(np.float64).tiny)).max())
        if not math.isfinite(drift):
            return math.inf
        return max(drift, 0.0) if self.is_divergence else math.sqrt(drift)

    def _outputs(self, model: ir.Model) -> Iterator[list[Array]]:
        for got in self._evaluate(model, self._samples, fetch=self._fetch):
            yield [got[name] for name in self._fetch]

    def _kept(self, outputs: list[Array]) -> list[Array]:
        """Rows [R,V] of each output; of logits, evenly spaced ones that fit the memory bound."""
        kept = []
        for array in outputs:
            width = array.shape[-1] if array.ndim else 1
            rows = array.reshape(-1, width).astype(np.float32, copy=False)
            most = max(1, _KEPT_BYTES // (4 * rows.shape[1] * len(self._samples)))
            chosen = evenly(len(rows), most)
            kept.append(rows[chosen] if len(chosen) < len(rows) else rows)
        return kept


def _log_softmax(rows: Array) -> Array:
    shifted: Array = rows - rows.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _divergence(got: Array, expected: Array) -> tuple[float, float]:
    """Sum over rows of KL(expected || got), and the number of rows."""
    right = _log_softmax(expected)
    terms = np.exp(right) * (right - _log_softmax(got))
    return float(terms.sum(dtype=np.float64)), float(len(expected))


def _squares(got: Array, expected: Array) -> tuple[float, float]:
    """Squared distance, and the square of what was expected."""
    moved = np.square(got - expected).sum(dtype=np.float64)
    return float(moved), float(np.square(expected).sum(dtype=np.float64))
