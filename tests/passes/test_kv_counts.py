"""`kv`: what changes at a small number of tokens or rows, and operands that say how many, or which.

Every step of decoding has one token, so that what is special of one, two or five must be seen.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_kv_positions import VOCABULARY, build, whole
from test_kv_thresholds import AFTER, DOUBLED, bias, in_pieces, slower

from optc.core.context import Context
from optc.passes.kv import KV


def after(lines: str) -> str:
    """A decoder whose last hidden states `z` become `z2`; `deep` is axis 2."""
    return AFTER.replace("LAST", lines)


def limited(number: int, op: str, counted: str = "count") -> str:
    return f"limit = Constant<value_int = {number}>()\nover = {op}({counted}, limit)\n"


ADDED = "\nreal = Cast<to = 1>(over)\nz2 = Add(z, real)"
ROWS = "rows_1d = Shape<start = 0, end = 1>(input_ids)\nrows = Squeeze(rows_1d)\n"
ALL = "all = ReduceProd<keepdims = 0>(sizes)\n"
SMALL = {
    f"{what} {op} {number}": (text(limited(number, op)), "changes between")
    for number in (1, 2, 5)
    for op in ("Greater", "Equal", "LessOrEqual")
    for what, text in {
        "angles": slower,
        "factor": lambda condition: after(condition + ADDED),
    }.items()
    if (number, op) not in {(5, "Greater"), (5, "LessOrEqual")} or what == "angles"
}
SMALL |= {
    "factor at 5": (after(limited(5, "Greater") + ADDED), "depends on the number of tokens"),
    "bias at 2": (bias(limited(2, "Equal") + DOUBLED), "changes between 2 and 3 tokens"),
    "bias at 5": (bias(limited(5, "Equal") + DOUBLED), "changes between 4 and 5 tokens"),
    "least of 2": (
        after(
            "two = Constant<value_int = 2>()\nleast = Min(count, two)\n"
            "real = Cast<to = 1>(least)\nz2 = Div(z, real)"
        ),
        "changes between 1 and 2 tokens",
    ),
    "all rows at 2": (
        after(ALL + limited(2, "Greater", "all") + ADDED),
        "changes between 2 and 3 tokens",
    ),
}
BATCHES = {
    "more than 1": ROWS + limited(1, "Greater", "rows"),
    "3": ROWS + limited(3, "Equal", "rows"),
    "more than 400": ROWS + limited(400, "Greater", "rows"),
    "400 tokens of all": ALL + limited(400, "Greater", "all"),
}
MOST_FIVE = "five = Constant<value_ints = [5]>()\nmany = Min(five, count_1d)\n"
SUMMED = "sum = ReduceSum(part, deep)\nz2 = Add(z, sum)"
SIXTH = """
    place = Unsqueeze(range, second)
    six = Constant<value_int = 6>()
    channel = Mod(place, six)
    hidden_sizes = Shape(z)
    lead = Slice(hidden_sizes, first, deep, first)
    table_sizes = Concat<axis = 0>(lead, second)
    channels = Expand(channel, table_sizes)
"""
COORDINATES = """
    six = Constant<value_int = 6>()
    row_count_1d = Shape<start = 0, end = 1>(z)
    row_count = Squeeze(row_count_1d)
    row_range = Range(zero, row_count, one)
    lead = Shape<start = 0, end = 2>(z)
    row_column = Unsqueeze(row_range, second)
    row_of = Expand(row_column, lead)
    token_of = Expand(places_1s, lead)
    a = Unsqueeze(row_of, deep)
    b = Unsqueeze(token_of, deep)
