"""A reference for a graph that came without one: the graph itself, on inputs made up for it.

Where the graph continues texts, its inputs are texts that it wrote itself, drawn token by token
from its own distribution (as in data-free quantisation: LLM-QAT, Liu et al., 2023). Random tokens
would be far from anything it was trained on: activations that never occur, and a perplexity that a
tiny change moves a lot. Everything else is random, in the range that `optc.parity.signature` finds.

This shows what the passes do to the graph; it cannot show an error of the export. Reports say so.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array, Feeds, Progress, no_progress
from optc.core.errors import SampleError, UnsupportedError
from optc.core.session import Session
from optc.ir.interface import TOKENS
from optc.ir.reference import Reference, Sample
from optc.parity.feeds import sample_feeds
from optc.parity.hook import OpenModel
from optc.parity.padding import valid_positions
from optc.parity.signature import InputMaker
from optc.parity.writer import Writer

__all__ = ["make_reference"]

_SAMPLES, _CALIBRATION = range(2)  # independent streams of random numbers
_ROWS, _ROW_TOKENS = 4, 33  # texts of each stream
_PROMPT_LENGTHS = (5, 9, 7)
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
    there are greedy continuations as well.

    Args:
        model: The canonical input graph.
        open_model: Opens it.
        seed: Seed of all values.
        samples: Number of judged samples.
        calibration: Number of inputs for passes that calibrate.
        new_tokens: Length of each greedy continuation.
        progress: Told about each sample and token.

    Raises:
        SampleError: No inputs can be made, the graph takes none of them, or it answers NaN.
    """
    counts = samples, calibration, new_tokens
    try:
        return _answered(InputMaker(model), model, open_model, seed, counts, progress)
    except SampleError:
        alike = InputMaker(model, alike=True)
        return _answered(alike, model, open_model, seed, counts, progress)


def _answered(
    maker: InputMaker,
    model: ir.Model,
    open_model: OpenModel,
    seed: int,
    counts: tuple[int, int, int],
    progress: Progress,
) -> Reference:
    samples, calibration, new_tokens = counts
    feeds = [maker.make(i, seed, _SAMPLES) for i in range(samples)]
    to_calibrate = [maker.make(i, seed, _CALIBRATION) for i in range(calibration)]
    note = f"Random inputs made from the signature, seed {seed}."
    with open_model(model) as session:
        writer = Writer.of(model, session, seed)
        prompts: list[Array] = []
        if writer is not None:
            note = f"Texts that the input graph wrote itself, seed {seed}."
            texts = writer.texts(2 * _ROWS, _ROW_TOKENS, progress)
            prompts = [text[:n] for text, n in zip(texts, _PROMPT_LENGTHS, strict=False)]
            feeds = _with_texts(feeds, texts[:_ROWS])
            to_calibrate = _with_texts(to_calibrate, texts[_ROWS:])
        judged = _run(session, feeds, progress)
        continuations = [writer.greedy(prompt, new_tokens) for prompt in prompts if writer]
    if len(judged) < samples:
        note += f" The graph refused {samples - len(judged)} of {samples} shapes."
    return Reference(
        source="graph",
        samples=tuple(judged),
        calibration=tuple(to_calibrate),
        prompts=tuple(prompts),
        continuations=tuple(continuations),
        note=note,
    )


def _with_texts(
    samples: Sequence[dict[str, Array]], texts: Sequence[Array]
) -> list[dict[str, Array]]:
    """The samples with texts for token ids; rows of several samples share a text."""
    rows = itertools.cycle(texts)
    changed = []
    for sample in samples:
        ids = sample[TOKENS].copy()
        for row in ids:
            text = next(rows)[: len(row)]
            row[: len(text)] = text
        changed.append({**sample, TOKENS: ids})
    return changed


def _judged(output: Array, inputs: Feeds) -> Array:
    """What is compared of an output: padding may attend to nothing, and be NaN."""
    valid = valid_positions(inputs)
    padded = valid is not None and output.ndim > 2 and output.shape[:2] == valid.shape
    return output[valid] if padded else output


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
            if array.dtype.kind == "f" and np.isnan(_judged(array, inputs)).any():
                problem = f"on made-up inputs the graph's output '{name}' has NaN in it"
                raise SampleError(problem, remedy=_REMEDY)
        found.append(Sample(dict(inputs), outputs))
        progress("running the input graph", done, len(samples))
    if not found:
        problem = f"the graph takes none of the inputs made from its signature: {refusal}"
        raise SampleError(problem, remedy=_REMEDY) from refusal
    return found
