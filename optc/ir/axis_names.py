"""Names of axes that expressions can be written with.

ONNX lets the name of a free axis be any text. Sizes are expressions over these names here, so a
name that is no identifier gets another one, the same wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["name_axes"]


def name_axes(model: ir.Model) -> None:
    """Rename in place, in the inputs; other shapes with such names are to be inferred anew."""
    values = [*model.graph.inputs, *model.graph.outputs]
    used = {name for value in values for name in _names(value)}
    renamed: dict[str, str] = {}
    for name in sorted(name for name in used if not name.isidentifier()):
        base = re.sub(r"\W+", "_", name).strip("_") or "axis"
        base = base if base.isidentifier() else f"axis_{base}"
        while base in used:
            base = f"{base}_"
        renamed[name] = base
        used.add(base)
    for value in values:
        if value.shape is not None and any(name in renamed for name in _names(value)):
            value.shape = ir.Shape([_renamed(dim, renamed) for dim in value.shape])
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output() and not all(map(_is_expression, _names(value))):
                value.shape = None


def _renamed(dim: int | ir.SymbolicDim, renamed: dict[str, str]) -> int | str | None:
    name = dim.value if isinstance(dim, ir.SymbolicDim) else None
    return dim if isinstance(dim, int) else renamed.get(str(name), name)


def _names(value: ir.Value) -> Iterator[str]:
    for dim in value.shape or ():
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
            yield dim.value


def _is_expression(name: str) -> bool:
    """Whether a size beside an inner value can be read."""
    try:
        ir.SymbolicDim(name).free_symbols()
    except ValueError:
        return False
    return True
