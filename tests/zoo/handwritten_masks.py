"""Masks of `handwritten.Layer`, as ONNX text: from the scores `s1` to `s2`."""

from __future__ import annotations

__all__ = ["COUNTS", "INF", "MASKS"]

COUNTS = """
    czero = Constant<value_int = 0>()
    cone = Constant<value_int = 1>()
    ccount1 = Shape<start = 1, end = 2>(x)
    ccount = Squeeze(ccount1)
    j = Range(czero, ccount, cone)
    caxis = Constant<value_ints = [1]>()
    i = Unsqueeze(j, caxis)
    causal = LessOrEqual(j, i)"""
_REAL = """
    seen_real = Cast<to = 1>({})
    m_one = Constant<value_float = 1.0>()
    unseen = Sub(m_one, seen_real)"""
_PADDING = """
    paxes = Constant<value_ints = [1, 2]>()
    p4 = Unsqueeze(padding, paxes)
    words = Cast<to = 9>(p4)"""
INF = "\n    m_inf = Constant<value_float = -inf>()"
_MIN = "\n    m_min = Constant<value_float = -3.4028234663852886e38>()"
_LOW = "\n    m_low = Constant<value_float = -10000.0>()"
_LEARNED = """
    b_count = Shape<start = 1, end = 2>(x)
    b_end = Concat<axis = 0>(b_count, b_count)
    b_start = Constant<value_ints = [0, 0]>()
    b_axes = Constant<value_ints = [2, 3]>()
    b_part = Slice(bias, b_start, b_end, b_axes)"""
_PAD_LOW = _PADDING + _REAL.format("p4") + _MIN
MASKS = {
    "none": "    s2 = Identity(s1)",
    "causal_where_inf": COUNTS + INF + "\n    s2 = Where(causal, s1, m_inf)",
    "causal_where_min": COUNTS + _MIN + "\n    s2 = Where(causal, s1, m_min)",
    "causal_where_low": COUNTS + _LOW + "\n    s2 = Where(causal, s1, m_low)",
    "causal_where_not": COUNTS
    + INF
    + "\n    later = Not(causal)\n    s2 = Where(later, m_inf, s1)",
    "causal_add_inf": COUNTS
    + INF
    + "\n    m_zero = Constant<value_float = 0.0>()\n    m = Where(causal, m_zero, m_inf)"
    + "\n    s2 = Add(s1, m)",
    "causal_add_left": COUNTS
    + INF
    + "\n    m_zero = Constant<value_float = 0.0>()\n    m = Where(causal, m_zero, m_inf)"
    + "\n    s2 = Add(m, s1)",
    "causal_one_minus_min": COUNTS
    + _REAL.format("causal")
    + _MIN
    + "\n    m = Mul(unseen, m_min)\n    s2 = Add(s1, m)",
    "causal_one_minus_low": COUNTS
    + _REAL.format("causal")
    + _LOW
    + "\n    m = Mul(unseen, m_low)\n    s2 = Add(s1, m)",
    "causal_sub": COUNTS
    + _REAL.format("causal")
    + "\n    m_high = Constant<value_float = 10000.0>()\n    m = Mul(unseen, m_high)"
    + "\n    s2 = Sub(s1, m)",
    "causal_mul_and_sub": COUNTS
    + _REAL.format("causal")
    + "\n    m_high = Constant<value_float = 10000.0>()\n    m = Mul(unseen, m_high)"
    + "\n    kept = Mul(s1, seen_real)\n    s2 = Sub(kept, m)",
    "causal_trilu": """
    ccount = Shape<start = 1, end = 2>(x)
    csquare = Concat<axis = 0>(ccount, ccount)
    filled = ConstantOfShape<value = float[1] {-inf}>(csquare)
    cone = Constant<value_int = 1>()
    m = Trilu<upper = 1>(filled, cone)
    s2 = Add(s1, m)""",
    "causal_add_and_max": COUNTS
    + _REAL.format("causal")
    + _MIN
    + "\n    m = Mul(unseen, m_min)\n    added = Add(s1, m)\n    s2 = Max(added, m_min)",
    "window": COUNTS
    + INF
    + """
    wide = Constant<value_int = 4>()
    first = Sub(i, wide)
    near = Greater(j, first)
    inside = And(causal, near)
    s2 = Where(inside, s1, m_inf)""",
    "window_two_wheres": COUNTS
    + INF
    + """
    wide = Constant<value_int = 4>()
    first = Sub(i, wide)
    near = Greater(j, first)
    s2a = Where(causal, s1, m_inf)
    s2 = Where(near, s2a, m_inf)""",
    "padding_where": _PADDING + INF + "\n    s2 = Where(words, s1, m_inf)",
    "padding_one_minus_min": _PAD_LOW + "\n    m = Mul(unseen, m_min)\n    s2 = Add(s1, m)",
    "padding_one_minus_low": _PADDING
    + _REAL.format("p4")
    + _LOW
    + "\n    m = Mul(unseen, m_low)\n    s2 = Add(s1, m)",
    "causal_padding_and": COUNTS
    + _PADDING
    + INF
    + "\n    seen = And(causal, words)\n    s2 = Where(seen, s1, m_inf)",
    "causal_padding_and_added": COUNTS
    + _PADDING
    + INF
    + "\n    seen = And(causal, words)\n    m_zero = Constant<value_float = 0.0>()"
    + "\n    m = Where(seen, m_zero, m_inf)\n    s2 = Add(s1, m)",
    "causal_padding_two_wheres": COUNTS
    + _PADDING
    + INF
    + "\n    s2a = Where(causal, s1, m_inf)\n    s2 = Where(words, s2a, m_inf)",
    "causal_padding_two_adds": COUNTS
    + _PADDING
    + INF
    + "\n    m_zero = Constant<value_float = 0.0>()\n    ma = Where(causal, m_zero, m_inf)"
    + "\n    mb = Where(words, m_zero, m_inf)\n    s2a = Add(s1, ma)\n    s2 = Add(s2a, mb)",
    "causal_padding_sum_added": COUNTS
    + _PADDING
    + INF
    + "\n    m_zero = Constant<value_float = 0.0>()\n    ma = Where(causal, m_zero, m_inf)"
    + "\n    mb = Where(words, m_zero, m_inf)\n    m = Add(ma, mb)\n    s2 = Add(s1, m)",
    "causal_padding_product_low": COUNTS
    + _PADDING
    + """
    seen_real = Cast<to = 1>(causal)
    words_real = Cast<to = 1>(p4)
    together = Mul(seen_real, words_real)
    m_one = Constant<value_float = 1.0>()
    unseen = Sub(m_one, together)"""
    + _MIN
    + "\n    m = Mul(unseen, m_min)\n    s2 = Add(s1, m)",
    "bias_added": _LEARNED + "\n    s2 = Add(s1, b_part)",
    "bias_and_causal": COUNTS
    + _LEARNED
    + INF
    + "\n    s2a = Add(s1, b_part)\n    s2 = Where(causal, s2a, m_inf)",
    "bias_and_causal_added": COUNTS
    + _LEARNED
    + INF
    + "\n    m_zero = Constant<value_float = 0.0>()\n    ma = Where(causal, m_zero, m_inf)"
    + "\n    m = Add(b_part, ma)\n    s2 = Add(s1, m)",
    "causal_softcap": """
    c_bound = Constant<value_float = 3.0>()
    c_less = Div(s1, c_bound)
    c_tanh = Tanh(c_less)
    capped = Mul(c_tanh, c_bound)"""
    + COUNTS
    + INF
    + "\n    s2 = Where(causal, capped, m_inf)",
}
