"""The parts of `handwritten.Layer`, as ONNX text: from the input to what the products take.

Parts hand on by name: heads gives `q`, `k0`, `v0` [B,H,S,8] (or [B,S,H,8] for products that want
that); repeat `k`, `v`; keys `kt`.
`$$KV` are the key heads, `$$KVW` their width, `$$G` the query heads per key head.
"""

from __future__ import annotations

__all__ = ["HEADS", "KEYS", "PROJECTIONS", "REPEATS", "SPLIT_OFF"]

PROJECTIONS = """
    qf = MatMul(x, wq)
    kf = MatMul(x, wk)
    vf = MatMul(x, wv)"""
SPLIT_OFF = """
    qshape = Constant<value_ints = [0, 0, 4, 8]>()
    kshape = Constant<value_ints = [0, 0, $KV, 8]>()
    qr = Reshape(qf, qshape)
    kr = Reshape(kf, kshape)
    vr = Reshape(vf, kshape)"""
_TURN = """
    q = Transpose<perm = [0, 2, 1, 3]>(qr)
    k0 = Transpose<perm = [0, 2, 1, 3]>(kr)
    v0 = Transpose<perm = [0, 2, 1, 3]>(vr)"""
_ONE_PROJECTION = """
    w = Concat<axis = 1>(wq, wk, wv)
    f = MatMul(x, w)"""


def _pieces(name: str, source: str, heads: str) -> str:
    """Heads cut off one by one with Split, and stacked."""
    return f"""
    {name}_0, {name}_1, {name}_2, {name}_3 = Split<axis = 2, num_outputs = 4>({source})
    {name}_axis = Constant<value_ints = [1]>()
    {name}_u0 = Unsqueeze({name}_0, {name}_axis)
    {name}_u1 = Unsqueeze({name}_1, {name}_axis)
    {name}_u2 = Unsqueeze({name}_2, {name}_axis)
    {name}_u3 = Unsqueeze({name}_3, {name}_axis)
    {heads} = Concat<axis = 1>({name}_u0, {name}_u1, {name}_u2, {name}_u3)"""


def _slices(name: str, source: str, heads: str) -> str:
    """The same with Slice."""
    lines = [
        f"{name}_ax = Constant<value_ints = [2]>()",
        f"{name}_one = Constant<value_ints = [1]>()",
    ]
    for i in range(4):
        lines += [
            f"{name}_a{i} = Constant<value_ints = [{8 * i}]>()",
            f"{name}_b{i} = Constant<value_ints = [{8 * i + 8}]>()",
            f"{name}_s{i} = Slice({source}, {name}_a{i}, {name}_b{i}, {name}_ax)",
            f"{name}_u{i} = Unsqueeze({name}_s{i}, {name}_one)",
        ]
    stacked = ", ".join(f"{name}_u{i}" for i in range(4))
    return "\n    " + "\n    ".join([*lines, f"{heads} = Concat<axis = 1>({stacked})"])


HEADS = {
    "reshape": PROJECTIONS + SPLIT_OFF + _TURN,
    "shape_arithmetic": PROJECTIONS
    + """
    b = Shape<start = 0, end = 1>(x)
    n = Shape<start = 1, end = 2>(x)
    rest = Constant<value_ints = [-1]>()
    size = Constant<value_ints = [8]>()
    shape = Concat<axis = 0>(b, n, rest, size)
    qr = Reshape(qf, shape)
    kr = Reshape(kf, shape)
    vr = Reshape(vf, shape)"""
    + _TURN,
    "split": PROJECTIONS
    + _pieces("qp", "qf", "q")
    + _pieces("kp", "kf", "k0")
    + _pieces("vp", "vf", "v0"),
    "slice": PROJECTIONS
    + _slices("qp", "qf", "q")
    + _slices("kp", "kf", "k0")
    + _slices("vp", "vf", "v0"),
    "packed_split": _ONE_PROJECTION
    + """
    widths = Constant<value_ints = [32, $KVW, $KVW]>()
    qf, kf, vf = Split<axis = 2>(f, widths)"""
    + SPLIT_OFF
    + _TURN,
    "packed_gather": _ONE_PROJECTION
    + """
    shape = Constant<value_ints = [0, 0, 3, 4, 8]>()
    five = Reshape(f, shape)
    turned = Transpose<perm = [2, 0, 3, 1, 4]>(five)
    i0 = Constant<value_int = 0>()
    i1 = Constant<value_int = 1>()
    i2 = Constant<value_int = 2>()
    q = Gather<axis = 0>(turned, i0)
    k0 = Gather<axis = 0>(turned, i1)
    v0 = Gather<axis = 0>(turned, i2)""",
    "packed_squeeze": _ONE_PROJECTION
    + """
    shape = Constant<value_ints = [0, 0, 3, 4, 8]>()
    five = Reshape(f, shape)
    turned = Transpose<perm = [2, 0, 3, 1, 4]>(five)
    q5, k5, v5 = Split<axis = 0, num_outputs = 3>(turned)
    first = Constant<value_ints = [0]>()
    q = Squeeze(q5, first)
    k0 = Squeeze(k5, first)
    v0 = Squeeze(v5, first)""",
    "not_turned": PROJECTIONS
    + SPLIT_OFF
    + """
    q = Identity(qr)
    k0 = Identity(kr)
    v0 = Identity(vr)""",
    "flat": PROJECTIONS
    + SPLIT_OFF
    + """
    qt = Transpose<perm = [0, 2, 1, 3]>(qr)
    kt4 = Transpose<perm = [0, 2, 1, 3]>(kr)
    vt = Transpose<perm = [0, 2, 1, 3]>(vr)
    n = Shape<start = 1, end = 2>(x)
    rest = Constant<value_ints = [-1]>()
    size = Constant<value_ints = [8]>()
    three = Concat<axis = 0>(rest, n, size)
    q = Reshape(qt, three)
    k0 = Reshape(kt4, three)
    v0 = Reshape(vt, three)""",
    "flat_words_first": """
    xt = Transpose<perm = [1, 0, 2]>(x)
    qf = MatMul(xt, wq)
    kf = MatMul(xt, wk)
    vf = MatMul(xt, wv)
    n = Shape<start = 1, end = 2>(x)
    rest = Constant<value_ints = [-1]>()
    size = Constant<value_ints = [8]>()
    three = Concat<axis = 0>(n, rest, size)
    qr = Reshape(qf, three)
    kr = Reshape(kf, three)
    vr = Reshape(vf, three)
    q = Transpose<perm = [1, 0, 2]>(qr)
    k0 = Transpose<perm = [1, 0, 2]>(kr)
    v0 = Transpose<perm = [1, 0, 2]>(vr)""",
}


