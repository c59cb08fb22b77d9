"""`kv`: what changes past some number of tokens is refused, unless that number is never reached."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graphs import decoder
from test_kv_positions import VOCABULARY, build, whole

from optc.core.context import Context
from optc.ir.interface import cache_ports, complete_feeds, ports
from optc.passes.kv import KV

ANGLE = "angle = Mul(place_float, speeds)"
HERE = "here = Gather(places, places_1s)"


NOTHING = ("", "")
COMPANION = ("int64[batch,seq] attention_mask", "words = Gather(table, input_ids)")
AFTER = decoder("rotary").replace(
    "logits = MatMul(z, head)",
    "deep = Constant<value_ints = [2]>()\nLAST\nlogits = MatMul(z2, head)",
)


def slower(condition: str, companion: tuple[str, str] = NOTHING) -> str:
    """Rotary angles that are halved where a condition on sizes holds (dynamic NTK, longrope)."""
    scaled = f"""{condition}
        slow = Constant<value_float = 0.5>()
        fast = Constant<value_float = 1.0>()
        speed = Where(over, slow, fast)
        even = Mul(place_float, speeds)
        angle = Mul(even, speed)"""
    return decoder("rotary", companion=companion).replace(ANGLE, scaled)


def bias(scale: str) -> str:
    """ALiBi, times `scale`."""
    return decoder(
        "none",
        bias=f"""
        rows = Unsqueeze(range, second)
        columns = Unsqueeze(range, first)
        {scale}
        slopes = Constant<value = float[2,1,1] {{0.5, 0.125}}>()
        apart = Sub(columns, rows)
        scaled = Mul(apart, scale)
        far = Cast<to = 1>(scaled)
        bias = Mul(far, slopes)""",
    )


LIMIT = "limit = Constant<value_int = 200>()\n"
OVER = LIMIT + "over = Greater(count, limit)"
BY_COUNT = slower(OVER)
DOUBLED = "two = Constant<value_int = 2>()\nscale = Where(over, two, one)"
BIAS_BY_COUNT = bias(OVER + "\n" + DOUBLED)
DIVIDED = decoder("rotary").replace(
    "x = Identity(words)",
    "least = Constant<value_int = 160>()\nmost = Max(count, least)\n"
    "real = Cast<to = 1>(most)\nx = Div(words, real)",
)
ENDING = decoder("learned").replace(
    HERE,
    "least = Constant<value_int = 160>()\nmost = Max(count, least)\n"
    "real = Cast<to = 1>(most)\nraw = Gather(places, places_1s)\nhere = Div(raw, real)",
)
REFUSED = {
    "angles": (BY_COUNT, "changes between 200 and 201 tokens"),
    "angles_by_the_last_position": (
        slower(LIMIT + "last = ReduceMax<keepdims = 0>(range)\nover = Greater(last, limit)"),
        "changes between 201 and",
    ),
    "angles_at_one_length": (
        slower(LIMIT + "over = Equal(count, limit)"),
        "changes between 199 and 200 tokens",
    ),
    "angles_by_blocks": (
        slower(
            "block = Constant<value_int = 64>()\nmany = Constant<value_int = 3>()\n"
            "blocks = Div(count, block)\nover = Greater(blocks, many)"
        ),
        "changes between",
    ),
    "angles_at_one_number_of_blocks": (
        slower(
            "block = Constant<value_int = 17>()\nsome = Constant<value_int = 19>()\n"
            "blocks = Div(count, block)\nover = Equal(blocks, some)"
        ),
        "and 323 tokens",
    ),
    "angles_by_padding_that_is_not_there": (
        slower(
            LIMIT + "along = Constant<value_ints = [1]>()\nbehind = Constant<value_ints = [2]>()\n"
            "sums = ReduceSum(attention_mask, along)\nsum = Unsqueeze(sums, behind)\n"
            "over = Greater(sum, limit)",
            COMPANION,
        ),
        "changes between 200 and 201 tokens",
    ),
    "which_of_two": (
        AFTER.replace(
            "LAST",
            OVER + "\nwhich = Cast<to = 7>(over)\nother = Neg(z)\n"
            "a = Unsqueeze(z, deep)\nb = Unsqueeze(other, deep)\nboth = Concat<axis = 2>(a, b)\n"
            "z2 = Gather<axis = 2>(both, which)",
        ),
        "what 'which' says of the first tokens changes between 200 and 201 tokens",
    ),
    "how_many_channels": (
        AFTER.replace(
            "LAST",
            "limit = Constant<value_ints = [200]>()\nover = Greater(count_1d, limit)\n"
            "half = Constant<value_ints = [8]>()\nall = Constant<value_ints = [16]>()\n"
            "end = Where(over, half, all)\npart = Slice(z, first, end, deep)\n"
            "most = ReduceMax(part, deep)\nz2 = Add(z, most)",
        ),
        "what 'end' says of the first tokens changes between 200 and 201 tokens",
    ),
    "angles_far_away": (
        slower("limit = Constant<value_int = 1000000>()\nover = Greater(count, limit)"),
        "changes between",
    ),
    "angles_by_the_batch": (
        slower(
            "batch_1d = Shape<start = 0, end = 1>(input_ids)\nfew = Constant<value_int = 4>()\n"
            "over = Greater(batch_1d, few)"
        ),
        "depends on how many rows there are",
    ),
    "bias": (BIAS_BY_COUNT, "changes between 200 and 201 tokens"),
    "data": (DIVIDED, "what 'real' says of the first tokens changes between 160 and 161 tokens"),
    "data_by_all_rows": (
        decoder("rotary").replace(
            "x = Identity(words)",
            "all = ReduceProd<keepdims = 0>(sizes)\n"
            "least = Constant<value_int = 160>()\nmost = Max(all, least)\n"
            "real = Cast<to = 1>(most)\nx = Div(words, real)",
        ),
        "changes between",
    ),
    "the_same_everywhere": (
        decoder("none").replace(
            "x = Identity(words)",
            OVER
            + "\nonce = Cast<to = 1>(over)\ncolumn = Constant<value_ints = [-1, 1]>()\n"
            + "plain = Cast<to = 1>(range)\nnone = Sub(plain, plain)\nsame = Add(none, once)\n"
            + "turned = Reshape(same, column)\nx = Add(words, turned)",
        ),
        "changes between 200 and 201 tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_how_many_tokens_follow_is_refused(name, graph):
    text, reason = REFUSED[name]
    model = build(graph, text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = KV().run(model, Context())
    assert result.rewrites == 0
    assert reason in result.refusals[0].reason
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def in_pieces(run, model: ir.Model, tokens: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    takes, done, caches, parts = ports(model.graph.inputs), 0, {}, []
    for count in counts:
        lengths = np.full(len(tokens), done)
        feeds = {"input_ids": tokens[:, done : done + count], "cache_lengths": lengths}
        out = run(model, complete_feeds(takes, feeds | caches))
        caches = {c.past: out[c.present] for c in cache_ports(takes)}
        parts.append(out["logits"])
        done += count
    return np.concatenate(parts, 1)


@pytest.mark.parametrize(
    ("text", "kv"),
    [(BY_COUNT, KV(max=150)), (BIAS_BY_COUNT, KV(max=150)), (DIVIDED, KV(max=150)), (ENDING, KV())],
    ids=["angles", "bias", "data", "table_that_ends"],
)
def test_a_number_that_no_row_reaches_is_not_reached_by_all_rows_together(
    text, kv, graph, run, rng
):
    """Eight rows of 40 tokens are 320, and none of them has over 160."""
    tokens = rng.integers(0, VOCABULARY, (8, 50))
    expected = whole(run, build(graph, text), tokens, tokens)
    model = build(graph, text)
    result = kv.run(model, Context())
    assert result.rewrites == 1, result
    got = in_pieces(run, model, tokens, (40, 1, 9))
    np.testing.assert_allclose(got, expected, atol=5e-6)


BY_ROW = """
    limit = Constant<value_int = 160>()
    late = Greater(range, limit)
    tall = Unsqueeze(late, second)
    scale = Cast<to = 7>(tall)"""
CLAMPED = """
    limit = Constant<value_int = 160>()
    near = Min(range, limit)
    scale_1 = Unsqueeze(near, second)
    scale = Add(scale_1, one)"""


@pytest.mark.parametrize("text", [bias(BY_ROW), bias(CLAMPED)], ids=["step", "clamp"])
def test_a_token_may_depend_on_its_own_position_past_any_number(text, graph, run, rng):
    tokens = rng.integers(0, VOCABULARY, (2, 200))
    expected = whole(run, build(graph, text), tokens, tokens)
    model = build(graph, text)
    assert KV().run(model, Context()).rewrites == 1
    got = in_pieces(run, model, tokens, (150, 11, 1, 38))
    np.testing.assert_allclose(got, expected, atol=5e-6)
