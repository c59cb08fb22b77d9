"""One causal attention layer in every way of writing it, with a cache."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cached import in_chunks, on_tokens, ragged, run_kv
from handwritten import SPELLINGS, WIDTH, Layer, answer

from optc.core.context import Context
from optc.ir.canonical import canonicalize
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.targets.evaluate import open_model

CAUSAL = [layer for layer in SPELLINGS if layer.causal]
TABLE = np.random.default_rng(1).standard_normal((40, WIDTH)).astype(np.float32)
TOKENS = np.random.default_rng(2).integers(0, 40, (2, 19))
_TOLERANCE = 3e-6  # as without a cache


def decoder(layer: Layer) -> ir.Model:
    """The layer over tokens; its padding has the name that is known to be about padding."""
    model = on_tokens(layer.model(), "x", TABLE)
    for value in model.graph.inputs:
        value.name = "attention_mask" if value.name == "padding" else value.name
    canonicalize(model)
    Flash().run(model, Context())
    return model


def expected(layer: Layer, tokens: np.ndarray) -> np.ndarray:
    """What the layer means for rows without padding."""
    return answer(layer, {"x": TABLE[tokens], "padding": np.ones(tokens.shape, np.int64)})


@pytest.mark.parametrize("layer", CAUSAL, ids=str)
def test_pieces_mean_what_the_whole_means(layer):
    model = decoder(layer)
    assert run_kv(model, KV()).rewrites == 1
    assert [v.name for v in model.graph.inputs][:3] == [
        "input_ids",
        "cache_lengths",
        "past_key_values.0.key",
    ]
    with open_model(model) as session:
        whole = expected(layer, TOKENS)
        got = in_chunks(session, TOKENS, (6, 1, 4, 1, 7))
        np.testing.assert_allclose(got, whole, atol=_TOLERANCE)
        for row, logits in enumerate(ragged(session, list(TOKENS), (7, 2))):
            np.testing.assert_allclose(logits, whole[row, : len(logits)], atol=_TOLERANCE)


@pytest.mark.parametrize("layer", [x for x in SPELLINGS if not x.causal and not x.padded], ids=str)
def test_layers_that_see_later_keys_are_refused(layer):
    (refusal,) = run_kv(decoder(layer), KV()).refusals
    assert "not causal" in refusal.reason
