"""An encoder-decoder with a cache is judged in pieces, of which only its tokens are cut."""

from __future__ import annotations

import numpy as np
import pytest
from encoder_graphs import VOCABULARY, encoder_decoder, fused, with_cache
from tiny_lm import OrtModel, open_model

from optc.ir.reference import Reference
from optc.parity.compare import compare
from optc.parity.metrics import Accumulator
from optc.parity.oracle import make_reference
from optc.parity.padding import valid_positions
from optc.parity.policy import Policy
from optc.parity.signature import InputMaker

EXACT = Policy.default(["exact"])


@pytest.fixture
def reference(graph) -> Reference:
    """Of the graph without a cache; the encoder reads as many words as the decoder."""
    alike = encoder_decoder(mask=True, target="length")
    return make_reference(fused(graph, alike), open_model, seed=1)


def test_a_correct_cache_keeps_the_exact_promise(graph, reference):
    metrics = compare(OrtModel(with_cache(graph, encoder_decoder(mask=True))), reference)
    assert EXACT.violations(metrics) == []
    assert metrics.top1 == 1
    assert metrics.ppl_ratio == pytest.approx(1)


def test_a_cache_that_gives_back_something_else_is_caught(graph, reference):
    model = with_cache(graph, encoder_decoder(mask=True))
    (node,) = [n for n in model.graph if n.op_type == "If"]
    keys, values = node.attributes["else_branch"].as_graph()
    swapped = values.inputs[0], keys.inputs[0]
    for copy, past in zip((keys, values), swapped, strict=True):
        copy.replace_input_with(0, past)
    assert EXACT.violations(compare(OrtModel(model), reference))


def test_a_graph_as_it_was_agrees_with_itself(graph, reference):
    metrics = compare(OrtModel(fused(graph, encoder_decoder(mask=True))), reference)
    assert metrics.max_abs == 0


def test_the_mask_of_the_encoder_is_not_about_the_decoders_tokens():
    tokens = {"input_ids": np.zeros((1, 3)), "decoder_input_ids": np.zeros((1, 3))}
    mask = np.array([[1, 1, 0]])
    assert valid_positions(tokens | {"attention_mask": mask}) is None
    found = valid_positions(tokens | {"attention_mask": mask, "decoder_attention_mask": mask})
    assert found.tolist() == [[True, True, False]]


def test_perplexity_is_about_the_decoders_tokens():
    """Two models that differ only in what they think of words that are never said."""
    expected = np.random.default_rng(0).standard_normal((1, 3, 4))
    inputs = {"input_ids": np.zeros((1, 3), int), "decoder_input_ids": np.array([[3, 1, 2]])}
    found = Accumulator(causal=True)
    found.add({"logits": expected}, {"logits": expected[:, :, [3, 1, 2, 0]]}, inputs)
    assert found.metrics().ppl_ratio == pytest.approx(1)
    assert found.metrics().kl > 0.1


def test_padding_is_not_among_the_tokens_that_are_made_up(graph):
    hidden = """
    is_padding = Equal(decoder_input_ids, zero)
    is_word = Not(is_padding)
    kept = Cast<to = 1>(is_word)
    last = Constant<value_ints = [2]>()
    column = Unsqueeze(kept, last)
    whole = Add(x3, y3)
    z = Mul(whole, column)
    """
    maker = InputMaker(fused(graph, encoder_decoder(more=hidden)))
    made = [maker.make(index, seed=0, stream=0) for index in range(4)]
    said, tokens = (
        {int(i) for feeds in made for i in feeds[name].reshape(-1)}
        for name in ("input_ids", "decoder_input_ids")
    )
    assert said == set(range(VOCABULARY))
    assert tokens == set(range(1, VOCABULARY))
