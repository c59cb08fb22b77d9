"""Weights that are transposed before they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from weights import bake

import optc.ir.streamed as streamed
from optc.core.context import Array
from optc.ir.canonical import canonicalize
from optc.ir.load import load_canonical
from optc.ir.save import save_model
from optc.ir.streamed import StreamedTensor
from optc.ir.transposed import fold_transposed_weights

LAYER = """<ir_version: 10, opset_import: ["": 18]>
layer (float[B, 48] x, float[64, 48] w) => (float[B, 64] y{more}) {{
  turned = Transpose <perm = [1, 0]> (w)
  y = MatMul(x, turned)
  {rest}
}}"""


def layer(more: str = "", rest: str = "") -> ir.Model:
    return bake(ir.from_onnx_text(LAYER.format(more=more, rest=rest)), data={"x"})


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def weight(model: ir.Model) -> Array:
    (value,) = model.graph.initializers.values()
    assert value.const_value is not None
    return value.const_value.numpy()


def test_a_transposed_weight_becomes_a_weight_that_nobody_has_computed() -> None:
    model = layer()
    wanted = weight(model).T
    canonicalize(model)
    assert kinds(model) == ["MatMul"]
    (value,) = model.graph.initializers.values()
    assert isinstance(value.const_value, StreamedTensor)
    np.testing.assert_array_equal(weight(model), wanted)


def test_written_in_blocks_and_read_again_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = weight(layer()).T
    source = save_model(layer(), tmp_path / "model.onnx")
    monkeypatch.setattr(streamed, "_BLOCK_BYTES", 256)
    written = save_model(load_canonical(source), tmp_path / "out" / "model.onnx")
    again = load_canonical(written)
    assert kinds(again) == ["MatMul"]
    np.testing.assert_array_equal(weight(again), wanted)


def test_no_weight_of_the_file_is_mapped(tmp_path: Path) -> None:
    source = save_model(layer(), tmp_path / "model.onnx")
    model = load_canonical(source)
    save_model(model, tmp_path / "out" / "model.onnx")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_weight_with_another_reader_stays_as_it_is() -> None:
    model = layer(", float[64, 48] z", "z = Neg(w)")
    canonicalize(model)
    assert "Transpose" in kinds(model)


def test_a_transposition_that_changes_nothing_is_left_out() -> None:
    text = LAYER.format(more="", rest="").replace("[1, 0]", "[0, 1]").replace("64, 48", "48, 64")
    model = bake(ir.from_onnx_text(text), data={"x"})
    wanted = weight(model)
    assert fold_transposed_weights(model, larger_than=0) == 1
    assert kinds(model) == ["MatMul"]
    np.testing.assert_array_equal(weight(model), wanted)


@pytest.mark.parametrize("output", ["turned", "w"])
def test_what_is_an_output_of_the_graph_stays_as_it_is(output: str) -> None:
    model = layer()
    values = {str(v.name): v for v in model.graph.initializers.values()}
    values |= {str(v.name): v for node in model.graph for v in node.outputs}
    model.graph.outputs.append(values[output])
    assert fold_transposed_weights(model, larger_than=0) == 0
    assert kinds(model) == ["Transpose", "MatMul"]


def test_small_weights_are_left_to_others() -> None:
    assert fold_transposed_weights(layer(), larger_than=64 * 48) == 0
    assert fold_transposed_weights(layer(), larger_than=64 * 48 - 1) == 1
