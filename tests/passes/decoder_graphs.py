"""Small decoders, as ONNX text: one layer, 16 words, width 16, 2 heads of 8.

Three things vary: where positions come from, what is added to the scores, and which inputs there
are besides `input_ids`. Weights are inputs, to be baked in.
"""

from __future__ import annotations

__all__ = [
    "BIASES",
    "COMPANIONS",
    "LATE_BLOCKS",
    "POSITIONS",
    "UNCLEAR_BIASES",
    "UNCLEAR_COMPANIONS",
    "decoder",
]

_SAME = "q = Identity(q0)\nk = Identity(k0)"
_ADDED = "x = Add(words, here)"
POSITIONS = {
    "none": ("x = Identity(words)", _SAME),
    "learned": ("here = Gather(places, places_1s)\nx = Add(words, here)", _SAME),
    "rank_1": ("here = Gather(places, range)\nx = Add(words, here)", _SAME),
    "rotary": (
        """
    x = Identity(words)
    third = Constant<value_ints = [2]>()
    place_column = Unsqueeze(places_1s, third)
    place_float = Cast<to = 1>(place_column)
    angle = Mul(place_float, speeds)
    cos = Cos(angle)
    sin = Sin(angle)
    """,
        "q = RotaryEmbedding(q0, cos, sin)\nk = RotaryEmbedding(k0, cos, sin)",
    ),
    "cut_table": ("here = Slice(places, first, count_1d, first)\n" + _ADDED, _SAME),
    "behind_padding": (
        """
    ones = ConstantOfShape<value = int64[1] {1}>(sizes)
    nth = CumSum(ones, one)
    here = Gather(places, nth)
    """
        + _ADDED,
        _SAME,
    ),
    "flattened": (
        """
    minus = Constant<value_ints = [-1]>()
    flat = Reshape(places_1s, minus)
    rows = Gather(places, flat)
    width = Constant<value_ints = [16]>()
    one_row = Concat<axis = 0>(second, count_1d, width)
    here = Reshape(rows, one_row)
    """
        + _ADDED,
        _SAME,
    ),
    "words_first": (
        """
    turned = Transpose<perm = [1, 0, 2]>(words)
    column = Unsqueeze(range, second)
    here = Gather(places, column)
    sum = Add(turned, here)
    x = Transpose<perm = [1, 0, 2]>(sum)
    """,
        _SAME,
    ),
    "late": (
        """
    age = Constant<value_int = 300>()
    ages = Div(places_1s, age)
    column_axis = Constant<value_ints = [2]>()
    grown = Unsqueeze(ages, column_axis)
    added = Cast<to = 1>(grown)
    x = Add(words, added)
    """,
        _SAME,
    ),
}

_SIDES = """
    rows = Unsqueeze(range, second)
    columns = Unsqueeze(range, first)
"""
_ALIBI = """
    slopes = Constant<value = float[2,1,1] {0.5, 0.125}>()
    far = Cast<to = 1>(apart)
    bias = Mul(far, slopes)
"""
_BUCKETS = """
    later = Constant<value_int = 0>()
    behind = Max(apart, later)
    exact = Constant<value_int = 4>()
    most = Constant<value_int = 7>()
    near = Less(behind, exact)
    real = Cast<to = 1>(behind)
    some = Constant<value_float = 1.0>()
    least = Max(real, some)
    log = Log(least)
    coarse = Cast<to = 7>(log)
    wide = Add(coarse, exact)
    bounded = Min(wide, most)
    bucket = Where(near, behind, bounded)
    by_head = Gather(buckets, bucket)
"""
BIASES = {
    "keys": "apart = Unsqueeze(range, first)" + _ALIBI,
    "distance": _SIDES + "apart = Sub(columns, rows)" + _ALIBI,
    "distance_turned": _SIDES
    + "other = Sub(rows, columns)\napart = Transpose<perm = [1, 0]>(other)"
    + _ALIBI,
    "from_the_end": """
    end = Constant<value_ints = [40]>()
    start = Sub(end, count_1d)
    fixed = Constant<value_int = 40>()
    long = Range(zero, fixed, one)
    part = Slice(long, start, end)
    apart = Unsqueeze(part, first)
    """
    + _ALIBI,
    "buckets": _SIDES
    + "apart = Sub(rows, columns)"
    + _BUCKETS
    + "bias = Transpose<perm = [2, 0, 1]>(by_head)",
    "table": """
    both = Concat<axis = 0>(count_1d, count_1d)
    corner = Constant<value_ints = [0, 0]>()
    inner = Constant<value_ints = [1, 2]>()
    bias = Slice(learned, corner, both, inner)
    """,
    "table_in_two": """
    third = Constant<value_ints = [2]>()
    wide = Slice(learned, first, count_1d, third)
    bias = Slice(wide, first, count_1d, second)
    """,
    "every_other": _SIDES
    + """
    two = Constant<value_int = 2>()
    apart = Sub(rows, columns)
    rest = Mod(apart, two)
    bias = Equal(rest, zero)
    """,
    "blocks": _SIDES
    + """
    size = Constant<value_int = 5>()
    block = Div(rows, size)
    other = Div(columns, size)
    bias = Equal(block, other)
    """,
}
LATE_BLOCKS = BIASES["blocks"].replace("value_int = 5", "value_int = 300")
UNCLEAR_BIASES = {
    "by_length": "apart = Mul(places_1s, count)" + _ALIBI,
    "from_the_last": """
    column = Unsqueeze(range, second)
    left = Sub(count, column)
    apart = Mul(left, places_1s)
    """
    + _ALIBI,
}

