"""Run a graph on the reference's samples and prompts and measure how far it is from them.

Every interface is taken: a plain graph as it is, a graph with a cache fed with empty caches. A
graph with a cache is judged on every way to use it, and the worst counts:

1. each sample in one prefill;
2. the longest sample in pieces: a prefill, chunks, single tokens (`optc.parity.cached`);
3. all prompts as one ragged batch, prefilled with padding, then token by token.

Greedy continuations are *teacher-forced*: whatever a graph predicts, the reference's token is fed
next, and every position is judged. As long as all tokens agree this is greedy decoding itself, so
"all equal" means the same text; after a first difference it still says how often they differ,
where free decoding would compare two unrelated texts. A tie in the reference's logits excuses
nothing: the token is the same or it is not.

A graph that gives the logits of one token of each row only (`optc.ir.interface`) is asked for every
position by running each sample token by token as well; with pieces, the ends of the pieces count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from optc.core.context import Array, Feeds, Progress, no_progress
from optc.core.errors import SampleError
from optc.core.session import Session, padding_ids
from optc.ir.cache_memory import check_memory
from optc.ir.interface import DECODER_TOKENS, LENGTHS, LOGITS, TOKENS, cache_ports, token_name
from optc.ir.reference import Reference, Sample
from optc.parity.cached import (
    answers_last,
    most_likely,
    pieces,
    ragged_predictions,
    run_in_pieces,
)
from optc.parity.feeds import capacity, sample_feeds, token_feeds, token_feeds_refusal
from optc.parity.last import at_ends, at_last, is_partial
from optc.parity.left_out import UNJUDGED, left_out, left_out_padded, none_fits
from optc.parity.metrics import Accumulator, Metrics
from optc.parity.padding import valid_positions

__all__ = ["Tap", "compare"]

_NO_PROMPTS = (
    "the reference of an encoder-decoder has samples only, whose tokens are judged one by one"
)


class Tap:
    """Sees what a graph answered while it is compared; the base class forgets it."""

    def outputs(self, index: int, outputs: Feeds) -> None:
        """Outputs of sample `index`, run whole."""

    def predictions(self, tokens: Sequence[Array]) -> None:
        """Most likely tokens along each continuation, int64 [m]; empty where a prompt was skipped.

        Not called where prompts cannot be judged.
        """


def compare(
    session: Session,
    reference: Reference,
    *,
    forced: Sequence[Array] | None = None,
    tap: Tap | None = None,
    progress: Progress = no_progress,
) -> Metrics:
    """Measure `session` against `reference`.

    Args:
        session: The graph under judgement.
        reference: Samples with all their outputs; greedy continuations for causal models.
        forced: Continuations to feed; the reference's own when None. They differ when the
            reference is another graph's predictions along the same text.
        tap: Sees the outputs and predictions.
        progress: Called after each sample and each greedy step.

    Returns:
        The worst metrics over all ways to run; `notes` names what was left out and why.

    Raises:
        SampleError: The samples do not fit the inputs, or none fits in the cache and is without
            padding among its tokens.
        NotEnoughMemoryError: Its caches would not fit in memory.
    """
    check_memory(cache_ports(session.inputs), _rows(reference), copies=2)
    comparison = _Comparison(session, reference, tap or Tap(), progress)
    metrics = comparison.samples()
    if comparison.tokens == DECODER_TOKENS and not reference.prompts:
        comparison.notes.append(f"{UNJUDGED}{_NO_PROMPTS}")
    if metrics.faults or not reference.prompts:
        return dataclasses.replace(metrics, notes=tuple(comparison.notes))
    metrics = comparison.greedy(metrics, reference.continuations if forced is None else forced)
    return dataclasses.replace(metrics, notes=tuple(comparison.notes))


def _rows(reference: Reference) -> int:
    """Most rows that are run at a time."""
    batches = (a.shape[0] for s in reference.samples for a in s.inputs.values() if a.ndim)
    return max(1, len(reference.prompts), max(batches, default=1))


class _Comparison:
    """One comparison; `notes` collects what is left out."""

    def __init__(self, session: Session, reference: Reference, tap: Tap, progress: Progress):
        self.session = session
        self.reference = reference
        self.tap = tap
        self.progress = progress
        self.notes: list[str] = []
        self.cached = any(port.name == LENGTHS for port in session.inputs)
        self.tokens = token_name(port.name for port in session.inputs) or TOKENS
        self.last = self.cached and answers_last(session)
        self.causal = self.cached or bool(reference.prompts)
        self.room = capacity(session.inputs)
        self.padding = padding_ids(session)

    def samples(self) -> Metrics:
        """Judge the samples; in a graph with a cache, the longest one in pieces too."""
        fitting = self._fitting_samples()
        absent = self._absent_outputs()
        if absent:
            nan = float("nan")
            return Metrics(nan, nan, nan, max_rel=nan, faults=absent)
        whole = Accumulator(causal=self.causal)
        for done, (index, sample) in enumerate(fitting, start=1):
            feeds = sample_feeds(self.session.inputs, sample.inputs)
            outputs = self.session.run(feeds, tuple(sample.outputs))
            if self.last and is_partial(sample, outputs):
                whole.add(*at_last(sample, outputs, feeds))
                outputs |= self._token_by_token(sample)
            whole.add(sample.outputs, outputs, sample.inputs)
            self.tap.outputs(index, outputs)
            self.progress("comparing samples", done, len(fitting))
        metrics = whole.metrics()
        if not self.cached or metrics.faults:
            return metrics
        return metrics.worst(self._in_pieces([sample for _, sample in fitting]))

    def _token_by_token(self, sample: Sample) -> dict[str, Array]:
        """Logits [B,S,V] of a graph that gives those of one token at a time."""
        sizes = [1] * sample.inputs[self.tokens].shape[1]
        return run_in_pieces(self.session, sample.inputs, (LOGITS,), sizes)

    def _in_pieces(self, samples: Sequence[Sample]) -> Metrics:
        sample = max(samples, key=lambda s: s.inputs[self.tokens].shape[1])
        shape = sample.inputs[self.tokens].shape
        sizes = pieces(shape[1])
        expected = {k: v for k, v in sample.outputs.items() if v.shape[:2] == shape}
        if not expected:  # a reference that has the logits of last tokens only
            return Metrics(0.0, 0.0, 1.0)
        found = Accumulator(causal=True)
        outputs = run_in_pieces(self.session, sample.inputs, tuple(expected), sizes)
        if not self.last:
            found.add(expected, outputs, sample.inputs)
            return found.metrics()
        found.add(at_ends(expected, sizes), outputs, {})  # too few tokens for statistics of them
        return found.metrics()

    def _absent_outputs(self) -> tuple[str, ...]:
        given = {port.name for port in self.session.outputs}
        wanted = [name for sample in self.reference.samples for name in sample.outputs]
        if self.cached:
            wanted += [cache.present for cache in cache_ports(self.session.inputs)]
        absent = [name for name in dict.fromkeys(wanted) if name not in given]
        return tuple(f"the output '{name}' is missing" for name in absent)

    def _fitting_samples(self) -> list[tuple[int, Sample]]:
        samples = list(enumerate(self.reference.samples))
        if self.cached and any(self.tokens not in sample.inputs for _, sample in samples):
            raise SampleError(f"the graph has a cache, a sample has no '{self.tokens}'")
        if not self.cached:
            return samples
        fed = [_said(sample, self.tokens) for _, sample in samples]
        lengths = [sample.inputs[self.tokens].shape[1] for _, sample in samples]
        kept = self._fitting("samples", lengths, fed)
        if samples and not kept:
            raise none_fits(lengths, self.room, self.notes)
        return [samples[i] for i in kept]

    def _fitting(self, what: str, lengths: Sequence[int], fed: Sequence[Array]) -> list[int]:
        """Indices of what the graph can be fed; says so of the rest."""
        room = self.room
        long = [i for i, length in enumerate(lengths) if room is not None and length > room]
        if long and room is not None:
            self.notes.append(left_out(what, len(lengths), [lengths[i] for i in long], room))
        found = [self.padding.intersection(tokens.reshape(-1).tolist()) for tokens in fed]
        padded = [i for i, ids in enumerate(found) if ids and i not in long]
        if padded:
            token = min(min(found[i]) for i in padded)
            self.notes.append(left_out_padded(what, len(lengths), len(padded), token))
        return [i for i in range(len(lengths)) if i not in {*long, *padded}]

    def greedy(self, metrics: Metrics, forced: Sequence[Array]) -> Metrics:
        """Judge the continuations; returns `metrics` with the counts."""
        kept = self._fitting_prompts(forced)
        prompts = [self.reference.prompts[i] for i in kept]
        rows = [forced[i] for i in kept]
        refusal = self._greedy_refusal(prompts, rows)
        if refusal:
            self.notes.append(f"{UNJUDGED}{refusal}")
            return metrics
        found = self._ragged(prompts, rows) if self.cached else self._one_by_one(prompts, rows)
        predicted = [np.zeros(0, np.int64) for _ in self.reference.prompts]
        for index, tokens in zip(kept, found, strict=True):
            predicted[index] = tokens
        self.tap.predictions(predicted)
        expected = self.reference.continuations
        equal = sum(int((predicted[i] == expected[i]).sum()) for i in kept)
        total = sum(len(expected[i]) for i in kept)
        return dataclasses.replace(metrics, greedy_equal=equal, greedy_total=total)

    def _fitting_prompts(self, forced: Sequence[Array]) -> list[int]:
        pairs = list(zip(self.reference.prompts, forced, strict=True))
        # the last token is predicted, not fed
        fed = [np.concatenate([prompt, row[:-1]]) for prompt, row in pairs]
        kept = self._fitting("prompts", [len(prompt) + len(row) - 1 for prompt, row in pairs], fed)
        return [index for index in kept if len(self.reference.continuations[index])]

    def _greedy_refusal(self, prompts: Sequence[Array], forced: Sequence[Array]) -> str | None:
        if not prompts:
            where = "" if self.room is None else f" fits in the cache of {self.room} tokens"
            return f"no prompt{where or ' has a continuation'}"
        if not any(port.name == LOGITS for port in self.session.outputs):
            return f"the graph has no output '{LOGITS}'"
        fed = [np.concatenate([a, b[:-1]]) for a, b in zip(prompts, forced, strict=True)]
        together = [prompts] if self.cached else [[row] for row in fed]
        refusals = (token_feeds_refusal(self.session.inputs, rows) for rows in together)
        return next((refusal for refusal in refusals if refusal), None)

    def _ragged(self, prompts: Sequence[Array], forced: Sequence[Array]) -> list[Array]:
        steps = []
        total = max(len(row) for row in forced)
        for tokens in ragged_predictions(self.session, prompts, forced):
            steps.append(tokens)
            self.progress("comparing greedy tokens", len(steps), total)
        along = np.stack(steps, axis=1)
        return [along[index, : len(row)] for index, row in enumerate(forced)]

    def _one_by_one(self, prompts: Sequence[Array], forced: Sequence[Array]) -> list[Array]:
        found = []
        for prompt, row in zip(prompts, forced, strict=True):
            fed = np.concatenate([prompt, row[:-1]])
            logits = self.session.run(token_feeds(self.session.inputs, [fed]), (LOGITS,))[LOGITS]
            found.append(most_likely(logits[0, len(prompt) - 1 : len(fed)]))
            self.progress("comparing greedy tokens", len(found), len(prompts))
        return found


def _said(sample: Sample, tokens: str) -> Array:
    """The tokens of a sample without what its mask calls padding."""
    given, real = sample.inputs[tokens], valid_positions(sample.inputs)
    return given if real is None or real.shape != given.shape else given[real]
