"""One attention layer in every way of writing it: fused, exact, understood."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from handwritten import SPELLINGS, Layer, answer, feeds

from optc.core.base import PassResult
from optc.core.context import Context
from optc.ir.canonical import canonicalize
from optc.ir.flash_attention import flash_attention_nodes, read_spec
from optc.passes.flash import Flash

# Scores are sums of 32 then 8 products of numbers about 1, answers of 9: some ten roundings.
_TOLERANCE = 3e-6


def fused(layer: Layer) -> tuple[ir.Model, PassResult]:
    model = layer.model()
    canonicalize(model)
    return model, Flash().run(model, Context())


@pytest.mark.parametrize("layer", SPELLINGS, ids=str)
def test_the_graph_means_what_it_is_said_to_mean(layer, run):
    """Else the other tests would prove nothing."""
    given = feeds(layer)
    np.testing.assert_allclose(
        run(layer.model(), given)["y"], answer(layer, given), atol=_TOLERANCE
    )


@pytest.mark.parametrize("layer", SPELLINGS, ids=str)
def test_it_is_fused(layer):
    _, result = fused(layer)
    assert (result.rewrites, result.refusals) == (1, ())


@pytest.mark.parametrize("layer", SPELLINGS, ids=str)
def test_the_fused_graph_means_the_same(layer, run):
    model, result = fused(layer)
    assert result.rewrites == 1
    for batch, length in ((2, 9), (1, 5), (3, 16)):
        given = feeds(layer, batch, length)
        np.testing.assert_allclose(run(model, given)["y"], answer(layer, given), atol=_TOLERANCE)


@pytest.mark.parametrize("layer", SPELLINGS, ids=str)
def test_its_parts_become_attributes(layer):
    model, _ = fused(layer)
    (node,) = flash_attention_nodes(model)
    spec = read_spec(node)
    assert (spec.causal, spec.window) == (layer.causal, layer.window)
    assert spec.scale == pytest.approx(layer.scale_value)
    assert spec.softcap == pytest.approx(layer.softcap)
    assert bool(spec.mask) == (layer.padded or layer.biased)
    assert spec.mask == "bias" or not layer.biased
    assert node.inputs[1].shape[1] == layer.key_heads


@pytest.mark.parametrize("layer", SPELLINGS, ids=str)
def test_nothing_of_it_is_left(layer):
    model, _ = fused(layer)
    left = {node.op_type for node in model.graph}
    assert not left & {"Softmax", "Exp", "LogSoftmax", "IsNaN", "Einsum", "Tile", "Trilu"}
    if not layer.padded:
        assert not left & {"Range", "LessOrEqual", "Greater", "Where"}
