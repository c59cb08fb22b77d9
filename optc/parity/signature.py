"""Make up inputs for a graph from its signature and from where the inputs flow.

1. Symbolic axes get small sizes; axes with equal names get equal sizes, expressions of names (such
   as `past + tokens`) what they come to. The first axis of an input is taken for the batch.
2. An integer input whose elements become indices of a table (`Gather` along axis 0) holds random
   rows of that table, so that token ids are valid; of an encoder-decoder's tokens, none that the
   graph compares them with, which is padding.
3. `position_ids` counts up. Masks are ones: every bool input, every input with `mask` in its name,
   and integers that index nothing. In every second sample, though, a mask [batch, tokens] hides the
   ends of some rows, as right padding does; otherwise a pass that loses the mask would go unseen.
4. Floats are normally distributed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.core.errors import SampleError
from optc.ir.constants import scalar
from optc.ir.interface import LENGTHS, NEW_LENGTHS, TOKENS

__all__ = ["InputMaker", "table_rows"]

_BATCHES = (1, 2, 1, 3)
_TOKENS = (7, 16, 24, 33)
# Ops that hand elements on as they are, with the inputs whose elements they hand on.
_MOVES: Mapping[str, tuple[int, ...]] = {
    "Cast": (0,),
    "Concat": tuple(range(16)),
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "Identity": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}


def table_rows(value: ir.Value) -> int | None:
    """Number of values, from 0 up, that integers in `value` may take as indices of tables.

    Follows the elements forward through data movement and through additions of a constant (learned
    positions may start at 2).

    Returns:
        The rows of the smallest table, less what was added; None if no table is reached.
    """
    rows: list[int] = []
    waiting: list[tuple[ir.Value, int]] = [(value, 0)]
    seen = {value}
    while waiting:
        current, added = waiting.pop()
        for node, index in current.uses():
            rows += _rows_of_gather(node, index, added)
            offset = _offset(node, index)
            for output in node.outputs:
                if offset is not None and output not in seen:
                    seen.add(output)
                    waiting.append((output, added + offset))
    return min(rows, default=None)


def _rows_of_gather(node: ir.Node, index: int, added: int) -> list[int]:
    table = node.inputs[0]
    if node.domain or node.op_type != "Gather" or index != 1 or table is None:
        return []
    axis = node.attributes.get_int("axis", 0)
    if table.shape is None or axis not in (0, -len(table.shape)):
        return []
    if not isinstance(table.shape[0], int):
        return []
    return [table.shape[0] - added]


def _offset(node: ir.Node, index: int) -> int | None:
    """What the node adds to the elements it hands on from input `index`; None if it does not."""
    if node.domain:
        return None
    if node.op_type == "Add":
        constant = scalar(node.inputs[1 - index])
        return None if constant is None else int(constant)
    return 0 if index in _MOVES.get(node.op_type, ()) else None


class InputMaker:
    """Makes inputs for one graph. The cache of a generator graph is left out: it starts empty.

    Args:
        model: The graph.
        alike: Whether all axes but the first are given one size, whatever their names: exporters
            name the length of texts and that of their mask apart at times.
    """

    def __init__(self, model: ir.Model, *, alike: bool = False):
        self._step = 0 if alike else 2
        inputs = list(model.graph.inputs)
        has_cache = any(value.name == LENGTHS for value in inputs)
        self._inputs = [value for value in inputs if not (has_cache and _is_cache(value))]
        self._rows = {v.name: table_rows(v) for v in self._inputs if _kind(v) in "iu"}

    def make(self, index: int, seed: int, stream: int) -> dict[str, Array]:
        """One sample.

        Args:
            index: Its number, which also chooses the sizes of symbolic axes.
            seed: Seed of the values.
            stream: Samples of different streams are independent.

        Raises:
            SampleError: An input's rank or type is not known.
        """
        rng = np.random.default_rng([seed, stream, index])
        # Masks of one shape hide the same; no other value depends on whether there is a mask.
        padding = [seed, stream, index, 1] if index % 2 else None
        sizes = self._sizes(index)
        return {str(v.name): self._array(v, sizes, rng, padding) for v in self._inputs}

    def _sizes(self, index: int) -> dict[str, int]:
        sizes: dict[str, int] = {}
        symbols: list[str] = []
        for value in self._inputs:
            for axis, dim in enumerate(_shape(value)):
                for symbol in _symbols(dim, axis):
                    if axis == 0:
                        sizes.setdefault(symbol, _BATCHES[index % len(_BATCHES)])
                    elif symbol not in symbols:
                        symbols.append(symbol)
        for number, symbol in enumerate(s for s in symbols if s not in sizes):
            sizes[symbol] = _TOKENS[index % len(_TOKENS)] + self._step * number
        return sizes

    def _array(
        self,
        value: ir.Value,
        sizes: dict[str, int],
        rng: np.random.Generator,
        padding: list[int] | None,
    ) -> Array:
        shape = tuple(_size(dim, axis, sizes) for axis, dim in enumerate(_shape(value)))
        name, dtype = str(value.name), _dtype(value)
        rows = self._rows.get(value.name)
        if name == "position_ids" and shape:
            return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
        if "mask" in name.lower():
            return _mask(value, shape, padding).astype(dtype)
        if _kind(value) == "b":
            return np.ones(shape, dtype)
        if _kind(value) in "iu":
            return np.ones(shape, dtype) if rows is None else _ids(value, rows, shape, rng)
        return rng.standard_normal(shape).astype(dtype)


def _ids(value: ir.Value, rows: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random rows of a table.

    A decoder's tokens are no padding: ids that the graph looks for among them are not drawn.
    """
    ids = rng.integers(0, rows, shape, _dtype(value))
    sought = {scalar(other) for node, _ in value.uses() for other in _compared(node)}
    if value.name in (None, TOKENS) or not sought - {None}:
        return ids
    others = np.array([i for i in range(rows) if i not in sought], ids.dtype)
    return others[ids % len(others)] if len(others) else ids