def _both(lines: str) -> str:
    """The same for keys and values; `@` stands for their letter."""
    return lines.replace("@", "k") + lines.replace("@", "v")


REPEATS = {
    "none": _both("\n    @ = Identity(@0)"),
    "expand": _both("""
    @two = Constant<value_ints = [2]>()
    @u = Unsqueeze(@0, @two)
    @n = Shape<start = 2, end = 3>(@0)
    @b = Shape<start = 0, end = 1>(@0)
    @heads = Constant<value_ints = [$KV, $G]>()
    @size = Constant<value_ints = [8]>()
    @full = Concat<axis = 0>(@b, @heads, @n, @size)
    @e = Expand(@u, @full)
    @four = Constant<value_ints = [4]>()
    @flat = Concat<axis = 0>(@b, @four, @n, @size)
    @ = Reshape(@e, @flat)"""),
    "gather": _both("""
    @heads = Constant<value_ints = [0, 0, 1, 1]>()
    @ = Gather<axis = 1>(@0, @heads)"""),
    "concat": _both("""
    @two = Constant<value_ints = [2]>()
    @u = Unsqueeze(@0, @two)
    @c = Concat<axis = 2>(@u, @u)
    @n = Constant<value_ints = [0, 4, -1, 8]>()
    @ = Reshape(@c, @n)"""),
    "slices": _both("""
    @h0, @h1 = Split<axis = 1, num_outputs = 2>(@0)
    @ = Concat<axis = 1>(@h0, @h0, @h1, @h1)"""),
    "tile": _both("""
    @two = Constant<value_ints = [2]>()
    @u = Unsqueeze(@0, @two)
    @times = Constant<value_ints = [1, 1, $G, 1, 1]>()
    @many = Tile(@u, @times)
    @n = Constant<value_ints = [0, 4, -1, 8]>()
    @ = Reshape(@many, @n)"""),
    "tile_one": _both("""
    @times = Constant<value_ints = [1, 4, 1, 1]>()
    @ = Tile(@0, @times)"""),
    "one": _both("\n    @ = Identity(@0)"),
}
KEYS = {
    "transpose": "    kt = Transpose<perm = [0, 1, 3, 2]>(k)",
    "transpose_flat": "    kt = Transpose<perm = [0, 2, 1]>(k)",
    "at_once": "    kt = Transpose<perm = [0, 2, 3, 1]>(kr)",
    "through_rank_3": """
    n = Shape<start = 2, end = 3>(k)
    rest3 = Constant<value_ints = [-1]>()
    size3 = Constant<value_ints = [8]>()
    flat3 = Concat<axis = 0>(rest3, n, size3)
    k3 = Reshape(k, flat3)
    k3t = Transpose<perm = [0, 2, 1]>(k3)
    back = Constant<value_ints = [-1, 4, 8]>()
    back4 = Concat<axis = 0>(back, n)
    kt = Reshape(k3t, back4)""",
    "never_turned": """
    wkt = Transpose<perm = [1, 0]>(wk)
    xcol = Transpose<perm = [0, 2, 1]>(x)
    kcol = MatMul(wkt, xcol)
    kcshape = Constant<value_ints = [0, 4, 8, -1]>()
    kt = Reshape(kcol, kcshape)""",
    "none": "    kt = Identity(k)",
}
