"""Ask a model in the words of an ONNX graph that was exported elsewhere."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence

import numpy as np
import torch

from optc.core.context import Array
from optc.core.errors import NotYetError, SampleError
from optc.core.session import Port
from optc.frontend.quiet import quiet
from optc.frontend.samples import Limits
from optc.frontend.source import Kind, Source
from optc.frontend.tokens import TOKEN_INPUTS
from optc.frontend.wrap import named_tensors
from optc.ir.interface import LENGTHS, TOKENS, cache_ports
from optc.ir.reference import Reference, Sample

__all__ = ["Fit", "fit_source"]


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a source answers for a graph.

    Attributes:
        source: The source with the inputs, element types and outputs that the graph has, under
            the source's own names.
        inputs: The graph's input name for each of the source's.
        outputs: The graph's output name for each of the source's.
        limits: Axes that the graph fixes.
    """

    source: Source
    inputs: dict[str, str]
    outputs: dict[str, str]
    limits: Limits

    def renamed(self, reference: Reference) -> Reference:
        """A reference in the source's names as one in the graph's."""
        samples = tuple(
            Sample(_rename(s.inputs, self.inputs), _rename(s.outputs, self.outputs))
            for s in reference.samples
        )
        calibration = tuple(_rename(feeds, self.inputs) for feeds in reference.calibration)
        return dataclasses.replace(reference, samples=samples, calibration=calibration)


def _rename(arrays: dict[str, Array], names: dict[str, str]) -> dict[str, Array]:
    return {names[key]: array for key, array in arrays.items()}


def fit_source(source: Source, inputs: Sequence[Port], outputs: Sequence[Port], where: str) -> Fit:
    """Pair the inputs and outputs of a graph with those of a source.

    By name; a graph with a single token input or a single output may call it anything, and so may
    one of a module with as many inputs or outputs as the module.

    Args:
        source: The model.
        inputs: The graph's inputs.
        outputs: The graph's outputs.
        where: The graph, for messages.

    Raises:
        SampleError: The graph has an input or output that the source has not.
        NotYetError: The graph has cache inputs.
    """
    if cache_ports(inputs) or any(port.name == LENGTHS for port in inputs):
        problem = "a graph with cache inputs gets no PyTorch reference yet"
        remedy = "make the reference for the graph without a cache"
        raise NotYetError(problem, where=where, remedy=remedy)
    if source.kind is Kind.MODULE:
        input_names = _pair(source.inputs, [p.name for p in inputs], "input", where)
        example = _as_typed(source.example, input_names, inputs)
        limits = Limits()
    else:
        input_names, example = _token_inputs(source, inputs, where)
        limits = _limits(next(p for p in inputs if p.name == input_names[TOKENS]))
    source = dataclasses.replace(source, example=example)
    available = _available_outputs(source)
    output_names = _pair(available, [p.name for p in outputs], "output", where)
    source = dataclasses.replace(source, outputs=tuple(output_names))
    return Fit(source, input_names, output_names, limits)


def _pair(known: Sequence[str], wanted: Sequence[str], kind: str, where: str) -> dict[str, str]:
    """The wanted name for each known one: by name, else all by position if the numbers agree."""
    if set(wanted) <= set(known):
        return {name: name for name in wanted}
    if len(wanted) == 1 or len(wanted) == len(known):
        return dict(zip(known, wanted, strict=False))
    unknown = next(name for name in wanted if name not in known)
    problem = f"the graph's {kind} '{unknown}' is none of the source's ({', '.join(known)})"
    raise SampleError(problem, where=where, remedy="give the source it was exported from")


def _token_inputs(
    source: Source, inputs: Sequence[Port], where: str
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    takes = inspect.signature(source.module.forward).parameters
    known = [name for name in TOKEN_INPUTS if name in takes]
    names = _pair(known, [p.name for p in inputs], "input", where)
    if TOKENS not in names:
        raise SampleError(f"the graph has no input '{TOKENS}'", where=where)
    ids = source.example[TOKENS]
    return names, _as_typed({name: torch.ones_like(ids) for name in names}, names, inputs)


def _as_typed(
    example: dict[str, torch.Tensor], names: dict[str, str], inputs: Sequence[Port]
) -> dict[str, torch.Tensor]:
    """The example in the element types that the graph wants."""
    types = {port.name: np.dtype(port.dtype) for port in inputs}
    return {
        name: torch.from_numpy(example[name].numpy().astype(types[wanted]))
        for name, wanted in names.items()
    }


def _limits(tokens: Port) -> Limits:
    batch, length = (d if isinstance(d, int) else 0 for d in (*tokens.shape, "", "")[:2])
    return Limits(batch, length)


def _available_outputs(source: Source) -> list[str]:
    """Names of all tensors the model returns, the one that an export would have first."""
    feeds = {k: t.float() if t.is_floating_point() else t for k, t in source.example.items()}
    with torch.inference_mode(), quiet():
        found = list(named_tensors(source.module(**feeds, **source.fixed)))
    return sorted(found, key=lambda name: name not in source.outputs)
