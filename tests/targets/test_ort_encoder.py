"""The `ort` target on an encoder-decoder with a cache: kernels in the branch, and one run of it."""

from __future__ import annotations

import numpy as np
import pytest
from encoder_graphs import VOCABULARY, encoder_decoder, with_cache

from optc.ir.interface import cache_ports, complete_feeds, ports
from optc.ir.load import load_canonical
from optc.ir.save import save_model
from optc.ir.verify import verify_model
from optc.passes.kv import KV
from optc.targets.ort import Ort
from optc.targets.ort_attention import ATTENTION, BODY, GROUPED, attention_choices


@pytest.mark.parametrize("kv", [KV(), KV(max=24)], ids=["concat", "static"])
def test_attention_in_the_branch_gets_its_kernel(kv, graph):
    lowered = Ort().lower(with_cache(graph, encoder_decoder(), kv))
    verify_model(lowered)
    assert {c.site: c.kernel for c in attention_choices(lowered)} == {
        "oe": ATTENTION,
        "oo": GROUPED,
        "os": BODY,
    }
    (node,) = [n for n in lowered.graph if n.op_type == "If"]
    inside = [n.op_type for n in node.attributes["then_branch"].as_graph()]
    assert inside.count("MatMul") == 5
    assert "Attention" in inside


def test_the_engine_answers_as_the_graph_does_and_skips_the_encoder(graph, run, rng, tmp_path):
    model = with_cache(graph, encoder_decoder(mask=True))
    Ort().build(Ort().lower(model), tmp_path)
    words = rng.integers(0, VOCABULARY, (2, 9))
    said, answer = words, words[:, ::-1].copy()
    mask = (np.arange(9) < np.array([[9], [6]])).astype(np.int64)
    inputs = ports(model.graph.inputs)
    feeds = {"input_ids": said, "attention_mask": mask, "decoder_input_ids": answer[:, :4]}
    feeds = complete_feeds(inputs, feeds)
    with Ort().open(tmp_path) as session:
        out = session.run(feeds)
        expected = run(model, feeds)
        for name, array in expected.items():
            np.testing.assert_allclose(out[name], array, atol=1e-5)
        feeds |= {c.past: out[c.present] for c in cache_ports(inputs)}
        feeds |= {
            "cache_lengths": np.array([4, 4]),
            "decoder_input_ids": answer[:, 4:5],
            "input_ids": np.zeros_like(said),
        }
        np.testing.assert_allclose(
            session.run(feeds)["logits"], run(model, feeds)["logits"], atol=1e-5
        )


def test_a_graph_that_was_saved_and_loaded_is_lowered_like_the_one_in_memory(graph, tmp_path):
    model = with_cache(graph, encoder_decoder())
    loaded = load_canonical(save_model(model, tmp_path / "model.onnx"))
    lowered = Ort().lower(loaded)
    wanted = [n.op_type for n in Ort().lower(model).graph.all_nodes()]
    assert sorted(n.op_type for n in lowered.graph.all_nodes()) == sorted(wanted)
