"""The `ort` target: one ONNX file and its weights, for ONNX Runtime on any CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import onnxruntime

from optc.core.errors import OptcError
from optc.core.session import Port
from optc.ir.external import check_external_data
from optc.ir.interface import ports
from optc.targets.base import Target
from optc.targets.ort_roles import OrtRoles
from optc.targets.ort_session import OrtSession

if TYPE_CHECKING:
    import onnx_ir as ir

    from optc.targets.speed import Speed

__all__ = ["ENGINE", "PREFILL", "Ort"]

ENGINE = "engine.onnx"
PREFILL = "prefill.onnx"
_Ports = tuple[Port, ...]
_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})


@dataclasses.dataclass(frozen=True)
class Ort(Target):
    """Builds for ONNX Runtime's CPU kernels.

    Attributes:
        threads: Threads of one operator; the runtime's own choice when None.
    """

    name: ClassVar[str] = "ort"
    has_prefill: ClassVar[bool] = True
    threads: int | None = None

    def roles(self, has_prefill: bool) -> dict[str, str]:
        """One file for both roles, or one for each."""
        return {"prefill": PREFILL if has_prefill else ENGINE, "decode": ENGINE}

    def refuses(self, model: ir.Model) -> list[str]:
        """Operators of domains that ONNX Runtime does not know and no function defines."""
        strange: dict[tuple[str, str], list[str]] = {}
        bodies = [model.graph.all_nodes(), *(f.all_nodes() for f in model.functions.values())]
        for node in (node for body in bodies for node in body):
            if node.domain in _DOMAINS or node.op_identifier() in model.functions:
                continue
            strange.setdefault((node.domain, node.op_type), []).append(node.name or "?")
        return [
            f"onnxruntime has no operator {domain}::{op} ({len(nodes)} nodes, first '{nodes[0]}')"
            for (domain, op), nodes in strange.items()
        ]

    def lower(self, model: ir.Model) -> ir.Model:
        """A copy with attention and quantised products as the runtime's kernels, nothing unused."""
        # Imported where it is needed: who runs a bundle does not pay for the compiler.
        from optc.targets.ort_lower import lowered

        return lowered(model)

    def speed(self, model: ir.Model) -> tuple[Speed, ...]:
        """Kinds of products that most weights belong to, by token and by prompt."""
        from optc.rewrite.encode_once import encoder_in_line
        from optc.targets.ort_speed import Stopwatch

        copy = model.clone()
        with encoder_in_line(copy):
            return Stopwatch(self.lower, self.threads, self.name).speeds(copy)

    def build(self, model: ir.Model, folder: Path) -> dict[str, Any]:
        """Write `engine.onnx` and `engine.onnx.data`, read them back, open them, compare."""
        from optc.targets.ort_attention import attention_facts

        inputs, outputs = self._write(model, folder, ENGINE)
        return {
            "files": sorted(file.name for file in folder.glob(f"{ENGINE}*")),
            "roles": self.roles(False),
            "runtime": "onnxruntime",
            "runtime_version": onnxruntime.__version__,
            "hardware": "any CPU",
            "inputs": _facts(inputs),
            "outputs": _facts(outputs),
            "details": attention_facts(model),
        }

    def build_prefill(self, model: ir.Model, folder: Path) -> dict[str, Any]:
        """Write `prefill.onnx` in the same way; what both have in common lies in one file."""
        from optc.ir.shared_data import share_data
        from optc.targets.ort_attention import attention_facts

        self._write(model, folder, PREFILL)
        share_data(folder / ENGINE, folder / PREFILL)
        self._opens(model, folder / PREFILL)
        files = [file.name for name in (ENGINE, PREFILL) for file in folder.glob(f"{name}*")]
        return {"file": PREFILL, "files": sorted(files), "details": attention_facts(model)}

    def _write(self, model: ir.Model, folder: Path, name: str) -> tuple[_Ports, _Ports]:
        """Write an engine; its inputs and outputs, as the runtime reads them."""
        from optc.ir.readback import save_checked

        return self._opens(model, save_checked(model, folder / name))

    def _opens(self, model: ir.Model, path: Path) -> tuple[_Ports, _Ports]:
        """See that what was written of a model is valid and opens; its inputs and outputs."""
        from optc.targets.evaluate import check_file

        check_file(path)
        with OrtSession(_checked(path), light=True) as session:
            inputs, outputs = session.inputs, session.outputs
        for kind, wrote, read in (
            ("input", ports(model.graph.inputs), inputs),
            ("output", ports(model.graph.outputs), outputs),
        ):
            _same_signature(kind, wrote, read)
        return inputs, outputs

    def open(self, folder: Path) -> OrtSession:
        """Open the engine; its external data is checked before the runtime sees it."""
        return OrtSession(_checked(folder / ENGINE), threads=self.threads)

    def open_lightly(self, folder: Path) -> OrtSession:
        """The same, with memory that does not grow with the weights."""
        return OrtSession(_checked(folder / ENGINE), light=True)

    def open_prefill(self, folder: Path, *, lightly: bool = False) -> OrtSession:
        """Open the prefill engine by itself."""
        path = _checked(folder / PREFILL)
        return OrtSession(path, light=True) if lightly else OrtSession(path, threads=self.threads)

    def open_both(self, folder: Path, prefill_from: int) -> OrtRoles:
        """Open both engines; see `OrtRoles`."""
        return OrtRoles(self.open(folder), self.open_prefill(folder), prefill_from)


def _checked(path: Path) -> Path:
    check_external_data(path)
    return path


def _same_signature(kind: str, wrote: Sequence[Port], read: Sequence[Port]) -> None:
    before, after = ([(port.name, port.dtype) for port in side] for side in (wrote, read))
    if before != after:
        raise OptcError(f"the engine's {kind}s are {after}, the graph's were {before}")


def _facts(found: Sequence[Port]) -> list[dict[str, Any]]:
    return [{"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in found]
