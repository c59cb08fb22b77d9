"""Small attention graphs in the spellings that exporters and optimisers leave behind."""

from __future__ import annotations

import dataclasses
import textwrap

CAUSAL = """
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    count_1d = Shape<start = 1, end = 2>(x)
    count = Squeeze(count_1d)
    columns = Range(zero, count, one)
    axis = Constant<value_ints = [1]>()
    rows = Unsqueeze(columns, axis)
"""

MASKS = {
    "none": "",
    "compare": CAUSAL + "visible = LessOrEqual(columns, rows)",
    "trilu": """
    count_1d = Shape<start = 1, end = 2>(x)
    square = Concat<axis = 0>(count_1d, count_1d)
    ones = ConstantOfShape<value = int64[1] {1}>(square)
    lower = Trilu<upper = 0>(ones)
    visible = Cast<to = 9>(lower)
    """,
    "constant": """
    table = Constant<value_ints = [1]>()
    limit = Constant<value_ints = [16, 16]>()
    full = Expand(table, limit)
    lower = Trilu<upper = 0>(full)
    count_1d = Shape<start = 1, end = 2>(x)
    from = Constant<value_ints = [0, 0]>()
    till = Concat<axis = 0>(count_1d, count_1d)
    part = Slice(lower, from, till)
    visible = Cast<to = 9>(part)
    """,
    "window": CAUSAL
    + """
    causal = LessOrEqual(columns, rows)
    width = Constant<value_int = 4>()
    first = Sub(rows, width)
    near = Greater(columns, first)
    visible = And(causal, near)
    """,
    "checkers": CAUSAL
    + """
    two = Constant<value_int = 2>()
    sum = Add(rows, columns)
    odd = Mod(sum, two)
    visible = Equal(odd, zero)
    """,
}

APPLY = {
    "none": "masked = Identity(capped)",
    "where": """
    hidden = Constant<value_float = -inf>()
    masked = Where(visible, capped, hidden)
    """,
    "where_min": """
    hidden = Constant<value_float = -3.4028235e38>()
    masked = Where(visible, capped, hidden)
    """,
    "add": """
    hidden = Constant<value_float = -inf>()
    nothing = Constant<value_float = 0.0>()
    bias = Where(visible, nothing, hidden)
    masked = Add(capped, bias)
    """,
    "add_left": """
    hidden = Constant<value_float = -10000.0>()
    nothing = Constant<value_float = 0.0>()
    bias = Where(visible, nothing, hidden)
    masked = Add(bias, capped)
    """,
}

KEYS = {
    "plain": "kt = Transpose<perm = [0, 1, 3, 2]>(kr)",
    "direct": "kt = Transpose<perm = [0, 2, 3, 1]>(k4)",
    "through_rank_3": """
    k_bh = Constant<value_ints = [-1]>()
    k_t = Shape<start = 2, end = 3>(kr)
    k_d = Shape<start = 3, end = 4>(kr)
    k_flat = Concat<axis = 0>(k_bh, k_t, k_d)
    k3 = Reshape(kr, k_flat)
    kt3 = Transpose<perm = [0, 2, 1]>(k3)
    kr_lead = Shape<start = 0, end = 2>(kr)
    kr_back = Concat<axis = 0>(kr_lead, k_d, k_t)
    kt = Reshape(kt3, kr_back)
    """,
}

SCALES = {
    "scores": """
    scale = Constant<value_float = 0.25>()
    raw = MatMul(q, kt)
    scores = Mul(raw, scale)
    """,
    "divided": """
    scale = Constant<value_float = 4.0>()
    raw = MatMul(q, kt)
    scores = Div(raw, scale)
    """,
    "query": """
    scale = Constant<value_float = 0.25>()
    qs = Mul(q, scale)
    scores = MatMul(qs, kt)
    """,
    "both": """
    scale = Constant<value_float = 0.5>()
    qs = Mul(q, scale)
    ks = Mul(scale, kt)
    scores = MatMul(qs, ks)
    """,
}


@dataclasses.dataclass(frozen=True)
class Spelling:
    """One way to write attention over x [B,S,32], 4 heads of 8.

    `groups` is the number of key heads; `tail` follows the Softmax and must define `p`.
    """

    mask: str = "none"
    apply: str = "none"
    key: str = "plain"
    scale: str = "scores"
    groups: int = 4
    softcap: float = 0.0
    tail: str = "p = Identity(soft)"

    def text(self) -> str:
        """The graph as ONNX text."""
        size = self.groups * 8
        body = f"""
        {self._project("q", 32, 4)}
        {self._project("k", size, self.groups)}
        {self._project("v", size, self.groups)}
        {self._repeat("k")}
        {self._repeat("v")}
        {KEYS[self.key]}
        {SCALES[self.scale]}
        {self._cap()}
        {MASKS[self.mask]}
        {APPLY[self.apply]}
        soft = Softmax<axis = -1>(masked)
        {self.tail}
        o = MatMul(p, vr)
        ot = Transpose<perm = [0, 2, 1, 3]>(o)
        merge = Constant<value_ints = [0, 0, 32]>()
        y = Reshape(ot, merge)
        """
        header = '<ir_version: 10, opset_import: ["": 18]>\nagraph '
        signature = (
            f"(float[batch,seq,32] x, float[32,32] wq, float[32,{size}] wk, float[32,{size}] wv)"
            " => (float[batch,seq,32] y)"
        )
        return header + signature + " {\n" + textwrap.dedent(body) + "\n}"

    def _project(self, name: str, size: int, heads: int) -> str:
        transpose = f"{name} = Transpose<perm = [0, 2, 1, 3]>({name}4)"
        return f"""
        {name}_split = Constant<value_ints = [0, 0, {heads}, 8]>()
        {name}2 = MatMul(x, w{name})
        {name}4 = Reshape({name}2, {name}_split)
        {transpose}
        """

    def _repeat(self, name: str) -> str:
        if self.groups == 4:
            return f"{name}r = Identity({name})"
        return f"""
        {name}_axis = Constant<value_ints = [2]>()
        {name}5 = Unsqueeze({name}, {name}_axis)
        {name}_lead = Shape<start = 0, end = 1>({name})
        {name}_heads = Constant<value_ints = [{self.groups}, {4 // self.groups}]>()
        {name}_tail = Shape<start = 2, end = 4>({name})
        {name}_wide = Concat<axis = 0>({name}_lead, {name}_heads, {name}_tail)
        {name}x = Expand({name}5, {name}_wide)
        {name}_all = Constant<value_ints = [4]>()
        {name}_back = Concat<axis = 0>({name}_lead, {name}_all, {name}_tail)
        {name}r = Reshape({name}x, {name}_back)
        """

    def _cap(self) -> str:
        if not self.softcap:
            return "capped = Identity(scores)"
        return f"""
        cap = Constant<value_float = {self.softcap}>()
        inner = Div(scores, cap)
        bent = Tanh(inner)
        capped = Mul(bent, cap)
        """