"""
CHANNELS_TOO = COORDINATES + "channel = Mod(token_of, six)\nc = Unsqueeze(channel, deep)\n"
CHANNELS_TOO += "where = Concat<axis = 2>(a, b, c)\n"
OPERANDS = {
    "channel by count": (
        "width = Constant<value_int = 16>()\nwhich = Mod(count, width)\n"
        "part = Gather<axis = 2>(z, which)\ncolumn = Unsqueeze(part, deep)\nz2 = Add(z, column)",
        "'which' depends on the number of tokens",
    ),
    "one of two": (
        limited(5, "Greater")
        + "which = Cast<to = 7>(over)\nother = Neg(z)\n"
        + "a = Unsqueeze(z, deep)\nb = Unsqueeze(other, deep)\nboth = Concat<axis = 2>(a, b)\n"
        + "z2 = Gather<axis = 2>(both, which)",
        "'which' depends on the number of tokens",
    ),
    "best few": (
        MOST_FIVE + "part, which = TopK<axis = -1>(z, many)\n" + SUMMED,
        "'many' says of the first tokens changes between 1 and 2 tokens",
    ),
    "first channels": (
        MOST_FIVE + "part = Slice(z, first, many, deep)\n" + SUMMED,
        "'many' says of the first tokens changes between 1 and 2 tokens",
    ),
    "channels from there on": (
        "few = Constant<value_ints = [2]>()\nend = Add(count_1d, few)\n"
        "part = Slice(z, count_1d, end, deep)\n" + SUMMED,
        "says of the first tokens changes between 1 and 2 tokens",
    ),
    "tokens up to 20": (
        "limit = Constant<value_ints = [20]>()\nend = Min(limit, count_1d)\n"
        "z2 = Slice(z, first, end, second)",
        "'end' says of the first tokens changes between 20 and 21 tokens",
    ),
    "split by count": (
        limited(20, "Greater")
        + "some = Constant<value_ints = [2, 8]>()\nmany = Constant<value_ints = [8, 2]>()\n"
        + "parts = Where(over, some, many)\nlead = Shape<start = 0, end = 2>(z)\n"
        + "target = Concat<axis = 0>(lead, parts)\ngroups = Reshape(z, target)\n"
        + "soft = Softmax<axis = 2>(groups)\nback = Constant<value_ints = [0, 0, 16]>()\n"
        + "z2 = Reshape(soft, back)",
        "'target' says of the first tokens changes between 20 and 21 tokens",
    ),
    "tokens clamped": (
        "last = Constant<value_int = 15>()\nwhich = Min(range, last)\n"
        "z2 = Gather<axis = 1>(z, which)",
        "'which' chooses tokens, and not each in its place where there are 30 in 1 row(s)",
    ),
    "rows clamped": (
        ROWS + "row_range = Range(zero, rows, one)\nwhich = Min(row_range, one)\n"
        "z2 = Gather<axis = 0>(z, which)",
        "'which' chooses tokens, and not each in its place where there are 1 in 3 row(s)",
    ),
    "coordinates of a channel": (
        CHANNELS_TOO + "part = GatherND(z, where)\ncolumn = Unsqueeze(part, deep)\n"
        "z2 = Add(z, column)",
        "'where' chooses tokens, and not each in its place",
    ),
    "a channel of each set": (
        CHANNELS_TOO + "nought = Constant<value_float = 0.0>()\nnew = Expand(nought, lead)\n"
        "z2 = ScatterND(z, where, new)",
        "'where' chooses tokens, and not each in its place",
    ),
}
REFUSED = (
    SMALL
    | {name: (after(text + ADDED), "how many rows there are") for name, text in BATCHES.items()}
    | {name: (after(text), reason) for name, (text, reason) in OPERANDS.items()}
)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, graph):
    text, reason = REFUSED[name]
    result = KV(max=150).run(build(graph, text), Context())
    assert result.rewrites == 0
    assert reason in result.refusals[0].reason


TAKEN = {
    "a channel that follows the position": after(
        SIXTH + "part = GatherElements<axis = 2>(z, channels)\nz2 = Add(z, part)"
    ),
    "a channel that follows the position set": after(
        SIXTH + "new = Cast<to = 1>(channels)\nz2 = ScatterElements<axis = 2>(z, channels, new)"
    ),
    "a channel that is always the same": after(
        "which = Sub(count, count)\npart = Gather<axis = 2>(z, which)\n"
        "column = Unsqueeze(part, deep)\nz2 = Add(z, column)"
    ),
    "each token in its place": after("z2 = Gather<axis = 1>(z, range)"),
    "coordinates of each token": after(
        COORDINATES + "where = Concat<axis = 2>(a, b)\nz2 = GatherND(z, where)"
    ),
    "a bias that is 0 where it is another": bias(limited(1, "Greater") + DOUBLED),
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken_and_right_in_pieces_of_any_size(name, graph, run, rng):
    tokens = rng.integers(0, VOCABULARY, (3, 24))
    expected = whole(run, build(graph, TAKEN[name]), tokens, tokens)
    model = build(graph, TAKEN[name])
    assert KV().run(model, Context()).rewrites == 1
    for counts in ((24,), (1,) * 24, (2, 5, 1, 16)):
        got = in_pieces(run, model, tokens, counts)
        np.testing.assert_allclose(got, expected, atol=5e-6)
