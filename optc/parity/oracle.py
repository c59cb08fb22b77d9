"""A reference for a graph that came without one: the graph itself, on inputs made up for it.

This shows what the passes do to the graph; it cannot show an error of the export. Reports say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Feeds, Progress, no_progress
from optc.core.errors import SampleError, UnsupportedError
from optc.core.session import Session
from optc.ir.interface import LOGITS, TOKENS
from optc.ir.reference import Reference, Sample
from optc.parity.cached import most_likely
from optc.parity.feeds import sample_feeds, token_feeds, token_feeds_refusal
from optc.parity.hook import OpenModel
from optc.parity.signature import InputMaker, table_rows

__all__ = ["make_reference"]

_PROMPT_LENGTHS = (5, 9, 7)
_SAMPLES, _CALIBRATION, _PROMPTS = range(3)  # independent streams of random numbers
# Of the largest logit: far above round-off, far below what another token does to attention.
_CAUSAL_TOLERANCE = 1e-3
_REMEDY = "give a reference with --reference"


def make_reference(
    model: ir.Model,
    open_model: OpenModel,
    *,
    seed: int = 0,
    samples: int = 4,
    calibration: int = 8,
    new_tokens: int = 12,
    progress: Progress = no_progress,
) -> Reference:
    """Run a graph on inputs made from its signature and call the outputs the reference.

    Shapes that the graph refuses (a batch size baked in, say) are left out, and the note says so.
    Where the outputs are next-token logits of a causal model, which is tried out and not guessed,
    there are greedy continuations of random prompts as well.

    Args:
        model: The canonical input graph.
        open_model: Opens it.
        seed: Seed of all values.
        samples: Number of judged samples.
        calibration: Number of inputs for passes that calibrate.
        new_tokens: Length of each greedy continuation.
        progress: Told about each sample and prompt.

    Raises:
        SampleError: No inputs can be made, the graph takes none of them, or it answers NaN.
    """
    maker = InputMaker(model)
    with open_model(model) as session:
        judged = _run(session, [maker.make(i, seed, _SAMPLES) for i in range(samples)], progress)
        prompts = _prompts(model, session, seed)
        continuations = []
        for done, prompt in enumerate(prompts, start=1):
            continuations.append(_continue(session, prompt, new_tokens))
            progress("continuing prompts", done, len(prompts))
    note = f"Random inputs made from the signature, seed {seed}."
    if len(judged) < samples:
        note += f" The graph refused {samples - len(judged)} of {samples} shapes."
    return Reference(
        source="graph",
        samples=tuple(judged),
        calibration=tuple(maker.make(i, seed, _CALIBRATION) for i in range(calibration)),
        prompts=tuple(prompts),
        continuations=tuple(continuations),
        note=note,
    )


def _run(session: Session, samples: Sequence[Feeds], progress: Progress) -> list[Sample]:
    names = tuple(p.name for p in session.outputs if not p.name.startswith("present."))
    found: list[Sample] = []
    refusal: UnsupportedError | None = None
    for done, inputs in enumerate(samples, start=1):
        try:
            outputs = session.run(sample_feeds(session.inputs, inputs), names)
        except UnsupportedError as error:
            refusal = error
            continue
        for name, array in outputs.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                problem = f"on made-up inputs the graph's output '{name}' has NaN in it"
                raise SampleError(problem, remedy=_REMEDY)
        found.append(Sample(dict(inputs), outputs))
        progress("running the input graph", done, len(samples))
    if not found:
        problem = f"the graph takes none of the inputs made from its signature: {refusal}"
        raise SampleError(problem, remedy=_REMEDY) from refusal
    return found


def _prompts(model: ir.Model, session: Session, seed: int) -> list[Array]:
    """Random prompts, if the graph continues texts; none otherwise."""
    tokens = next((value for value in model.graph.inputs if value.name == TOKENS), None)
    rows = None if tokens is None else table_rows(tokens)
    logits = next((port for port in session.outputs if port.name == LOGITS), None)
    if rows is None or logits is None or len(logits.shape) != 3:
        return []
    rng = np.random.default_rng([seed, _PROMPTS])
    prompts = [rng.integers(0, rows, length) for length in _PROMPT_LENGTHS]
    if token_feeds_refusal(session.inputs, [max(prompts, key=len)]) is not None:
        return []
    return prompts if _is_causal(session, prompts[0], rows) else []


def _is_causal(session: Session, prompt: Array, rows: int) -> bool:
    """Whether a later token leaves the logits of the earlier ones alone."""
    first, second = (
        _logits(session, np.append(prompt, token))[: len(prompt)] for token in (0, rows - 1)
    )
    if first.shape[-1] < rows:
        return False  # scores of labels, not of tokens
    moved = np.abs(first.astype(np.float64) - second).max()
    return bool(moved <= _CAUSAL_TOLERANCE * np.abs(first).max())


def _logits(session: Session, tokens: Array) -> Array:
    """Logits [n,V] of one row of tokens [n]."""
    found = session.run(token_feeds(session.inputs, [tokens]), (LOGITS,))[LOGITS]
    return found[0, : len(tokens)]


def _continue(session: Session, prompt: Array, count: int) -> Array:
    return np.array(list(_greedy(session, prompt, count)), np.int64)


def _greedy(session: Session, prompt: Array, count: int) -> Iterator[int]:
    tokens = prompt
    for _ in range(count):
        if token_feeds_refusal(session.inputs, [tokens]) is not None:
            return  # a fixed axis is full
        token = int(most_likely(_logits(session, tokens)[-1]))
        tokens = np.append(tokens, token)
        yield token
