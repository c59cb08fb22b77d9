"""Inputs for a model, and what PyTorch answers: the content of `reference.npz`.

* Causal LM: judged samples of varied length, one of them with two rows; calibration sequences;
  prompts with greedy continuations, half of them in the chat template if there is one.
* Encoder: every second sample has two rows of different length, padded on the right.
* Module: the example inputs, then random ones of the same shapes: token ids from all that the
  module has, padding left out, other integers within the example's range.

Without a tokenizer, token ids are random. The same source, text and seed give the same arrays.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from optc.core.context import Array, Feeds, Log, Progress, silent
from optc.core.errors import SampleError
from optc.frontend.greedy import greedy
from optc.frontend.paragraphs import Texts
from optc.frontend.source import Kind, Source
from optc.frontend.token_ids import IdRange
from optc.frontend.tokens import Rows, batch_of, prompt_rows
from optc.frontend.written import written
from optc.ir.reference import Reference, Sample

__all__ = ["Limits", "make_reference"]

# Sizes of the judged samples: 272 tokens in the first eight, which is 50 MB of logits for a
# vocabulary of 49152. The last sample has two rows.
_JUDGED_TOKENS = (48, 16, 40, 24, 32, 20, 36, 28)
_CALIBRATION_TOKENS = 128
_CALIBRATION_COUNT = 16
_WRITTEN_TOKENS = 128
_START_TOKENS = 8
_PROMPTS = 8
_CONTINUATION_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a given graph takes, where it does not take any size.

    Attributes:
        batch: Its fixed batch; 0 for any.
        tokens: Its fixed sequence length; 0 for any.
    """

    batch: int = 0
    tokens: int = 0


def make_reference(
    source: Source,
    texts: Texts,
    *,
    samples: int,
    seed: int,
    progress: Progress,
    limits: Limits | None = None,
    log: Log = silent,
) -> Reference:
    """Make inputs for `source` and record PyTorch's answers.

    Args:
        source: The model.
        texts: Text to make samples of; unused for modules and without a tokenizer.
        samples: Number of judged samples, at least 1.
        seed: Seed of everything random.
        progress: Told after each sample and each continuation.
        limits: Fixed axes of the graph that the samples are for.
        log: Told which integer inputs are the same everywhere, so that samples prove little.

    Raises:
        SampleError: The text is too short for that many samples.
    """
    rng = np.random.default_rng(seed)
    if source.kind is Kind.MODULE:
        feeds = list(_random_feeds(source, samples + _CALIBRATION_COUNT, rng))
        judged, calibration = feeds[:samples], feeds[samples:]
    else:
        limits = limits or Limits()
        judged = list(_judged(source, texts, samples, limits, rng))
        calibration = list(_calibration(source, texts, limits, rng))
        calibration = _with_written(source, calibration, limits, rng, progress)
    constant = _constant(judged) if source.kind is Kind.MODULE else {}
    for name, value in constant.items():
        log(f"the input '{name}' is {value} everywhere in the example, and in every sample")
    prompts = _prompts(source, texts, rng) if source.kind is Kind.CAUSAL_LM else []
    return Reference(
        source="pytorch",
        samples=tuple(_answers(source, judged, progress)),
        calibration=tuple(calibration),
        prompts=tuple(prompts),
        continuations=tuple(_continuations(source, prompts, progress)),
        note=f"PyTorch {torch.__version__}, float32, {source.label}, {texts.label}, seed {seed}",
    )


