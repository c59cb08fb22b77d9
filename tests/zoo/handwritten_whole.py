"""Ways to write the whole layer of `handwritten.Layer` at once, as ONNX text."""

from __future__ import annotations

from handwritten_heads import PROJECTIONS, SPLIT_OFF
from handwritten_masks import COUNTS, INF

__all__ = ["WHOLE"]

_FOUR = (
    PROJECTIONS
    + SPLIT_OFF
    + """
    q = Transpose<perm = [0, 2, 1, 3]>(qr)
    k = Transpose<perm = [0, 2, 1, 3]>(kr)
    v = Transpose<perm = [0, 2, 1, 3]>(vr)"""
)
_JOIN = """
    ot = Transpose<perm = [0, 2, 1, 3]>(o)
    oshape = Constant<value_ints = [0, 0, 32]>()
    y = Reshape(ot, oshape)"""
_SEEN = (
    COUNTS
    + """
    paxes = Constant<value_ints = [1, 2]>()
    p4 = Unsqueeze(padding, paxes)
    words = Cast<to = 9>(p4)
    seen = And(causal, words)"""
)
_THREE = "kv_num_heads = $KV, q_num_heads = 4"
_GROUPED = (
    PROJECTIONS
    + """
    qshape = Constant<value_ints = [0, 0, $KV, $G, 8]>()
    kshape = Constant<value_ints = [0, 0, $KV, 1, 8]>()
    qr = Reshape(qf, qshape)
    kr = Reshape(kf, kshape)
    vr = Reshape(vf, kshape)
    q = Transpose<perm = [0, 2, 3, 1, 4]>(qr)
    kt = Transpose<perm = [0, 2, 3, 4, 1]>(kr)
    v = Transpose<perm = [0, 2, 3, 1, 4]>(vr)
    s0 = MatMul(q, kt)
    c = Constant<value_float = 0.35355338>()
    s1 = Mul(s0, c)"""
)
_UNGROUP = """
    p = Softmax<axis = -1>(s2)
    o = MatMul(p, v)
    ot = Transpose<perm = [0, 3, 1, 2, 4]>(o)
    oshape = Constant<value_ints = [0, 0, 32]>()
    y = Reshape(ot, oshape)"""
_SCORES = (
    _FOUR
    + """
    kt = Transpose<perm = [0, 1, 3, 2]>(k)
    s0 = MatMul(q, kt)
    c = Constant<value_float = 0.35355338>()"""
)
_MIX = """
    p = Softmax<axis = -1>(s2)
    o = MatMul(p, v)"""

WHOLE = {
    "op": _FOUR + "\n    o = Attention(q, k, v)" + _JOIN,
    "op_scale_outside": _FOUR
    + """
    c = Constant<value_float = 0.35355338>()
    qs = Mul(q, c)
    o = Attention<scale = 1.0>(qs, k, v)"""
    + _JOIN,
    "op_causal": _FOUR + "\n    o = Attention<is_causal = 1>(q, k, v)" + _JOIN,
    "op_causal_mask": _FOUR + COUNTS + "\n    o = Attention(q, k, v, causal)" + _JOIN,
    "op_causal_padding": _FOUR + _SEEN + "\n    o = Attention(q, k, v, seen)" + _JOIN,
    "op_rank_3": PROJECTIONS + f"\n    y = Attention<{_THREE}>(qf, kf, vf)",
    "op_rank_3_causal": PROJECTIONS + f"\n    y = Attention<is_causal = 1, {_THREE}>(qf, kf, vf)",
    "op_rank_3_causal_padding": PROJECTIONS
    + _SEEN
    + f"\n    y = Attention<{_THREE}>(qf, kf, vf, seen)",
    "grouped_rank_5": _GROUPED + "\n    s2 = Identity(s1)" + _UNGROUP,
    "grouped_rank_5_causal": _GROUPED
    + COUNTS
    + INF
    + "\n    s2 = Where(causal, s1, m_inf)"
    + _UNGROUP,
    "bias_before_scale": _SCORES
    + """
    b_count = Shape<start = 1, end = 2>(x)
    b_end = Concat<axis = 0>(b_count, b_count)
    b_start = Constant<value_ints = [0, 0]>()
    b_axes = Constant<value_ints = [2, 3]>()
    b_part = Slice(bias, b_start, b_end, b_axes)
    raised = Add(s0, b_part)
    s2 = Mul(raised, c)"""
    + _MIX
    + _JOIN,
    "causal_before_scale": _SCORES
    + COUNTS
    + INF
    + "\n    hidden = Where(causal, s0, m_inf)\n    s2 = Mul(hidden, c)"
    + _MIX
    + _JOIN,
}
