"""The parts of `handwritten.Layer`, as ONNX text: products, scale, Softmax, output.

Before the product `qs`, `ks`; the product gives `s0`; the scale `s1`; the mask `s2`; the Softmax
`p`; the second product `o`; the output `y`.
"""

from __future__ import annotations

__all__ = ["OUTPUTS", "PRODUCTS", "SCALES", "SOFTMAX"]

PRODUCTS = {
    "matmul": ("    s0 = MatMul(qs, ks)", "    o = MatMul(p, v)"),
    "einsum": (
        '    s0 = Einsum<equation = "bhqd,bhkd->bhqk">(qs, ks)',
        '    o = Einsum<equation = "bhqk,bhkd->bhqd">(p, v)',
    ),
    "einsum_words_first": (
        '    s0 = Einsum<equation = "bqhd,bkhd->bhqk">(qs, ks)',
        '    o = Einsum<equation = "bhqk,bkhd->bqhd">(p, v)',
    ),
    "einsum_other_letters": (
        '    s0 = Einsum<equation = "...id,...jd->...ij">(qs, ks)',
        '    o = Einsum<equation = "...ij,...jd->...id">(p, v)',
    ),
}
_NUMBER = "    c = Constant<value_float = {}>()\n"
_ROOT = 8**-0.25
SCALES = {
    "mul": ("qs = Identity(q)\nks = Identity(kt)", _NUMBER.format(8**-0.5) + "    s1 = Mul(s0, c)"),
    "mul_left": (
        "qs = Identity(q)\nks = Identity(kt)",
        _NUMBER.format(8**-0.5) + "    s1 = Mul(c, s0)",
    ),
    "div": ("qs = Identity(q)\nks = Identity(kt)", _NUMBER.format(8**0.5) + "    s1 = Div(s0, c)"),
    "div_rank_4": (
        "qs = Identity(q)\nks = Identity(kt)",
        f"    c = Constant<value = float[1,1,1,1] {{{8**0.5}}}>()\n    s1 = Div(s0, c)",
    ),
    "query": (
        _NUMBER.format(8**-0.5) + "    qs = Mul(q, c)\n    ks = Identity(kt)",
        "    s1 = Identity(s0)",
    ),
    "query_div": (
        _NUMBER.format(8**0.5) + "    qs = Div(q, c)\n    ks = Identity(kt)",
        "    s1 = Identity(s0)",
    ),
    "keys": (
        _NUMBER.format(8**-0.5) + "    qs = Identity(q)\n    ks = Mul(kt, c)",
        "    s1 = Identity(s0)",
    ),
    "both": (
        _NUMBER.format(_ROOT) + "    qs = Mul(q, c)\n    ks = Mul(kt, c)",
        "    s1 = Identity(s0)",
    ),
    "from_shape": (
        "qs = Identity(q)\nks = Identity(kt)",
        """
    dsize = Shape<start = -1>(q)
    dnumber = Squeeze(dsize)
    dreal = Cast<to = 1>(dnumber)
    c = Sqrt(dreal)
    s1 = Div(s0, c)""",
    ),
    "both_from_shape": (
        """
    dsize = Shape<start = -1>(q)
    dreal = Cast<to = 1>(dsize)
    droot = Sqrt(dreal)
    done = Constant<value_floats = [1.0]>()
    dinverse = Div(done, droot)
    c = Sqrt(dinverse)
    qs = Mul(q, c)
    ks = Mul(kt, c)""",
        "    s1 = Identity(s0)",
    ),
    "power": (
        "qs = Identity(q)\nks = Identity(kt)",
        """
    dsize = Constant<value_float = 8.0>()
    dhalf = Constant<value_float = -0.5>()
    c = Pow(dsize, dhalf)
    s1 = Mul(s0, c)""",
    ),
    "weights": ("qs = Identity(q)\nks = Identity(kt)", "    s1 = Identity(s0)"),
}
_GUARD = """
    isnan = IsNaN(soft)
    nothing = Constant<value_float = 0.0>()
    p = Where(isnan, nothing, soft)"""
_SUM = """
    sum_axis = Constant<value_ints = [-1]>()
    total = ReduceSum<keepdims = 1>(e, sum_axis)
    p = Div(e, total)"""
_SHIFT = """
    max_axis = Constant<value_ints = [-1]>()
    highest = ReduceMax<keepdims = 1>(s2, max_axis)
    shifted = Sub(s2, highest)"""
SOFTMAX = {
    "op": "    p = Softmax<axis = -1>(s2)",
    "axis_3": "    p = Softmax<axis = 3>(s2)",
    "guarded": "    soft = Softmax<axis = -1>(s2)" + _GUARD,
    "dropout": "    soft = Softmax<axis = -1>(s2)\n    p = Dropout(soft)",
    "cast": "    s2c = Cast<to = 11>(s2)\n    soft = Softmax(s2c)\n    p = Cast<to = 1>(soft)",
    "exp_sum": "    e = Exp(s2)" + _SUM,
    "exp_max_sum": _SHIFT + "\n    e = Exp(shifted)" + _SUM,
    "log_softmax": "    logs = LogSoftmax<axis = -1>(s2)\n    p = Exp(logs)",
}
OUTPUTS = {
    "transpose": """
    ot = Transpose<perm = [0, 2, 1, 3]>(o)
    oshape = Constant<value_ints = [0, 0, 32]>()
    y = Reshape(ot, oshape)""",
    "reshape": """
    oshape = Constant<value_ints = [0, 0, 32]>()
    y = Reshape(o, oshape)""",
    "flat": """
    ob = Shape<start = 0, end = 2>(x)
    onum = Shape<start = 0, end = 1>(x)
    oheads = Constant<value_ints = [4]>()
    on = Shape<start = 1, end = 2>(x)
    osize = Constant<value_ints = [8]>()
    ofour = Concat<axis = 0>(onum, oheads, on, osize)
    o4 = Reshape(o, ofour)
    ot = Transpose<perm = [0, 2, 1, 3]>(o4)
    oshape = Constant<value_ints = [0, 0, 32]>()
    y = Reshape(ot, oshape)""",
    "flat_words_first": """
    ot = Transpose<perm = [1, 0, 2]>(o)
    on = Shape<start = 1, end = 2>(x)
    orest = Constant<value_ints = [-1]>()
    osize = Constant<value_ints = [32]>()
    othree = Concat<axis = 0>(on, orest, osize)
    o3 = Reshape(ot, othree)
    y = Transpose<perm = [1, 0, 2]>(o3)""",
    "squeezed": """
    oparts0, oparts1, oparts2, oparts3 = Split<axis = 1, num_outputs = 4>(o)
    oone = Constant<value_ints = [1]>()
    o0 = Squeeze(oparts0, oone)
    o1 = Squeeze(oparts1, oone)
    o2 = Squeeze(oparts2, oone)
    o3 = Squeeze(oparts3, oone)
    y = Concat<axis = 2>(o0, o1, o2, o3)""",
}
