"""`kv`: positions, biases over positions and companions of the tokens follow the cache."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graphs import (
    BIASES,
    COMPANIONS,
    LATE_BLOCKS,
    POSITIONS,
    UNCLEAR_BIASES,
    UNCLEAR_COMPANIONS,
    decoder,
)
from weights import bake

from optc.core.context import Context
from optc.ir.flash_attention import flash_attention_nodes, read_spec
from optc.ir.interface import cache_ports, complete_feeds, ports
from optc.passes.flash import Flash
from optc.passes.kv import KV

VOCABULARY, LENGTH, KEPT = 16, 20, 24
LAYOUTS = {"concat": KV(), "static": KV(max=KEPT)}
DATA = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "picture"}
GRAPHS = {
    **{f"positions-{name}": decoder(name) for name in POSITIONS},
    **{f"bias-{name}": decoder("none", bias=text) for name, text in BIASES.items()},
    **{f"input-{name}": decoder("none", companion=given) for name, given in COMPANIONS.items()},
}
HERE = "here = Gather(places, range)\n"
JOINED = {
    "Sum": HERE + "x = Sum(words, here)",
    "Mean": HERE + "x = Mean(words, here)",
    "PRelu": HERE + "x = PRelu(words, here)",
    "Xor": HERE
    + """
    above = Greater(words, here)
    far = Constant<value_float = 0.1>()
    large = Greater(here, far)
    either = Xor(above, large)
    x = Cast<to = 1>(either)
    """,
}
GRAPHS |= {
    f"table-{op}": decoder("none").replace("x = Identity(words)", lines)
    for op, lines in JOINED.items()
}
UNCLEAR = {
    "by_length": (decoder("none", bias=UNCLEAR_BIASES["by_length"]), "is not understood"),
    "from_the_last": (decoder("none", bias=UNCLEAR_BIASES["from_the_last"]), "is not understood"),
    "by_length_with_positions_given": (
        decoder("none", bias=UNCLEAR_BIASES["by_length"], companion=COMPANIONS["position_ids"]),
        "is not understood",
    ),
    "lengths_divide_with_axes_of_their_own": (
        decoder(
            "none",
            companion=("int64[r,k] attention_mask", UNCLEAR_COMPANIONS["lengths_divide"][1]),
        ),
        "for tokens that are no padding",
    ),
    "lengths_divide": (
        decoder("none", companion=UNCLEAR_COMPANIONS["lengths_divide"]),
        "for tokens that are no padding",
    ),
    "kinds_see_each_other": (
        decoder("none", companion=UNCLEAR_COMPANIONS["kinds_see_each_other"]),
        "depends on the input token_type_ids",
    ),
    "picture": (
        decoder("none", companion=UNCLEAR_COMPANIONS["picture"]),
        "not one entry per token",
    ),
}


def build(graph, text: str) -> ir.Model:
    """The decoder with its weights baked in, after `flash`."""
    model = bake(graph(text), DATA)
    Flash().run(model, Context())
    return model


def whole(run, model: ir.Model, tokens: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """What the graph without a cache says."""
    given = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(tokens.shape[1])[None].repeat(len(tokens), 0),
        "token_type_ids": kinds,
    }
    return run(model, {v.name: given[v.name] for v in model.graph.inputs})["logits"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", GRAPHS)
def test_rows_of_different_lengths_say_what_they_say_alone(name, layout, graph, run, rng):
    """Prompts padded on the right, then pieces; each row is at its own positions."""
    tokens, kinds = rng.integers(0, VOCABULARY, (3, LENGTH)), rng.integers(0, 2, (3, LENGTH))
    expected = whole(run, build(graph, GRAPHS[name]), tokens, kinds)
    model = build(graph, GRAPHS[name])
    assert LAYOUTS[layout].run(model, Context()).rewrites == 1
    takes = ports(model.graph.inputs)
    lengths, caches = np.zeros(3, np.int64), {}
    for count, real in ((9, (9, 2, 5)), (1, (1, 1, 1)), (6, (6, 6, 6)), (3, (3, 3, 3))):
        at = [slice(n, n + count) for n in lengths]
        feeds = {
            "input_ids": np.stack([tokens[row, part] for row, part in enumerate(at)]),
            "token_type_ids": np.stack([kinds[row, part] for row, part in enumerate(at)]),
            "cache_lengths": lengths,
        }
        feeds = {port.name: feeds[port.name] for port in takes if port.name in feeds}
        out = run(model, complete_feeds(takes, feeds | caches))
        caches = {c.past: out[c.present] for c in cache_ports(takes)}
        for row, n in enumerate(real):
            start = lengths[row]
            np.testing.assert_allclose(
                out["logits"][row, :n], expected[row, start : start + n], atol=2e-6
            )
        lengths = lengths + np.array(real)


@pytest.mark.parametrize("name", [name for name in GRAPHS if "token_type_ids" not in name])
def test_companions_that_say_no_more_than_lengths_go(name, graph):
    model = build(graph, GRAPHS[name])
    KV().run(model, Context())
    names = [v.name for v in model.graph.inputs]
    assert [n for n in names if "past" not in n] == ["input_ids", "cache_lengths"]


def test_companions_with_an_entry_per_token_stay(graph):
    model = build(graph, GRAPHS["input-token_type_ids"])
    KV().run(model, Context())
    assert "token_type_ids" in {v.name for v in model.graph.inputs}


@pytest.mark.parametrize("name", [name for name in GRAPHS if "padding" in name])
def test_padding_leaves_no_mask(name, graph):
    model = build(graph, GRAPHS[name])
    KV().run(model, Context())
    (node,) = flash_attention_nodes(model)
    assert (read_spec(node).mask, read_spec(node).causal) == ("", True)


@pytest.mark.parametrize("name", UNCLEAR)
def test_refusals_say_why_and_leave_the_graph_as_it_is(name, graph, run, rng):
    text, reason = UNCLEAR[name]
    model = build(graph, text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = KV().run(model, Context())
    assert (result.rewrites, len(result.refusals)) == (0, 1)
    assert reason in result.refusals[0].reason
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", ["table", "table_in_two", "from_the_end"])
def test_a_bias_that_ends_before_a_fixed_cache_is_refused(name, graph):
    model = build(graph, GRAPHS[f"bias-{name}"])
    (refusal,) = KV(max=50).run(model, Context()).refusals
    assert "does not reach as far as the cache, 50 keys" in refusal.reason


@pytest.mark.parametrize("name", BIASES)
def test_a_second_run_finds_nothing(name, graph):
    model = build(graph, GRAPHS[f"bias-{name}"])
    assert KV().run(model, Context()).rewrites == 1
    assert KV().run(model, Context()).notes == ("the graph has a cache already",)


@pytest.mark.parametrize("name", [n for n in BIASES if "table" not in n and n != "from_the_end"])
def test_one_token_costs_as_much_as_there_are_keys(name, graph, run):
    """Nothing of all keys by all keys is computed."""
    model = build(graph, GRAPHS[f"bias-{name}"])
    KV().run(model, Context())
    keys, takes = 200, ports(model.graph.inputs)
    outputs = [v for n in model.graph for v in n.outputs if v.dtype is not None]
    model.graph.outputs.extend(v for v in outputs if not v.is_graph_output())
    caches = {c.past: np.zeros((1, c.heads, keys, c.dim), np.float32) for c in cache_ports(takes)}
    feeds = {"input_ids": np.array([[3]]), "cache_lengths": np.array([keys])} | caches
    sizes = {name: value.size for name, value in run(model, feeds).items()}
    assert max(sizes.values()) <= 2 * 8 * (keys + 1)


def test_layers_share_what_is_made_of_a_table(graph):
    """Queries and keys of all layers are turned by the same angles."""
    model = build(graph, GRAPHS["positions-rotary"])
    KV().run(model, Context())
    turned = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert len(turned) == 2
    assert len({node.inputs[1:] for node in turned}) == 1


@pytest.mark.parametrize(
    "text", [decoder("late"), decoder("none", bias=LATE_BLOCKS)], ids=["positions", "blocks"]
)
def test_what_changes_late_is_not_taken_for_what_never_changes(text, graph, run, rng):
    """Both change at 300 tokens."""
    tokens = rng.integers(0, VOCABULARY, (1, 310))
    expected = whole(run, build(graph, text), tokens, tokens)
    model = build(graph, text)
    assert KV().run(model, Context()).rewrites == 1
    takes, done, caches, parts = ports(model.graph.inputs), 0, {}, []
    for count in (297, 6, 1, 6):
        feeds = {"input_ids": tokens[:, done : done + count], "cache_lengths": np.array([done])}
        out = run(model, complete_feeds(takes, feeds | caches))
        caches = {c.past: out[c.present] for c in cache_ports(takes)}
        parts.append(out["logits"])
        done += count
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=5e-6)
