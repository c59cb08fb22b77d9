"""Time the kinds of quantised products of a graph on ONNX Runtime, in turn with float.

Sessions have the options of the engine's. The whole takes a few seconds whatever the model is: the
kinds that most weights belong to come first, large weights are cut to fewer channels, and products
that take float less than 20 us are left out, as are those that time does not suffice for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from optc.core.context import Feeds
from optc.core.errors import OutputError, UnsupportedError
from optc.rewrite.quant_grid import Grid
from optc.rewrite.quant_scheme import SCHEMES
from optc.targets.evaluate import open_model
from optc.targets.ort_session import OrtSession
from optc.targets.speed import Instead, Kind, Speed, Timing
from optc.targets.speed_kinds import (
    ACTIVATION,
    IDS,
    cut,
    find_kinds,
    float_graph,
    quantised_graph,
)

__all__ = ["Stopwatch", "in_turn"]

TOKENS = (1, 128)
"""Rows of the activation: a decoding step, and a prompt."""

_SECONDS = 2.5  # for all kinds of a model: little beside a build
_SECONDS_INSTEAD = 1.0  # for all alternatives
_LONGEST_TRIAL = 0.3  # for one kind and number of tokens
_FEWEST, _MOST = 12, 200  # pairs of runs: some for each stretch; what is short has enough with 200
_SHORTEST = 20e-6  # below, most of the time is that of the call, whatever is run
_MOST_ELEMENTS = 2**20  # of a weight: 4 MB in float, a few milliseconds for a prompt
_FEWEST_PRODUCTS = 2**20  # so many multiplications take float less than 20 us on any one core
_ALTERNATIVES = ("int8-dynamic", "w8", "int4")

Run = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Stopwatch:
    """Times products as one target runs them.

    Attributes:
        lower: From the canonical graph to the runtime's own.
        threads: Threads of one operator; the runtime's own choice when None.
        name: Name of the target.
        seconds: Time for all kinds together.
        fewest: Multiplications of a kind that is worth opening.
        timer: Times one kind in about so many seconds, for each number of tokens; small graphs on
            ONNX Runtime when None.
    """

    lower: Callable[[ir.Model], ir.Model]
    threads: int | None = None
    name: str = "ort"
    seconds: float = _SECONDS
    fewest: int = _FEWEST_PRODUCTS
    timer: Callable[[Kind, float], tuple[Timing, ...]] | None = None

    def speeds(self, model: ir.Model) -> tuple[Speed, ...]:
        """Time every kind of `model`, a canonical graph, that is large enough and finds time."""
        kinds = {
            kind: count
            for kind, count in find_kinds(model).items()
            if kind.elements * max(TOKENS) >= self.fewest
        }
        order = sorted(kinds, key=lambda kind: -kind.elements * kinds[kind])
        found: list[Speed] = []
        started = time.perf_counter()
        for number, kind in enumerate(order):
            left = self.seconds - (time.perf_counter() - started)
            if left <= 0:
                break
            timings = self._timed(kind, left / (len(order) - number))
            if timings:
                found.append(Speed(kind, kinds[kind], timings))
        return self._with_remedies(found)

    def _with_remedies(self, found: list[Speed]) -> tuple[Speed, ...]:
        """Try other schemes, once for each trouble, while there is time."""
        deadline = time.perf_counter() + _SECONDS_INSTEAD
        left = {speed.trouble: speed for speed in reversed(found) if speed.slower}
        done: list[Speed] = []
        for speed in found:
            instead = None
            if left.get(speed.trouble) is speed:
                instead = self._instead(speed, (deadline - time.perf_counter()) / len(left))
                del left[speed.trouble]
            done.append(dataclasses.replace(speed, instead=instead))
        return tuple(done)

    def _instead(self, speed: Speed, seconds: float) -> Instead | None:
        """The first scheme that is faster than float wherever this kind is slower."""
        ends = time.perf_counter() + seconds
        for name in _ALTERNATIVES:
            scheme = SCHEMES[name](self.name, Grid(4, symmetric=False), 8)
            grid = scheme.table if speed.kind.is_tied else scheme.narrow
            kind = dataclasses.replace(speed.kind, grid=grid, rounding=scheme.rounding)
            left = ends - time.perf_counter()
            if kind == speed.kind or left <= 0:
                continue
            there = [t for t in self._timed(kind, left / 2) if t.tokens in speed.slower]
            if len(there) == len(speed.slower) and all(timing.is_faster for timing in there):
                return Instead(name, max(timing.ratio for timing in there))
        return None

    def _timed(self, kind: Kind, seconds: float) -> tuple[Timing, ...]:
        """Time one kind for each number of tokens; nothing where the runtime refuses it."""
        if self.timer is not None:
            return self.timer(kind, seconds)
        kind = cut(kind, _MOST_ELEMENTS)
        share = min(seconds / len(TOKENS), _LONGEST_TRIAL)
        try:
            with self._opened(kind) as runs:
                pairs = {tokens: in_turn(*runs(tokens), share) for tokens in TOKENS}
        except (UnsupportedError, OutputError):
            return ()
        return tuple(Timing.of(tokens, found) for tokens, found in pairs.items() if found)

    @contextlib.contextmanager
    def _opened(self, kind: Kind) -> Iterator[Callable[[int], tuple[Run, Run]]]:
        """Runs of the kind in float, and quantised, for a number of tokens."""
        graphs = [self.lower(graph(kind)) for graph in (float_graph, quantised_graph)]
        with contextlib.ExitStack() as stack:
            plain, quantised = (
                stack.enter_context(open_model(graph, threads=self.threads, check=False))
                for graph in graphs
            )
            rng = np.random.default_rng(1)

            def runs(tokens: int) -> tuple[Run, Run]:
                x = rng.standard_normal((tokens, kind.inner), np.float32)
                feeds = {ACTIVATION: x.astype(kind.dtype.numpy())}
                if kind.is_tied:
                    feeds[IDS] = np.zeros(1, np.int64)
                return _run(plain, feeds), _run(quantised, feeds)

            yield runs


def _run(session: OrtSession, feeds: Feeds) -> Run:
    """A run on `feeds`, bound once; it gives its seconds."""
    binding = session.binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output in session.outputs:
        binding.bind_output(output.name)

    def run() -> float:
        started = time.perf_counter()
        session.run_bound(binding)
        return time.perf_counter() - started

    return run


def in_turn(plain: Run, quantised: Run, seconds: float) -> list[tuple[float, float]]:
    """Seconds of both in turn, each first every other time; nothing where float is too fast."""
    for run in (quantised, plain):
        run()
    if min(plain() for _ in range(3)) < _SHORTEST:
        return []
    pairs: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(pairs) < _FEWEST or time.perf_counter() - started < seconds:
        if len(pairs) % 2:
            second = quantised()
            pairs.append((plain(), second))
        else:
            first = plain()
            pairs.append((first, quantised()))
        if len(pairs) == _MOST:
            break
    return pairs
