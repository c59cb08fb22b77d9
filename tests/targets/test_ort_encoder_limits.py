"""What an encoder takes is read from tables, by what chooses among their rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.session import EncoderLimits
from optc.targets.ort_encoder import encoder_limits_of, note_encoder


def looked_up(indices: str, cache: str = "encoder") -> ir.Model:
    """Ten rows chosen by `indices`, of the words and of their number, beside a cache."""
    model = ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["": 24]>
        table (int64[B,E] input_ids, int64[B,S] decoder_input_ids, int64[B] cache_lengths,
               float[B,1,T,4] past, float[10,2] rows) => (y) {{
            zero = Constant<value_int = 0>()
            one = Constant<value_int = 1>()
            two = Constant<value_int = 2>()
            nine = Constant<value_int = 9>()
            count_1d = Shape<start = 1, end = 2>(input_ids)
            count = Squeeze(count_1d)
            steps = Range(zero, count, one)
            chosen = {indices}
            y = Gather(rows, chosen)
        }}"""
    )
    named = {str(value.name): value for value in model.graph.inputs}
    named["past"].name = f"past_key_values.0.{cache}.key"
    rows = named["rows"]
    rows.const_value = ir.tensor(np.zeros((10, 2), np.float32), name="rows")
    model.graph.inputs.remove(rows)
    model.graph.register_initializer(rows)
    return model


@pytest.mark.parametrize(
    ("indices", "limits"),
    [
        ("Identity(steps)", EncoderLimits(tokens=10)),
        ("Add(steps, two)", EncoderLimits(tokens=8)),
        ("Min(steps, nine)", EncoderLimits()),
        ("Div(steps, two)", EncoderLimits()),
        ("Sub(steps, steps)", EncoderLimits()),
        ("Identity(input_ids)", EncoderLimits(ids=10)),
        ("Cast<to = 6>(input_ids)", EncoderLimits(ids=10)),
        ("Identity(decoder_input_ids)", EncoderLimits()),
        ("Add(input_ids, steps)", EncoderLimits()),
    ],
)
def test_a_limit_is_where_a_table_ends(indices: str, limits: EncoderLimits) -> None:
    assert encoder_limits_of(looked_up(indices)) == limits


def test_a_decoder_has_no_encoder() -> None:
    assert encoder_limits_of(looked_up("Identity(steps)", "decoder")) == EncoderLimits()


def test_what_a_model_came_with_is_not_believed() -> None:
    model = looked_up("Identity(decoder_input_ids)")
    model.metadata_props.update({"optc.encoder_tokens": "3", "optc.encoder_ids": "4"})
    note_encoder(model)
    assert model.metadata_props == {}