def _compared(node: ir.Node) -> Sequence[ir.Value | None]:
    return node.inputs if node.op_type == "Equal" and not node.domain else ()


def _mask(value: ir.Value, shape: tuple[int, ...], padding: list[int] | None) -> Array:
    """Ones; zeros at the ends of rows [batch, tokens] where there is a seed for the padding.

    Every row shows its first token. With several rows the first is whole, as the longest of a batch
    is. A mask with equal axes may be [tokens, tokens], where a hidden row would see nothing.
    """
    mask = np.ones(shape, np.int64)
    if padding is None or len(shape) != 2 or shape[1] < 2 or _shape(value)[0] == _shape(value)[1]:
        return mask
    visible = np.random.default_rng(padding).integers(1, shape[1], shape[0])
    if shape[0] > 1:
        visible[0] = shape[1]
    return mask * (np.arange(shape[1]) < visible[:, None])


def _is_cache(value: ir.Value) -> bool:
    return value.name in {LENGTHS, NEW_LENGTHS} or str(value.name).startswith("past_key_values.")


def _shape(value: ir.Value) -> ir.Shape:
    if value.shape is None:
        problem = f"inputs cannot be made up: the rank of '{value.name}' is not known"
        raise SampleError(problem, remedy="give a reference with --reference")
    return value.shape


def _dtype(value: ir.Value) -> np.dtype[np.generic]:
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        problem = f"inputs cannot be made up: '{value.name}' has no numeric type"
        raise SampleError(problem, remedy="give a reference with --reference")
    return value.dtype.numpy()


def _kind(value: ir.Value) -> str:
    return _dtype(value).kind


def _symbols(dim: int | ir.SymbolicDim, axis: int) -> list[str]:
    if isinstance(dim, int):
        return []
    if dim.value is None:
        return [f"axis {axis}"]  # nameless axes of the same number are taken to be equal
    return sorted(dim.free_symbols())


def _size(dim: int | ir.SymbolicDim, axis: int, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim.value is None:
        return sizes[f"axis {axis}"]
    size = dim.evaluate(sizes)
    if not isinstance(size, int):
        problem = f"inputs cannot be made up: the axis '{dim.value}' has no size"
        raise SampleError(problem, remedy="give a reference with --reference")
    return size