def _judged(
    source: Source, texts: Texts, count: int, limits: Limits, rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    longest = _limited(max(_JUDGED_TOKENS), source, limits)
    rows = Rows(source, texts.judged, longest, rng, texts.label)
    for i in range(count):
        tokens = _limited(_JUDGED_TOKENS[i % len(_JUDGED_TOKENS)], source, limits)
        pair = i % 2 == 1 if source.kind is Kind.ENCODER else 0 < i == count - 1
        batch = limits.batch or (2 if pair else 1)
        yield _feeds(source, rows, [tokens] * batch, limits)


def _calibration(
    source: Source, texts: Texts, limits: Limits, rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    tokens = _limited(_CALIBRATION_TOKENS, source, limits)
    rows = Rows(source, texts.calibration, tokens, rng, texts.label)
    for i in range(_CALIBRATION_COUNT):
        try:
            yield _feeds(source, rows, [tokens] * (limits.batch or 1), limits)
        except SampleError:
            if i == 0:
                raise
            return  # a user's text is short: calibrate on what there is


def _with_written(
    source: Source,
    given: list[dict[str, Array]],
    limits: Limits,
    rng: np.random.Generator,
    progress: Progress,
) -> list[dict[str, Array]]:
    """Calibration data with texts in between that a causal language model writes itself."""
    length = min(_WRITTEN_TOKENS, source.max_tokens or _WRITTEN_TOKENS)
    starts = [feeds["input_ids"][:1, :_START_TOKENS] for feeds in given if "input_ids" in feeds]
    starts = [start for start in starts if start.shape[1] == _START_TOKENS]
    is_free = not limits.tokens and not limits.batch and list(source.inputs) == ["input_ids"]
    if source.kind is not Kind.CAUSAL_LM or not is_free or not starts or length <= _START_TOKENS:
        return given
    texts = written(source.module, np.concatenate(starts), length, rng, progress)
    own = [{"input_ids": row[None]} for row in texts]
    return [feeds for pair in itertools.zip_longest(given, own) for feeds in pair if feeds]


def _limited(tokens: int, source: Source, limits: Limits) -> int:
    if limits.tokens:
        return limits.tokens
    return min(tokens, source.max_tokens) if source.max_tokens else tokens


def _feeds(source: Source, rows: Rows, sizes: Sequence[int], limits: Limits) -> dict[str, Array]:
    """One batch. With a mask, rows after the first are shorter and padded; else all are equal."""
    if source.kind is Kind.ENCODER and "attention_mask" in source.inputs:
        shrunk = [max(size - size // 3 * min(i, 1), 2) for i, size in enumerate(sizes)]
        return batch_of(source, [rows.take(size) for size in shrunk], limits.tokens)
    taken = [rows.take(size, exactly=bool(limits.tokens)) for size in sizes]
    shortest = min(map(len, taken))
    return batch_of(source, [row[:shortest] for row in taken])


def _random_feeds(
    source: Source, count: int, rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    example = {name: tensor.numpy() for name, tensor in source.example.items()}
    yield example
    for _ in range(count - 1):
        yield {name: _like(a, source.ids.get(name), rng) for name, a in example.items()}


def _like(array: Array, ids: IdRange | None, rng: np.random.Generator) -> Array:
    """Random values of the same shape and type: ids, or integers within the example's range."""
    if ids is not None and array.dtype.kind in "iu":
        known = [i for i in range(ids.count) if i != ids.padding or ids.count == 1]
        return rng.choice(known, array.shape).astype(array.dtype)
    if array.dtype.kind == "b":
        return rng.integers(0, 2, array.shape).astype(bool)
    if array.dtype.kind in "iu":
        return rng.integers(array.min(), array.max(), array.shape, array.dtype, endpoint=True)
    return rng.normal(array.mean(), array.std() or 1.0, array.shape).astype(array.dtype)


def _constant(samples: Sequence[Feeds]) -> dict[str, int]:
    """Integer inputs that have one and the same value everywhere, and that value."""
    found = {}
    for name, array in samples[0].items():
        if array.dtype.kind not in "iu" or not array.size:
            continue
        value = int(array.flat[0])
        if all((sample[name] == value).all() for sample in samples):
            found[name] = value
    return found


def _prompts(source: Source, texts: Texts, rng: np.random.Generator) -> list[Array]:
    rows = prompt_rows(source, texts, _PROMPTS, rng)
    room = source.max_tokens - 1 if source.max_tokens else None
    return [row[:room] for row in rows if row.size]


def _answers(
    source: Source, judged: Sequence[dict[str, Array]], progress: Progress
) -> Iterator[Sample]:
    model = source.wrapped()
    for i, feeds in enumerate(judged):
        yield Sample(feeds, model.answer(feeds))
        progress("PyTorch's answers", i + 1, len(judged))


def _continuations(source: Source, prompts: Sequence[Array], progress: Progress) -> Iterator[Array]:
    longest = max((p.size for p in prompts), default=0)
    room = source.max_tokens - longest if source.max_tokens else _CONTINUATION_TOKENS
    steps = min(_CONTINUATION_TOKENS, room)
    for i, prompt in enumerate(prompts):
        yield greedy(source.module, prompt, steps)
        progress("PyTorch's continuations", i + 1, len(prompts))
