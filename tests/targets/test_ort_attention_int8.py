"""An int8 cache on ONNX Runtime: a kernel for one new token, the body for several, one buffer."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from lowered_attention import choice_of, make_inputs, run_lowered, typed_model

from optc.ir.flash_attention import AttentionSpec
from optc.plugins.flash_attention.reference import flash_attention, round_off
from optc.targets.ort import Ort
from optc.targets.ort_attention import BODY, GROUPED

GROWING = AttentionSpec(0.2, causal=True, cache="concat", lengths=True, int8=True)
STATIC = dataclasses.replace(GROWING, cache="static")
SPECS = pytest.mark.parametrize("spec", [GROWING, STATIC], ids=["concat", "static"])


@SPECS
def test_the_number_of_new_tokens_decides(spec: AttentionSpec) -> None:
    model = Ort().lower(typed_model(spec, make_inputs(spec), rows=True))
    (choice,) = (node for node in model.graph if node.op_type == "If")
    then, otherwise = choice.attributes["then_branch"], choice.attributes["else_branch"]
    assert [node.op_type for node in then.as_graph()] == ["GroupQueryAttention"]
    assert "FlashAttention" in {node.op_type for node in otherwise.as_graph()}
    assert "Transpose" not in {node.op_type for node in model.graph}


@SPECS
def test_sites_ask_once_for_all(spec: AttentionSpec) -> None:
    model = Ort().lower(typed_model(spec, make_inputs(spec), sites=3))
    operators = [node.op_type for node in model.graph]
    assert (operators.count("If"), operators.count("Equal")) == (3, 1)


@SPECS
@pytest.mark.parametrize("rows", [1, 3])
def test_one_buffer_may_be_past_and_present(spec: AttentionSpec, rows: int) -> None:
    """Bound so, the cache is updated where it lies; the answer is that of a fresh buffer."""
    inputs = make_inputs(spec, rows=rows, past=12, capacity=12, lengths=[9, 6])
    proto = ir.to_proto(Ort().lower(typed_model(spec, inputs))).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    expected = flash_attention(spec, inputs)
    held = {k: onnxruntime.OrtValue.ortvalue_from_numpy(v.copy()) for k, v in inputs.items()}
    binding = session.io_binding()
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    answer, *presents = (output.name for output in session.get_outputs())
    binding.bind_output(answer)
    for present, past in zip(presents, ("past_key", "past_value"), strict=True):
        binding.bind_ortvalue_output(present, held[past])
    session.run_with_iobinding(binding)
    found = binding.get_outputs()[0].numpy()
    assert np.abs(found - expected["output"]).max() <= round_off(spec, inputs)
    for name in ("key", "value"):
        cache = held[f"past_{name}"].numpy()
        for row, length in enumerate(inputs["lengths"]):
            np.testing.assert_array_equal(
                cache[row, :, :length], expected[f"present_{name}"][row, :, :length]
            )


@SPECS
@pytest.mark.parametrize("rows", [1, 2])
def test_a_batch_of_steps_conforms(spec: AttentionSpec, rows: int) -> None:
    inputs = make_inputs(spec, rows=rows, batch=4, past=6, lengths=[3, 5, 6, 4])
    found = run_lowered(spec, inputs, rows=True)["output"]
    expected = flash_attention(spec, inputs)["output"]
    assert np.abs(found - expected).max() <= round_off(spec, inputs)


@pytest.mark.parametrize(
    ("spec", "sizes", "kernel"),
    [
        (STATIC, {}, GROUPED),
        (dataclasses.replace(STATIC, window=2, softcap=3.0), {}, GROUPED),
        (STATIC, {"dims": (32, 48)}, BODY),
        (STATIC, {"dims": (20, 20)}, BODY),
        (dataclasses.replace(STATIC, mask="bias"), {}, BODY),
    ],
)
def test_what_the_kernel_cannot_do_keeps_the_body(
    spec: AttentionSpec, sizes: dict[str, tuple[int, int]], kernel: str
) -> None:
    assert choice_of(spec, make_inputs(spec, **sizes)).kernel == kernel
