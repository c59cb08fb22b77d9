"""A token that stands for padding: what the graph makes of it, when rows have lengths.

Some decoders look for padding among their tokens, `ids != 1`, to hide it from attention and to
leave it out when they count positions. With a cache, what was said before is not there to look at.
Rows are padded on the right and have lengths of their own, so no token that is seen is padding: the
comparison comes out the same for all of them, and a constant takes its place.

That is only so if padding is what the comparison is about. One that looks at its own token only
needs no help; one that selects data, such as the place of a picture, or that starts a part of the
text, is left alone: a comparison may reach

1. masks of attention, and
2. what is added to data or multiplied with it, and counts positions,

and both have to treat the token as padding is treated, which is tried out
(`optc.ir.padding_trials`): a comparison that tells documents apart reaches masks too.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optc.ir.constants import scalar
from optc.ir.flash_attention import DOMAIN, INPUTS, read_spec
from optc.ir.interface import note_padding_ids, padding_ids_in
from optc.ir.padding_trials import PaddingTrials
from optc.ir.probe import fixed_values
from optc.ir.recount import TokenAxes

__all__ = ["PaddingIds"]

_MASK = INPUTS.index("mask")


@dataclasses.dataclass(frozen=True)
class _Test:
    """A comparison of the tokens with one id.

    Attributes:
        value: Boolean [B,S].
        token: The id.
        usual: What comes out for any other.
    """

    value: ir.Value
    token: int
    usual: bool


class PaddingIds:
    """Puts constants in the place of comparisons with padding; can be undone.

    Args:
        model: Changed by `replace`.
        tokens: The token input [B,S].
        axes: Its axes.

    Attributes:
        problems: Why masks that depend on comparisons keep them, by site of attention.
    """

    def __init__(self, model: ir.Model, tokens: ir.Value, axes: TokenAxes):
        self.problems: dict[str, str] = {}
        self._model = model
        self._tokens = tokens
        self._axes = axes
        self._uses: list[tuple[ir.Node, int, ir.Value]] = []
        self._added: list[ir.Node] = []
        self._noted = padding_ids_in(model.metadata_props)

    def replace(self) -> list[int]:
        """Replace the comparisons, all or none; returns the ids that are taken for padding.

        They are noted in the model's metadata, for whoever feeds it.
        """
        tests = [test for node, _ in self._tokens.uses() if (test := _read(node)) is not None]
        if not tests or not self._is_about_padding(tests):
            tests = []
        note_padding_ids(self._model, {test.token for test in tests})
        for test in tests:
            self._uses += [(node, slot, test.value) for node, slot in test.value.uses()]
            constant = self._constant(test)
            for node, slot in list(test.value.uses()):
                node.replace_input_with(slot, constant)
        return sorted({test.token for test in tests})

    def undo(self) -> None:
        """Give the comparisons back."""
        for node, slot, value in self._uses:
            node.replace_input_with(slot, value)
        self._model.graph.remove(self._added, safe=True)
        self._uses, self._added = [], []
        note_padding_ids(self._model, self._noted)

    def _constant(self, test: _Test) -> ir.Value:
        usual = ir.tensor(np.array([test.usual]), name=f"{test.value.name}_usual")
        count = ir.node("Shape", [self._tokens])
        whole = ir.node("ConstantOfShape", [count.outputs[0]], {"value": usual})
        for node in (count, whole):
            node.name = node.outputs[0].name = f"{test.value.name}_{node.op_type.lower()}"
        made = whole.outputs[0]
        made.dtype, made.shape = ir.DataType.BOOL, self._tokens.shape
        self._model.graph.insert_before(self._model.graph[0], [count, whole])
        self._added += [count, whole]
        return made

    def _is_about_padding(self, tests: list[_Test]) -> bool:
        derived = _derived(self._model, {test.value for test in tests})
        uses = [(value, node, slot) for value in derived for node, slot in value.uses()]
        if any(value.is_graph_output() for value in derived) or not any(map(_looks_around, uses)):
            return False
        trials = self._trials(tests)
        masks = {node: value for value, node, slot in uses if _is_mask(node, slot)}
        self.problems = {
            str(node.outputs[0].name): _says(mask, unlike)
            for node, mask in masks.items()
            if (unlike := trials.unlike(mask, causal=read_spec(node).causal))
        }
        return not self.problems and all(
            node.outputs[0] in derived
            or node.op_type in {"Shape", "Size"}
            or _is_mask(node, slot)
            or (node.op_type in {"Add", "Mul"} and trials.counts(value))
            for value, node, slot in uses
        )

    def _trials(self, tests: list[_Test]) -> PaddingTrials:
        usual = {test.value: test.usual for test in tests}
        ids = {test.token for test in tests}
        tokens = {id_: {test.value for test in tests if test.token == id_} for id_ in ids}
        return PaddingTrials(self._model, self._axes, usual, tokens)


def _looks_around(use: tuple[ir.Value, ir.Node, int]) -> bool:
    """Whether what comes out for one token depends on others, which a cache hides."""
    _, node, slot = use
    return node.op_type == "CumSum" or _is_mask(node, slot)


def _says(mask: ir.Value, tokens: list[int]) -> str:
    named = ", ".join(map(str, sorted(tokens)))
    return f"its mask '{mask.name}' asks where token {named} was, and not to hide it as padding"


def _is_mask(node: ir.Node, slot: int) -> bool:
    return node.domain == DOMAIN and slot == _MASK


def _read(node: ir.Node) -> _Test | None:
    if node.domain or node.outputs[0].dtype != ir.DataType.BOOL:
        return None
    if node.op_type == "Cast":
        return _Test(node.outputs[0], 0, usual=True)
    if node.op_type != "Equal":
        return None
    ids = [found for value in node.inputs if (found := scalar(value)) is not None]
    return _Test(node.outputs[0], int(ids[0]), usual=False) if ids else None


def _derived(model: ir.Model, tests: set[ir.Value]) -> set[ir.Value]:
    """The comparisons, and what is computed of nothing but them and of sizes."""
    known, derived = set(fixed_values(model)) | tests, set(tests)
    for node in model.graph:
        inputs = {value for value in node.inputs if value is not None}
        if node.op_type not in {"Shape", "Size"} and inputs <= known and inputs & derived:
            known |= set(node.outputs)
            derived |= set(node.outputs)
    return derived
