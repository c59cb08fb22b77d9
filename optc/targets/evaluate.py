"""Run graphs that are still in memory: between passes, and for passes that ask for numbers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.core.context import Array, Feeds
from optc.core.errors import PassContractError
from optc.core.registry import suggestion
from optc.ir.interface import complete_feeds
from optc.ir.save import save_model
from optc.targets.ort_faults import optimised
from optc.targets.ort_session import OrtSession

__all__ = ["OrtEvaluator", "check_file", "open_model"]


def check_file(path: Path) -> None:
    """Run the ONNX checker on a model that optc itself wrote.

    The checker is given the path: it then reads no weights, and has no 2 GB limit.

    Raises:
        PassContractError: The file is not valid ONNX.
    """
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        problem = f"the graph is not valid ONNX: {str(error).splitlines()[0]}"
        raise PassContractError(problem) from error


@contextlib.contextmanager
def open_model(
    model: ir.Model, *, threads: int | None = None, check: bool = True
) -> Iterator[OrtSession]:
    """Open a graph in ONNX Runtime by way of a temporary folder, removed at the end.

    Args:
        model: The graph; it is not changed.
        threads: Threads of one operator; the runtime's own choice when None.
        check: Whether to run the ONNX checker first.

    Raises:
        PassContractError: The graph is structurally invalid.
        UnsupportedError: The runtime refuses it.
        OutputError: The temporary folder is full.
    """
    with tempfile.TemporaryDirectory(prefix="optc-") as folder:
        path = save_model(model, Path(folder) / "model.onnx")
        if check:
            check_file(path)
        with OrtSession(path, threads=threads, optimised=optimised(model)) as session:
            yield session


class OrtEvaluator:
    """Implements `optc.core.context.Evaluator`; keeps nothing between calls.

    Args:
        threads: Threads of one operator; the runtime's own choice when None.
    """

    def __init__(self, *, threads: int | None = None):
        self._threads = threads

    def __call__(
        self, model: ir.Model, feeds: Iterable[Feeds], *, fetch: Sequence[str] | None = None
    ) -> Iterator[dict[str, Array]]:
        """Run `model` once per element of `feeds`; see the protocol.

        Only what the fetched values depend on is run.

        Raises:
            PassContractError: `fetch` names a value that the main graph does not have.
            SampleError: An element of `feeds` does not fit the graph.
        """
        graph = model if fetch is None else _with_outputs(model, fetch)
        # An intermediate whose type nobody inferred yet is fine for the runtime, which infers
        # it, and not for the checker, which wants every output declared.
        declared = all(output.dtype is not None for output in graph.graph.outputs)
        with open_model(graph, threads=self._threads, check=declared) as session:
            for sample in feeds:
                yield session.run(complete_feeds(session.inputs, sample))


def _with_outputs(model: ir.Model, fetch: Sequence[str]) -> ir.Model:
    """A copy whose outputs are the values named in `fetch`, without what they do not need."""
    copy = model.clone()
    graph = copy.graph
    values = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    values |= {value.name: value for node in graph for value in node.outputs}
    for name in fetch:
        if name not in values:
            known = [known for known in values if known]
            raise PassContractError(
                f"there is no value '{name}' to fetch", remedy=suggestion(name, known)
            )
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in dict.fromkeys(fetch))
    common.RemoveUnusedNodesPass()(copy)
    return copy
