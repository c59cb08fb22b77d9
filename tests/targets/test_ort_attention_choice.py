"""Which kernel each attention gets from the `ort` target, and how the graph looks afterwards."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from lowered_attention import choice_of, make_inputs, typed_model

from optc.ir.flash_attention import AttentionSpec
from optc.ir.save import save_model
from optc.targets.ort import Ort
from optc.targets.ort_attention import (
    ATTENTION,
    BODY,
    GROUPED,
    attention_choices,
    attention_facts,
)

PLAIN = AttentionSpec(0.2)
CAUSAL = AttentionSpec(0.2, causal=True)
GROWING = AttentionSpec(0.2, causal=True, cache="concat", lengths=True)
STATIC = AttentionSpec(0.2, causal=True, cache="static", lengths=True)


@pytest.mark.parametrize(
    ("spec", "sizes", "kernel", "why"),
    [
        (CAUSAL, {"keys": 3}, GROUPED, ""),
        (GROWING, {}, GROUPED, ""),
        (STATIC, {}, GROUPED, ""),
        (dataclasses.replace(STATIC, window=2, softcap=3.0), {}, GROUPED, ""),
        (PLAIN, {}, ATTENTION, "it is not causal"),
        (CAUSAL, {"keys": 7}, ATTENTION, "queries and new keys may differ in number"),
        (CAUSAL, {"keys": 3, "dims": (32, 48)}, ATTENTION, "keys and values differ in size"),
        (CAUSAL, {"keys": 3, "dims": (12, 12)}, ATTENTION, "not a multiple of 8"),
        (dataclasses.replace(CAUSAL, mask="bias"), {"keys": 3}, ATTENTION, "the slower one"),
        (dataclasses.replace(CAUSAL, lengths=True), {"keys": 3}, ATTENTION, "only with a cache"),
        (PLAIN, {"dtype": np.float16}, BODY, "it is slower in float16"),
        (CAUSAL, {"keys": 3, "dtype": np.float16}, GROUPED, ""),
        (AttentionSpec(0.2, window=2), {}, BODY, "it has no window"),
        (dataclasses.replace(STATIC, causal=False), {}, BODY, "does not update a cache"),
    ],
    ids=str,
)
def test_each_site_gets_the_first_kernel_that_is_right(
    spec: AttentionSpec, sizes: dict[str, object], kernel: str, why: str
) -> None:
    choice = choice_of(spec, make_inputs(spec, **sizes), rows=True)
    assert choice.kernel == kernel
    assert why in choice.why


def test_the_body_stays_where_there_is_no_transposition_to_leave_out() -> None:
    choice = choice_of(PLAIN, make_inputs(PLAIN))
    assert (choice.kernel, choice.why) == (
        BODY,
        "GroupQueryAttention: it is not causal; Attention: no transposition to leave out",
    )


def test_sizes_that_nobody_recorded_keep_the_body() -> None:
    model = typed_model(CAUSAL, make_inputs(CAUSAL, keys=3))
    for value in model.graph.inputs:
        value.shape = ir.Shape([None] * 4)
    (choice,) = attention_choices(Ort().lower(model))
    assert choice.kernel == BODY
    assert "GroupQueryAttention: queries and new keys may differ in number" in choice.why


@pytest.mark.parametrize("spec", [CAUSAL, PLAIN], ids=str)
def test_no_transposition_is_left(spec: AttentionSpec) -> None:
    lowered = Ort().lower(typed_model(spec, make_inputs(spec, keys=3), rows=True))
    assert "Transpose" not in {node.op_type for node in lowered.graph}


@pytest.mark.parametrize(("spec", "maxima"), [(STATIC, 0), (GROWING, 1)], ids=["static", "concat"])
def test_sites_share_their_counts(spec: AttentionSpec, maxima: int) -> None:
    lowered = Ort().lower(typed_model(spec, make_inputs(spec), sites=3))
    counted = Counter(node.op_type for node in lowered.graph)
    assert (counted["GroupQueryAttention"], counted["ReduceMax"], counted["Cast"]) == (3, maxima, 3)


def test_what_was_chosen_and_why_is_among_the_engines_facts(tmp_path: Path) -> None:
    spec = AttentionSpec(0.2, window=2)
    model = Ort().lower(typed_model(spec, make_inputs(spec), sites=2))
    path = save_model(model, tmp_path / "model.onnx")
    reason = "GroupQueryAttention: it is not causal; Attention: it has no window"
    assert attention_facts(ir.load(path)) == {
        "attention": {"kernels": {BODY: 2}, "reasons": {reason: ["site_0", "site_1"]}}
    }


def test_a_growing_cache_is_one_node_too() -> None:
    (choice,) = attention_choices(Ort().lower(typed_model(GROWING, make_inputs(GROWING))))
    assert (choice.site, choice.kernel) == ("site_0", GROUPED)


def test_outputs_of_the_graph_keep_their_names() -> None:
    model = typed_model(GROWING, make_inputs(GROWING))
    names = [output.name for output in model.graph.outputs]
    assert [output.name for output in Ort().lower(model).graph.outputs] == names
