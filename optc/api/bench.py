"""`bench`: how fast are bundles, beside each other?

Timings on a shared machine drift, so bundles take turns: each repeat runs every case on every
bundle once. The first repeat warms up and is dropped; medians are reported, and ratios to the first
bundle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optc.api.outputs import folder_bytes
from optc.api.sessions import OpenBundle, open_bundle
from optc.api.workload import Workload
from optc.core.context import Progress, no_progress
from optc.core.errors import NotEnoughMemoryError, UnsupportedError, UsageError
from optc.core.machine import memory_bytes
from optc.core.session import encoder_limits
from optc.ir.cache_memory import cache_bytes, gigabytes
from optc.ir.interface import LOGITS, cache_ports, complete_feeds
from optc.runtime.encoder import has_encoder
from optc.runtime.generate import PREFILL_CHUNK, generate
from optc.runtime.limits import smallest_limit

__all__ = ["BenchResult", "Case", "Timing", "bench"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        batch: Number of prompts; 0 for a bundle that does not generate.
        prompt_tokens: Length of each, the encoder's input where there is one; 0 where that is no
            text.
    """

    batch: int = 0
    prompt_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Timing:
    """One bundle on one case; medians over the repeats.

    Attributes:
        bundle: The bundle.
        case: The workload.
        seconds: Time to the first token of all rows, an encoder included, or of one pass over the
            reference samples.
        tokens_per_second: New tokens per second after the first of each row; None for bundles that
            do not generate.
        seconds_ratio: The first bundle's `seconds` over this one's: above 1 is faster.
        tokens_ratio: This bundle's `tokens_per_second` over the first one's: above 1 is faster.
    """

    bundle: Path
    case: Case
    seconds: float
    tokens_per_second: float | None
    seconds_ratio: float
    tokens_ratio: float | None


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """All timings, case by case, bundles in the order given.

    Attributes:
        timings: One per case and bundle.
        bytes: Size of each bundle.
        new_tokens: Tokens generated per row.
        repeats: How often each case was timed.
    """

    timings: tuple[Timing, ...]
    bytes: dict[Path, int]
    new_tokens: int
    repeats: int

    def as_json(self) -> dict[str, Any]:
        """The document `optc.bench/1`; see `docs/json.md`."""
        rows = []
        for timing in self.timings:
            row = dataclasses.asdict(timing)
            rows.append({"bundle": str(row.pop("bundle")), **row.pop("case"), **row})
        return {
            "schema": "optc.bench/1",
            "bundles": [{"path": str(p), "bytes": size} for p, size in self.bytes.items()],
            "new_tokens": self.new_tokens,
            "repeats": self.repeats,
            "timings": rows,
        }


_Sample = tuple[float, float | None]
_FLOAT = 4  # bytes of a logit


def bench(
    bundles: Sequence[str | Path],
    *,
    prompt_lengths: Sequence[int] = (32, 128),
    batches: Sequence[int] = (1,),
    new_tokens: int = 16,
    repeats: int = 5,
    progress: Progress = no_progress,
) -> BenchResult:
    """Time bundles in turns.

    Args:
        bundles: Folders; ratios are to the first.
        prompt_lengths: Prompt lengths in tokens.
        batches: Numbers of prompts per batch.
        new_tokens: New tokens per prompt; at least 2, so that decoding can be timed.
        repeats: How often each case is timed, after one more that warms up.
        progress: Told how far it is.

    Raises:
        UsageError: A number that is too small, or a bundle named twice.
        BundleError: A bundle is damaged or unsafe.
        UnsupportedError: A bundle cannot run a case.
    """
    paths = [Path(bundle) for bundle in bundles]
    if len(set(paths)) < len(paths):
        raise UsageError("a bundle is named twice")
    if min(*prompt_lengths, *batches, repeats) < 1 or new_tokens < 2:
        raise UsageError("lengths, batches and repeats start at 1, new tokens at 2")
    with contextlib.ExitStack() as stack:
        runners = [_Runner(stack.enter_context(open_bundle(path)), new_tokens) for path in paths]
        cases = _cases([runner.workload for runner in runners], batches, prompt_lengths)
        for path, runner in zip(paths, runners, strict=True):
            runner.check(cases, str(path))
        found = _in_turns(runners, cases, repeats, progress)
    sizes = {path: folder_bytes(path) for path in paths}
    return BenchResult(tuple(_timings(paths, cases, found)), sizes, new_tokens, repeats)


