"""The tools that `fusion_coverage` compares, and how one is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxscript.optimizer
from exported import Case, on_words
from exporting import quiet
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from onnxscript.rewriter.ort_fusions import optimize_for_ort

from optc.core.context import Context
from optc.core.errors import OptcError
from optc.ir.flash_attention import flash_attention_nodes
from optc.ir.load import load_canonical
from optc.ir.save import save_model
from optc.passes.flash import Flash

__all__ = ["CONTENDERS", "Outcome", "attempted", "judged"]

Attempt = Callable[[Path], int]
Result = TypeVar("Result")
FUSED_OPS = {"Attention", "MultiHeadAttention", "GroupQueryAttention", "SDPA", "QAttention"}
_WIDEST = {np.dtype(np.float32): 2e-5, np.dtype(np.float16): 2e-2}
# The optimiser's own name for a family, tried before those its documentation recommends for others.
_MODEL_TYPES = {
    "bart": "bart",
    "clip": "clip",
    "gpt_neox": "gpt_neox",
    "phi": "phi",
    "qwen3": "qwen3",
    "swin": "swin",
    "t5": "t5",
    "vit": "vit",
    "whisper": "bart",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one tool made of one file.

    Attributes:
        fused: Attention sites that became one op.
        error: Largest absolute difference from PyTorch; NaN when it does not run.
        problem: Why the result is no good; empty when it is.
    """

    fused: int
    error: float = float("nan")
    problem: str = ""

    def credited(self, sites: int) -> int:
        """Sites that count: none where the result is no good."""
        return 0 if self.problem else min(self.fused, sites)

    def is_whole(self, sites: int) -> bool:
        """Whether all is fused, and right."""
        return self.credited(sites) == sites


def judged(attempts: Callable[[Case], Iterator[Attempt]], case: Case) -> Outcome:
    """The best that a tool does with a file.

    Args:
        attempts: Ways to use the tool; each writes a model to a path and returns how many sites
            it fused.
        case: The file.
    """
    outcomes = [_outcome(attempt, case) for attempt in attempts(case)]
    best = max(outcomes, key=lambda o: (not o.problem, o.fused))
    broken = max(outcomes, key=lambda o: o.fused)
    return best if best.fused or not broken.fused else broken


def attempted(call: Callable[[], Result]) -> Result | BaseException:
    """What a call returns, or what it raises: tools fail in any way, and that is a result."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(call)
    return future.exception() or future.result()


def _outcome(attempt: Attempt, case: Case) -> Outcome:
    made = case.path.with_suffix(".made.onnx")
    with quiet():
        fused = attempted(lambda: attempt(made))
    if isinstance(fused, BaseException):
        return Outcome(0, problem=f"fails: {type(fused).__name__}")
    session = attempted(lambda: onnxruntime.InferenceSession(made, _silent()))
    if isinstance(session, BaseException):
        return Outcome(fused, problem="does not load")
    error = attempted(lambda: max(_difference(session, *sample) for sample in case.samples))
    if isinstance(error, BaseException):
        return Outcome(fused, problem="does not run")
    limit = _WIDEST[case.samples[0][1].dtype]
    return Outcome(fused, error, "" if error <= limit else f"wrong by {error:.0e}")


def _silent() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


def _difference(
    session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray], expected: np.ndarray
) -> float:
    known = {i.name for i in session.get_inputs()}
    got = session.run(None, {name: x for name, x in feeds.items() if name in known})[0]
    got, expected = on_words(got.astype(np.float64), feeds), on_words(expected, feeds)
    return float(np.abs(got - expected).max())


def _as_exported(case: Case) -> Iterator[Attempt]:
    """The file as it is: newer opsets have an op for attention, and may not run for all that."""

    def attempt(made: Path) -> int:
        return _saved(ir.load(case.path), made)

    yield attempt


def _by_optc(case: Case) -> Iterator[Attempt]:
    def attempt(made: Path) -> int:
        model = load_canonical(case.path)
        try:
            Flash().run(model, Context())
        except OptcError:  # some fused, some not: the build would stop here
            model = load_canonical(case.path)
        save_model(model, made)
        return len(list(flash_attention_nodes(model)))

    yield attempt


def _by_onnxscript(case: Case) -> Iterator[Attempt]:
    def plain(made: Path) -> int:
        model, _ = optimize_for_ort(ir.load(case.path))
        return _saved(model, made)

    def optimized(made: Path) -> int:
        model = ir.load(case.path)
        onnxscript.optimizer.optimize(model)
        model, _ = optimize_for_ort(model)
        return _saved(model, made)

    yield plain
    yield optimized


def _saved(model: ir.Model, made: Path) -> int:
    ir.save(model, made)
    return sum(node.op_type in FUSED_OPS for node in model.graph.all_nodes())


def _by_onnxruntime(case: Case) -> Iterator[Attempt]:
    own = [kind for name, kind in _MODEL_TYPES.items() if case.name.startswith(name)]
    for kind in dict.fromkeys([*own, "bert", "gpt2"]):
        yield _with_model_type(case, kind, 0)
        yield _with_model_type(case, kind, None)
    # its masks are counts of words from the left, unless told otherwise
    yield _with_model_type(case, "bert", 0, raw_mask=True)


def _with_model_type(
    case: Case, kind: str, level: int | None, *, raw_mask: bool = False
) -> Attempt:
    options = FusionOptions(kind)
    options.use_raw_attention_mask(raw_mask)

    def attempt(made: Path) -> int:
        model = optimize_model(
            str(case.path),
            model_type=kind,
            num_heads=4,
            hidden_size=32,
            opt_level=level,
            optimization_options=options if raw_mask else None,
        )
        model.save_model_to_file(str(made))
        return sum(node.op_type in FUSED_OPS for node in onnx.load(made).graph.node)

    return attempt


CONTENDERS: dict[str, Callable[[Case], Iterator[Attempt]]] = {
    "as it is": _as_exported,
    "optc flash": _by_optc,
    "onnxscript optimize_for_ort": _by_onnxscript,
    "onnxruntime.transformers": _by_onnxruntime,
}
