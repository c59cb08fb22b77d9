"""Which side of a mask [S,S], queries or keys, the values belong to that it is made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.position_uses import growing_axes
from optc.ir.probe import Probe, ancestors, fixed_values
from optc.ir.recount import TokenAxes

__all__ = ["Edge", "MaskSides", "Side"]

Edge = tuple[ir.Node, int]
"""A node over both sides, and the index of an operand that enters from before."""
Side = str | tuple[bool, ...] | int | None
"""`queries` or `keys`; for sizes of both, which entries are of queries; for `MaskSides.ROWS`, the
axis along which a `Slice` cuts rows of queries, None for no axis."""

_SHORT, _LONG = 5, 8
_MOST_CHOICES = 256


class MaskSides:
    """The part of a mask that runs over queries and keys, and what enters it.

    Args:
        model: The model.
        axes: Axes of the token input.
        mask: A mask that depends on sizes only.

    Raises:
        ProbeFailure: Some part of it cannot be evaluated.
    """

    ROWS: ClassVar[int] = -1

    def __init__(self, model: ir.Model, axes: TokenAxes, mask: ir.Value):
        fixed = fixed_values(model)
        probes = [Probe(model, axes.sizes(count)) for count in (_SHORT, _LONG)]
        behind = [value for value in ancestors(mask) if fixed.get(value)]
        self._contents = {value: [probe.run(value) for probe in probes] for value in behind}
        self._growth = {
            value: growing_axes(contents[0], contents[1])
            for value, contents in self._contents.items()
            if not np.array_equal(contents[0], contents[1])
        }

    def is_over_both(self, value: ir.Value) -> bool:
        """Whether a value runs over queries and keys."""
        return len(self._growth.get(value, ())) > 1

    def axis(self, value: ir.Value) -> int | None:
        """The axis of a value over one side; None where it has none."""
        axes = self._growth.get(value, [])
        return axes[0] if len(axes) == 1 else None

    def choices(self) -> Iterator[dict[Edge, Side]]:
        """Sides for all that enters, the likely ones first; not endlessly many."""
        options: dict[Edge, list[Side]] = {}
        for value in self._growth:
            node = value.producer()
            if node is not None and self.is_over_both(value):
                options |= self._options(node, value)
        for choice in itertools.islice(itertools.product(*options.values()), _MOST_CHOICES):
            yield dict(zip(options, choice, strict=True))

    def _options(self, node: ir.Node, output: ir.Value) -> dict[Edge, list[Side]]:
        options: dict[Edge, list[Side]] = {}
        for index, value in enumerate(node.inputs):
            if value is not None and value in self._growth and not self.is_over_both(value):
                options[node, index] = self._sides(value, output)
        if node.op_type == "Slice" and node.inputs[0] is not None:
            entered = self._growth.get(node.inputs[0], [])
            added = [axis for axis in self._growth[output] if axis not in entered]
            options[node, self.ROWS] = [*added[:1], None, *added[1:]]
        return options

    def _sides(self, value: ir.Value, output: ir.Value) -> list[Side]:
        axis = self.axis(value)
        if axis is None:
            return _sides_of_sizes(*self._contents[value])
        short, long = self._contents[value][0].ndim, self._contents[output][0].ndim
        last = axis + long - short == self._growth[output][-1]
        return ["keys", "queries"] if last else ["queries", "keys"]


def _sides_of_sizes(short: Array, long: Array) -> list[Side]:
    """Sizes of one side or of both, in either order."""
    changed = (short != long).reshape(-1)
    places = [int(place) for place in np.flatnonzero(changed)]
    if len(places) != 2:
        return ["queries", "keys"]
    return [tuple(i == place for i in range(changed.size)) for place in places]