_PADDED = """
    inner = Constant<value_ints = [1, 2]>()
    seen4 = Unsqueeze(attention_mask, inner)
    bias = Cast<to = 9>(seen4)
    table_words = Gather(table, input_ids)
"""
_KINDS = "kind = Gather(kinds, token_type_ids)\nwords = Add(table_words, kind)\n"
_MASK, _TYPES = "int64[batch,seq] attention_mask", "int64[batch,seq] token_type_ids"
COMPANIONS = {
    "padding": (_MASK, _PADDED + "words = Identity(table_words)"),
    "padding_with_its_own_axes": (
        "int64[rows,keys] attention_mask",
        _PADDED + "words = Identity(table_words)",
    ),
    "padding_counted": (
        _MASK,
        _PADDED
        + """
    nth = CumSum(attention_mask, one)
    real = Mul(nth, attention_mask)
    counted = Gather(places, real)
    words = Add(table_words, counted)
    """,
    ),
    "padding_zeroed": (
        _MASK,
        _PADDED
        + """
    last = Constant<value_ints = [2]>()
    kept = Unsqueeze(attention_mask, last)
    factor = Cast<to = 1>(kept)
    words = Mul(table_words, factor)
    """,
    ),
    "position_ids": (
        "int64[batch,seq] position_ids",
        """
    told = Gather(places, position_ids)
    table_words = Gather(table, input_ids)
    words = Add(table_words, told)
    """,
    ),
    "token_type_ids": (_TYPES, "table_words = Gather(table, input_ids)\n" + _KINDS),
}
UNCLEAR_COMPANIONS = {
    "lengths_divide": (
        _MASK,
        _PADDED
        + """
    total = ReduceSum<keepdims = 1>(attention_mask, second)
    last = Constant<value_ints = [2]>()
    wide = Unsqueeze(total, last)
    divisor = Cast<to = 1>(wide)
    words = Div(table_words, divisor)
    """,
    ),
    "kinds_see_each_other": (
        _TYPES,
        "table_words = Gather(table, input_ids)\nwords = Identity(table_words)\n"
        + """
    one_axis = Constant<value_ints = [1, 2]>()
    other_axis = Constant<value_ints = [1, 3]>()
    of_keys = Unsqueeze(token_type_ids, one_axis)
    of_queries = Unsqueeze(token_type_ids, other_axis)
    bias = Equal(of_keys, of_queries)
    """,
    ),
    "picture": (
        "float[batch,4,16] picture",
        """
    table_words = Gather(table, input_ids)
    seen = ReduceMean<keepdims = 1>(picture, second)
    words = Add(table_words, seen)
    """,
    ),
}


def decoder(
    positions: str, seq: int = 0, *, bias: str = "", companion: tuple[str, str] = ("", "")
) -> str:
    """The decoder as ONNX text.

    Args:
        positions: A name in `POSITIONS`.
        seq: Number of tokens, if it is fixed.
        bias: Lines that give `bias`, what attention takes beside being causal.
        companion: A further input, and lines that give `words`, perhaps `bias` too.
    """
    count = str(seq) if seq else "seq"
    more, lines = companion
    given = bias or lines
    mask = ", bias" if "bias =" in given else ""
    return f"""<ir_version: 10, opset_import: ["": 23]>
agraph (int64[batch,{count}] input_ids, {more + "," if more else ""}
        float[16,16] table, float[64,16] places, float[4] speeds,
        float[2,16] kinds, float[8,2] buckets, float[2,24,24] learned,
        float[16,16] wq, float[16,16] wk, float[16,16] wv, float[16,16] head)
    => (float[batch,{count},16] logits) {{
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    sizes = Shape(input_ids)
    count_1d = Shape<start = 1, end = 2>(input_ids)
    count = Squeeze(count_1d)
    range = Range(zero, count, one)
    first = Constant<value_ints = [0]>()
    second = Constant<value_ints = [1]>()
    places_1s = Unsqueeze(range, first)
    {lines or "words = Gather(table, input_ids)"}
    {POSITIONS[positions][0]}
    split = Constant<value_ints = [0, 0, 2, 8]>()
    q2 = MatMul(x, wq)
    q4 = Reshape(q2, split)
    q0 = Transpose<perm = [0, 2, 1, 3]>(q4)
    k2 = MatMul(x, wk)
    k4 = Reshape(k2, split)
    k0 = Transpose<perm = [0, 2, 1, 3]>(k4)
    v2 = MatMul(x, wv)
    v4 = Reshape(v2, split)
    v = Transpose<perm = [0, 2, 1, 3]>(v4)
    {POSITIONS[positions][1]}
    {bias}
    o = Attention<is_causal = 1>(q, k, v{mask})
    ot = Transpose<perm = [0, 2, 1, 3]>(o)
    merge = Constant<value_ints = [0, 0, 16]>()
    y = Reshape(ot, merge)
    z = Add(x, y)
    logits = MatMul(z, head)
}}"""
