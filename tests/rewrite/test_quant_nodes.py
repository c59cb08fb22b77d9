"""Names that a graph has not are found, and found fast."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir

from optc.rewrite.quant_nodes import NodeWriter


def writer() -> NodeWriter:
    model = ir.from_onnx_text(
        '<ir_version: 11, opset_import: ["": 24]> m (float[n] x) => (float[n] y) '
        "{ w_3 = Neg(x) y = Neg(w_3) }"
    )
    return NodeWriter(model)


def test_a_name_is_the_wish_or_the_next_number_that_nothing_has() -> None:
    names = writer()
    assert [names.name("w") for _ in range(4)] == ["w", "w_2", "w_4", "w_5"]
    assert [names.name(wish) for wish in ("x", "w_4", "w")] == ["x_2", "w_4_2", "w_6"]


def test_constants_are_named_alike() -> None:
    names = writer()
    made = [names.constant("y", ir.Tensor(np.zeros(n, np.float32))) for n in (1, 2)]
    assert [value.name for value in made] == ["y_2", "y_3"]


def test_the_thousandth_name_of_one_wish_costs_what_the_first_one_does() -> None:
    names, steps = writer(), []

    def note(frame, event, argument):  # type: ignore[no-untyped-def]
        steps.append(event)
        return note

    before = sys.gettrace()
    costs = []
    for _ in range(1000):
        steps.clear()
        sys.settrace(note)
        names.name("copy")
        sys.settrace(before)
        costs.append(len(steps))
    assert costs[-1] == costs[1]