class _Runner:
    """Runs cases on one bundle."""

    def __init__(self, opened: OpenBundle, new_tokens: int):
        self._session = opened.session
        self._limit = smallest_limit(opened.session, opened.limit)
        self._new_tokens = new_tokens
        self._encodes = has_encoder(opened.session)
        self.workload = Workload(opened)

    def check(self, cases: Sequence[Case], where: str) -> None:
        """See that there is room for all cases, before any is timed.

        Raises:
            UnsupportedError: There is not; the message names the bundle.
        """
        if not all(case.batch for case in cases):
            return
        longest = max(case.prompt_tokens for case in cases)
        if self._encodes:
            self._check_encoder(longest, where)
            longest = 1  # what an encoder reads is not in the decoder's cache
        self._check_memory(max(case.batch for case in cases), longest, where)
        needed = longest + self._new_tokens - 1
        if self._limit is not None and needed > self._limit.tokens:
            lengths = "--new-tokens" if self._encodes else "--prompt-lengths or --new-tokens"
            problem = f"{needed} tokens do not fit: {self._limit}"
            remedy = f"give smaller numbers to {lengths}"
            raise UnsupportedError(problem, where=where, remedy=remedy)

    def _check_memory(self, rows: int, prompt: int, where: str) -> None:
        """Caches, and the logits of the first step, are most of what grows with the batch."""
        caches = cache_bytes(cache_ports(self._session.inputs), rows, prompt + self._new_tokens)
        shapes = [port.shape for port in self._session.outputs if port.name == LOGITS]
        vocabulary = shapes[0][-1] if shapes else 1
        words = vocabulary if isinstance(vocabulary, int) else 1
        needed = caches + rows * min(prompt, PREFILL_CHUNK) * words * _FLOAT
        there = memory_bytes()
        if there is not None and needed > there:
            problem = f"{rows} prompts at a time need {gigabytes(needed)} for caches and logits"
            raise NotEnoughMemoryError(
                f"{problem}, this machine has {gigabytes(there)}",
                where=where,
                remedy="give smaller numbers to --batch",
            )

    def _check_encoder(self, prompt: int, where: str) -> None:
        most = encoder_limits(self._session).tokens
        if most is not None and prompt > most:
            problem = f"{prompt} tokens do not fit: the encoder has positions for {most}"
            remedy = "give smaller numbers to --prompt-lengths"
            raise UnsupportedError(problem, where=where, remedy=remedy)

    def time(self, case: Case) -> _Sample:
        """Run one case once."""
        if not case.batch:
            return self._time_samples(), None
        rows, inputs = self.workload.make(case.batch, case.prompt_tokens)
        found = generate(self._session, rows, max_new_tokens=self._new_tokens, inputs=inputs)
        return found.stats.ttft_seconds, found.stats.decode_tokens_per_second

    def _time_samples(self) -> float:
        started = time.perf_counter()
        for sample in self.workload.reference.samples:
            self._session.run(complete_feeds(self._session.inputs, sample.inputs))
        return time.perf_counter() - started


def _cases(
    workloads: Sequence[Workload], batches: Sequence[int], prompt_lengths: Sequence[int]
) -> list[Case]:
    """What all bundles can be timed on."""
    if not all(workload.generates for workload in workloads):
        return [Case()]
    kinds = {workload.has_length for workload in workloads}
    if len(kinds) > 1:
        problem = "bundles whose encoders read text cannot be timed beside others"
        raise UsageError(problem, remedy="time them by themselves")
    lengths = prompt_lengths if kinds == {True} else [0]
    return [Case(b, n) for b in batches for n in lengths]


def _in_turns(
    runners: Sequence[_Runner], cases: Sequence[Case], repeats: int, progress: Progress
) -> dict[tuple[int, Case], list[_Sample]]:
    found: dict[tuple[int, Case], list[_Sample]] = {}
    total = (repeats + 1) * len(cases) * len(runners)
    done = 0
    for repeat in range(repeats + 1):
        for case in cases:
            for index, runner in enumerate(runners):
                sample = runner.time(case)
                if repeat:
                    found.setdefault((index, case), []).append(sample)
                done += 1
                progress("timing", done, total)
    return found


def _timings(
    paths: Sequence[Path],
    cases: Sequence[Case],
    found: dict[tuple[int, Case], list[_Sample]],
) -> list[Timing]:
    timings = []
    for case in cases:
        medians = [_medians(found[index, case]) for index in range(len(paths))]
        base_seconds, base_rate = medians[0]
        for path, (seconds, rate) in zip(paths, medians, strict=True):
            ratio = rate / base_rate if rate and base_rate else None
            timings.append(Timing(path, case, seconds, rate, base_seconds / seconds, ratio))
    return timings


def _medians(samples: Sequence[_Sample]) -> _Sample:
    rates = [rate for _, rate in samples if rate is not None]
    return (
        statistics.median(seconds for seconds, _ in samples),
        statistics.median(rates) if rates else None,
    )
