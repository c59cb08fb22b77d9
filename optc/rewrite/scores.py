"""The scores of decomposed attention: from the product of queries and keys up to the Softmax.

    scores = cap * tanh(slope * (Q @ K^T)) + masks        cap, slope and masks optional

Between the two, exporters put factors, casts, reshapes, clamps and subtractions of the row's
maximum, in any order. The chain is found from the Softmax downwards and read from the product
upwards; a factor that is applied after a mask applies to the mask as well.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from optc.ir.constants import constant, scalar
from optc.ir.thresholds import HIDDEN
from optc.rewrite.score_product import DEEPEST, VIEWS, hides_always, towards_product

__all__ = ["MaskTerm", "NotFused", "Scores", "keeps_last_axes", "read_scores"]


@dataclasses.dataclass(frozen=True)
class MaskTerm:
    """One mask.

    Attributes:
        value: Boolean, True is visible; or additive.
        negated: Whether True is hidden.
        finite: Whether hidden scores become a large negative number rather than minus infinity,
            so that a row that sees nothing averages all values instead of giving zeros or NaN.
        guarded: Whether rows of minus infinity give zeros, by a guard after the Softmax.
        fill: Largest number that hidden scores are replaced by, where that is known.
        factor: What an additive mask is multiplied by.
        view: Shape of the scores where it is applied; None where they are those of the site.
    """

    value: ir.Value
    negated: bool = False
    finite: bool = False
    guarded: bool = False
    fill: float = -math.inf
    factor: float = 1.0
    view: tuple[int | str | None, ...] | None = None


@dataclasses.dataclass
class Scores:
    """What happens to the product on its way to the Softmax.

    Attributes:
        scale: Factor on the product.
        softcap: Bound of the scores; 0.0 for none.
        terms: Masks in the order applied.
        head_factors: Factors [.., 1, 1] per head that apply to the product.
        gates: Zeros and ones that the scores are multiplied by; a mask must hide the zeros.
    """

    scale: float = 1.0
    softcap: float = 0.0
    terms: list[MaskTerm] = dataclasses.field(default_factory=list)
    head_factors: list[ir.Value] = dataclasses.field(default_factory=list)
    gates: list[ir.Value] = dataclasses.field(default_factory=list)


class NotFused(Exception):
    """Not fused; the text is the reason."""


def read_scores(value: ir.Value | None, product: ir.Value) -> Scores:
    """Read what happens to `product` until it is `value`, the input of the Softmax.

    Raises:
        NotFused: Something on the way is not understood.
    """
    chain: list[tuple[ir.Node, ir.Value]] = []
    depth = DEEPEST
    while value is not None and value is not product:
        node = value.producer()
        below = towards_product(node, depth) if node is not None and depth else None
        if node is None or below is None:
            raise NotFused("the scores cannot be followed to a product")
        chain.append((node, below))
        value, depth = below, depth - 1
    reader = _Reader()
    for node, below in reversed(chain):
        reader.read(node, below)
    return reader.scores()


class _Reader:
    """Follows the scores upwards, one node at a time."""

    def __init__(self) -> None:
        self.slope = 1.0
        self.cap: float | None = None
        self.terms: list[MaskTerm] = []
        self.shifted = False
        self.head_factors: list[ir.Value] = []
        self.gates: list[ir.Value] = []

    def scores(self) -> Scores:
        """What was read."""
        if any(term.fill * term.factor > HIDDEN for term in self.terms if term.fill > -math.inf):
            raise NotFused("its mask is multiplied until it no longer hides")
        scale, cap = (self.slope, 0.0) if self.cap is None else (self.slope * self.cap, self.cap)
        return Scores(scale, abs(cap), self.terms, self.head_factors, self.gates)

    def read(self, node: ir.Node, below: ir.Value) -> None:
        """Take one node whose operand `below` holds the scores so far."""
        if not _is_only_used_by_scores(node, below):
            raise NotFused("the attention scores are used elsewhere too")
        op = node.op_type
        if op in VIEWS:
            if not keeps_last_axes(node):
                raise NotFused(f"'{op}' changes the axes or the kind of the scores")
            return
        if _is_shift_by_maximum(node, below):
            return
        if op == "Tanh" and self.cap is None and not self.terms and not self.shifted:
            self.cap = 1.0
        elif op in {"Max", "Clip"} and _clamps_below_only(node):
            self.terms = [dataclasses.replace(term, finite=True) for term in self.terms]
        elif op in {"Mul", "Div"}:
            self._factor(node, below)
        elif op in {"Add", "Sub"}:
            self._add(node, below)
        elif op == "Where":
            self._where(node, below)
        else:
            raise NotFused(f"'{op}' between the score product and the Softmax")

    def _factor(self, node: ir.Node, below: ir.Value) -> None:
        other = node.inputs[1] if node.inputs[0] is below else node.inputs[0]
        number = scalar(other)
        if number is None and other is not None and self._is_per_head(node, other):
            self.head_factors.append(other)
            return
        if number is None and other is not None and self._may_be_gate(node, other):
            self.gates.append(other)
            return
        divides = node.op_type == "Div"
        if number is None or (divides and (number == 0 or node.inputs[0] is not below)):
            raise NotFused(f"the scores are multiplied by '{other.name if other else '?'}'")
        factor = 1.0 / number if divides else number
        self.terms = [dataclasses.replace(term, factor=term.factor * factor) for term in self.terms]
        if self.cap is None:
            self.slope *= factor
        else:
            self.cap *= factor

    def _is_per_head(self, node: ir.Node, other: ir.Value) -> bool:
        """Whether it multiplies all scores of a head alike, before anything else does."""
        if node.op_type != "Mul" or self.terms or self.cap is not None or other.shape is None:
            return False
        dims = list(other.shape)
        return len(dims) in (3, 4) and dims[-2:] == [1, 1] and _rank(node.outputs[0]) == 4

    def _may_be_gate(self, node: ir.Node, other: ir.Value) -> bool:
        """Whether it multiplies the scores of each pair, before anything is added."""
        if node.op_type != "Mul" or self.terms or other.shape is None or len(other.shape) < 2:
            return False
        return 1 not in other.shape[-2:]

    def _add(self, node: ir.Node, below: ir.Value) -> None:
        other = node.inputs[1] if node.inputs[0] is below else node.inputs[0]
        if other is None or (node.op_type == "Sub" and node.inputs[0] is not below):
            raise NotFused("the scores are subtracted from something")
        if scalar(other) is not None and not self.terms:
            self.shifted = True  # the same number on every score changes nothing but a softcap
            return
        factor = -1.0 if node.op_type == "Sub" else 1.0
        self.terms.append(MaskTerm(other, finite=True, factor=factor, view=_dims(below)))

    def _where(self, node: ir.Node, below: ir.Value) -> None:
        condition, kept, other = node.inputs
        fill = other if kept is below else kept
        if condition is None or not hides_always(fill):
            raise NotFused("a Where puts something else in the place of scores")
        negated, finite = kept is not below, _is_finite(fill)
        self.terms.append(
            MaskTerm(condition, negated, finite, fill=_largest(fill), view=_dims(below))
        )


def _dims(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(d.value if isinstance(d, ir.SymbolicDim) else d for d in value.shape)


def _rank(value: ir.Value) -> int:
    return len(value.shape) if value.shape is not None else 4


def keeps_last_axes(node: ir.Node) -> bool:
    """Whether a view of scores [.., S, T] leaves S, T and fractions as they are."""
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None:
        return False
    if node.op_type == "Cast":
        return all(v.dtype is not None and v.dtype.is_floating_point() for v in (before, after))
    return len(before.shape) > 1 and [*before.shape[-2:]] == [*after.shape[-2:]]


def _largest(value: ir.Value | None) -> float:
    array = constant(value)
    return float(array.max()) if array is not None else -math.inf


def _is_finite(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and bool(np.isfinite(array).all())


def _is_only_used_by_scores(node: ir.Node, below: ir.Value) -> bool:
    users = {use.node for use in below.uses()} - {node}
    maxima = all(user.op_type == "ReduceMax" for user in users)
    return not below.is_graph_output() and (not users or (maxima and node.op_type == "Sub"))


def _is_shift_by_maximum(node: ir.Node, below: ir.Value) -> bool:
    """`scores - max(scores)` over the keys: Softmax does not see it."""
    other = node.inputs[1] if node.op_type == "Sub" else None
    maximum = other.producer() if other is not None else None
    if maximum is None or maximum.op_type != "ReduceMax" or maximum.inputs[0] is not below:
        return False
    axes = constant(maximum.inputs[1]) if len(maximum.inputs) > 1 else None
    keeps = maximum.attributes.get_int("keepdims", 1) == 1
    return (
        keeps and axes is not None and axes.size == 1 and int(axes.item()) in (-1, _rank(below) - 1)
    )


def _clamps_below_only(node: ir.Node) -> bool:
    """`Max` with, or `Clip` to, the lowest number of the type: only infinities fall under it."""
    if node.op_type == "Clip" and len(node.inputs) > 2 and node.inputs[2] is not None:
        return False
    lowest = scalar(node.inputs[1]) if len(node.inputs) == 2 or node.op_type == "Clip" else None
    half = node.outputs[0].dtype == ir.DataType.FLOAT16
    return lowest is not None and lowest <= (-65504.0 if half else -3.4e38)
