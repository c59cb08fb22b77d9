"""Where the data comes from that a build is judged on and calibrated with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from optc.core.context import Feeds, Log, Progress
from optc.core.errors import ModelFileError, SampleError, UnsupportedError
from optc.core.session import Port
from optc.ir.calibration_file import load_calibration
from optc.ir.interface import ports
from optc.ir.reference import Reference, load_reference
from optc.parity.oracle import make_reference
from optc.parity.signature import table_rows
from optc.targets.evaluate import open_model
from optc.targets.ort_session import OrtSession

__all__ = [
    "REFERENCE",
    "calibration_of",
    "find_reference",
    "given_reference",
    "without_prompts",
]

REFERENCE = "reference.npz"


def find_reference(
    graph: ir.Model,
    model: Path,
    given: str | Path | None,
    *,
    seed: int,
    log: Log,
    progress: Progress,
) -> Reference:
    """The reference named by the user, the one beside the model, or the graph's own answers.

    Raises:
        SampleError: It cannot be read or does not fit the graph.
    """
    reference = given_reference(graph, model, given)
    if reference is None:
        log(f"no {REFERENCE} beside the model: the input graph is its own oracle")
        return _own_answers(graph, model, seed, progress)
    return reference


def given_reference(graph: ir.Model, model: Path, given: str | Path | None) -> Reference | None:
    """The reference named by the user, or the one beside the model; None if there is none.

    Raises:
        SampleError: It cannot be read or does not fit the graph.
    """
    path = model.with_name(REFERENCE) if given is None else Path(given)
    if given is None and not path.is_file():
        return None
    reference = load_reference(path)
    reference.check(*_signature(graph), str(path))
    return reference


def _own_answers(graph: ir.Model, model: Path, seed: int, progress: Progress) -> Reference:
    """The answers of the file as it was given; where it does not run, of what it was read as.

    Files that no runtime takes as they are, such as exports whose rotary tables have a batch of 1,
    are repaired when they are read.
    """

    @contextlib.contextmanager
    def as_given(_: ir.Model) -> Iterator[OrtSession]:
        with OrtSession(model) as session:
            yield session

    try:
        found = make_reference(graph, as_given, seed=seed, progress=progress)
    except (UnsupportedError, SampleError, ModelFileError):
        found = None
    if found is not None and "refused" not in found.note:
        return found
    return make_reference(graph, open_model, seed=seed, progress=progress)


def calibration_of(
    reference: Reference, given: str | Path | None, graph: ir.Model
) -> tuple[Feeds, ...]:
    """Inputs for passes that calibrate: those of the file given, else of the reference.

    Judged samples serve only where there is nothing else.

    Raises:
        SampleError: The file cannot be read or does not fit the graph.
    """
    if given is not None:
        samples = load_calibration(given, ports(graph.graph.inputs))
        _check_ids(samples, graph, str(given))
        return samples
    return reference.calibration or tuple(sample.inputs for sample in reference.samples)


def _check_ids(samples: Sequence[Feeds], graph: ir.Model, where: str) -> None:
    """See that integers which tables are looked up with have a row there."""
    for value in graph.graph.inputs:
        rows, name = table_rows(value), str(value.name)
        for index, feeds in enumerate(samples if rows is not None else ()):
            low, high = int(feeds[name].min()), int(feeds[name].max())
            if rows is not None and not -rows <= low <= high < rows:
                far = f"up to {high}" if high >= rows else f"down to {low}"
                raise SampleError(
                    f"'{name}' goes {far}, the table has {rows} rows",
                    where=f"{where}: calibration {index}",
                    remedy="make the ids with the model's own tokenizer",
                )


def without_prompts(reference: Reference) -> Reference:
    """The samples alone, for an engine that is never given a text to continue by itself."""
    return dataclasses.replace(reference, prompts=(), continuations=())


def _signature(graph: ir.Model) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    return ports(graph.graph.inputs), ports(graph.graph.outputs)
