"""Bodies of graphs from x [b,s,2] to y, of which some combine tokens and others do not.

A name ends in the operator that is at fault.
"""

from __future__ import annotations

__all__ = ["APART", "MIXING", "RANGE", "graph_text"]

_FLAT = """
    flat_sizes = Constant<value_ints = [-1, 2]>()
    flat = Reshape(x, flat_sizes)
    sizes = Shape(x)
"""
_BACK = "\ny = Reshape(made, sizes)"
_COLUMN = """
    last = Constant<value_ints = [2]>()
    column = ReduceMean<keepdims = 1>(x, last)
"""
RANGE = """
    size = Shape<start = 1, end = 2>(x)
    count = Squeeze(size)
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    range = Range(zero, count, one)
"""
_TURNED = "turned = Transpose<perm = [0, 2, 1]>(x)\n"
_TURN_BACK = "\ny = Transpose<perm = [0, 2, 1]>(made)"
_SIZES_OF_ROWS = """
    rows = Shape<start = 0, end = 1>(x)
    tokens = Shape<start = 1, end = 2>(x)
    two = Constant<value_ints = [2]>()
"""
_QUANTIZED = """
    step = Constant<value_float = 0.05>()
    middle = Constant<value = uint8 {128}>()
"""
_WEIGHT = "w = Constant<value = float[2,2] {1.0, 2.0, -1.0, 0.5}>()\n"
_BOTH = "w1 = Constant<value_floats = [1.0, 2.0]>()\nb1 = Constant<value_floats = [0.5, 0.25]>()\n"

MIXING = {
    "CumSum": "axis = Constant<value_int = 1>()\ny = CumSum(x, axis)",
    "ReduceMean": "axes = Constant<value_ints = [1]>()\ny = ReduceMean(x, axes)",
    "all of ReduceMax": "m = ReduceMax(x)\ny = Sub(x, m)",
    "rows of ReduceMean": """
        axes = Constant<value_ints = [0]>()
        m = ReduceMean(x, axes)
        y = Sub(x, m)
    """,
    "Softmax": "y = Softmax<axis = 1>(x)",
    "Pad": "pads = Constant<value_ints = [0, 1, 0, 0, -1, 0]>()\ny = Pad(x, pads)",
    "MatMul": "t = Transpose<perm = [0, 2, 1]>(x)\ny = MatMul(t, x)",
    "fixed by tokens MatMul": RANGE
    + """
        square = Concat<axis = 0>(size, size)
        ones = ConstantOfShape<value = float[1] {1.0}>(square)
        y = MatMul(ones, x)
    """,
    "Concat": "y = Concat<axis = 1>(x, x)",
    "Slice": """
        a = Constant<value_ints = [1]>()
        b = Constant<value_ints = [9223372036854775807]>()
        y = Slice(x, a, b, a)
    """,
    "first of Slice": """
        a = Constant<value_ints = [0]>()
        b = Constant<value_ints = [1]>()
        first = Slice(x, a, b, b)
        y = Add(x, first)
    """,
    "last for all Slice": """
        a = Constant<value_ints = [-1]>()
        b = Constant<value_ints = [9223372036854775807]>()
        axis = Constant<value_ints = [1]>()
        end = Slice(x, a, b, axis)
        y = Add(x, end)
    """,
    "LayerNormalization": """
        sizes = Shape<start = 1>(x)
        one = Constant<value_floats = [1.0]>()
        scale = Expand(one, sizes)
        y = LayerNormalization<axis = 1>(x, scale)
    """,
    "LpNormalization": "y = LpNormalization<axis = 1>(x)",
    "Hardmax": "y = Hardmax<axis = 1>(x)",
    "MeanVarianceNormalization": "y = MeanVarianceNormalization<axes = [1]>(x)",
    "Trilu": "y = Trilu<upper = 0>(x)",
    "InstanceNormalization": _TURNED
    + _BOTH
    + "made = InstanceNormalization(turned, w1, b1)"
    + _TURN_BACK,
    "Reshape": "turned = Constant<value_ints = [0, 2, -1]>()\ny = Reshape(x, turned)",
    "Gather": RANGE
    + """
        last = Sub(count, one)
        backwards = Sub(last, range)
        y = Gather<axis = 1>(x, backwards)
    """,
    "tokens by tokens Sub": _COLUMN
    + """
        across = Transpose<perm = [0, 2, 1]>(column)
        apart = Sub(column, across)
        y = ReduceMax<keepdims = 1>(apart, last)
    """,
    "its own count Mul": _COLUMN
    + RANGE
    + """
        real = Cast<to = 1>(range)
        wide = Mul(column, real)
        y = ReduceSum<keepdims = 1>(wide, last)
    """,
    "a scale of DynamicQuantizeLinear": """
        q, scale, middle = DynamicQuantizeLinear(x)
        y = DequantizeLinear(q, scale, middle)
    """,
    "left Gemm": _FLAT + "g = Gemm<transA = 1>(flat, flat)\ny = MatMul(x, g)",
    "right Gemm": _FLAT
    + _SIZES_OF_ROWS
    + """
        all = Shape<start = 0, end = 1>(flat)
        ones_sizes = Concat<axis = 0>(two, all)
        ones = ConstantOfShape<value = float[1] {1.0}>(ones_sizes)
        g = Gemm(ones, flat)
        y = MatMul(x, g)
    """,
    "flattened CumSum": _FLAT
    + "axis = Constant<value_int = 0>()\nmade = CumSum(flat, axis)"
    + _BACK,
    "flattened ReduceMean": _FLAT
    + """
        first = Constant<value_ints = [0]>()
        mean = ReduceMean<keepdims = 1>(flat, first)
        made = Sub(flat, mean)
    """
    + _BACK,
    "flattened Softmax": _FLAT + "made = Softmax<axis = 0>(flat)" + _BACK,
    "flattened Reshape": _FLAT
    + _SIZES_OF_ROWS
    + """
        wrong = Concat<axis = 0>(tokens, rows, two)
        apart = Reshape(flat, wrong)
        first = Constant<value_ints = [1]>()
        sums = ReduceMean<keepdims = 1>(apart, first)
        made = Sub(apart, sums)
    """
    + _BACK,
    "flattened MaxPool": _FLAT
    + """
        ends = Constant<value_ints = [0]>()
        columns = Transpose<perm = [1, 0]>(flat)
        batch = Unsqueeze(columns, ends)
        pooled = MaxPool<kernel_shape = [3], pads = [1, 1]>(batch)
        one_row = Squeeze(pooled, ends)
        made = Transpose<perm = [1, 0]>(one_row)
    """
    + _BACK,
    "heads of MultiHeadAttention": "y = com.microsoft.MultiHeadAttention<num_heads = 1>(x, x, x)",
    "causal MultiHeadAttention": """
        y = com.microsoft.MultiHeadAttention<num_heads = 1, unidirectional = 1>(x, x, x)
    """,
    "Attention": """
        y = Attention<is_causal = 1, q_num_heads = 1, kv_num_heads = 1>(x, x, x)
    """,
    "Conv": _TURNED
    + """
        w = Constant<value = float[2,1,3] {1.0, 2.0, 3.0, -1.0, 0.5, 2.0}>()
        made = Conv<group = 2, pads = [2, 0]>(turned, w)
    """
    + _TURN_BACK,
    "MaxPool": _TURNED + "made = MaxPool<kernel_shape = [3], pads = [2, 0]>(turned)" + _TURN_BACK,
    "Einsum": 'y = Einsum<equation = "bsh,bth->bth">(x, x)',
    "scores of Einsum": """
        seen = Einsum<equation = "bsh,bth->bst">(x, x)
        y = Einsum<equation = "bst,bth->bsh">(seen, x)
    """,
    "TopK": "k = Constant<value_ints = [1]>()\nbest, at = TopK<axis = 1>(x, k)\ny = Sub(x, best)",
    "ArgMax": "best = ArgMax<axis = 1>(x)\nreal = Cast<to = 1>(best)\ny = Add(x, real)",
    "by data GatherElements": """
        flags = Sign(x)
        whole = Cast<to = 7>(flags)
        none = Sub(whole, whole)
        y = GatherElements<axis = 1>(x, none)
    """,
    "Compress": """
        c = Constant<value_ints = [1]>()
        which = Cast<to = 9>(c)
        one = Compress<axis = 1>(x, which)
        y = Add(x, one)
    """,
    "DFT": """
        ends = Constant<value_ints = [3]>()
        axis = Constant<value_int = 1>()
        complex = Unsqueeze(x, ends)
        waves = DFT(complex, , axis)
        y = ReduceSum<keepdims = 0>(waves, ends)
    """,
    "ReverseSequence": _SIZES_OF_ROWS
    + """
        each = Expand(tokens, rows)
        y = ReverseSequence<batch_axis = 0, time_axis = 1>(x, each)
    """,
    "sum of ScatterND": _FLAT
    + """
        first = Constant<value = int64[1,1] {0}>()
        all = Shape<start = 0, end = 1>(flat)
        pair = Constant<value_ints = [1]>()
        count = Concat<axis = 0>(all, pair)
        index = Expand(first, count)
        none = Constant<value = float[1,2] {0.0, 0.0}>()
        total = ScatterND<reduction = "add">(none, index, flat)
        y = Add(x, total)
    """,
    "If": _COLUMN
    + """
        three = Constant<value_int = 3>()
        size = Shape<start = 1, end = 2>(x)
        count = Squeeze(size)
        many = Greater(count, three)
        y = If (many) <
            then_branch = then () => (float[b,s,2] doubled) { doubled = Add(x, x) },
            else_branch = other () => (float[b,s,2] same) { same = Identity(x) }
        >
    """,
}
APART = {
    "elementwise": "y = Tanh(x)",
    "linear": _WEIGHT + "y = MatMul(x, w)",
    "vector": """
        w = Constant<value_floats = [1.0, 2.0]>()
        products = MatMul(x, w)
        end = Constant<value_ints = [2]>()
        y = Unsqueeze(products, end)
    """,
    "softmax over channels": "y = Softmax<axis = -1>(x)",
    "norm": "axes = Constant<value_ints = [-1]>()\ny = ReduceMean(x, axes)",
    "channels": "y = Concat<axis = -1>(x, x)",
    "gather of each in its place": RANGE + "y = Gather<axis = 1>(x, range)",
    "channels, the other way round": """
        order = Constant<value_ints = [1, 0]>()
        y = Gather<axis = 2>(x, order)
    """,
    "layer norm of channels": _BOTH + "y = LayerNormalization(x, w1)",
    "norm of channels": "y = LpNormalization(x)",
    "reshape of channels": """
        split = Constant<value_ints = [0, 0, 2, 1]>()
        whole = Constant<value_ints = [0, -1, 2]>()
        apart = Reshape(x, split)
        y = Reshape(apart, whole)
    """,
    "pad of channels": "pads = Constant<value_ints = [0, 0, 1, 0, 0, 0]>()\ny = Pad(x, pads)",
    "channels cut and joined": """
        both = Constant<value_ints = [1, 1]>()
        a, b = Split<axis = 2>(x, both)
        minus = Neg(b)
        y = Concat<axis = 2>(minus, a)
    """,
    "channels beside a constant": """
        one = Constant<value = float[1,1,1] {1.0}>()
        size = Shape<start = 0, end = 2>(x)
        end = Constant<value_ints = [1]>()
        all = Concat<axis = 0>(size, end)
        ones = Expand(one, all)
        y = Concat<axis = 2>(x, ones)
    """,
    "flattened": _FLAT + _WEIGHT + "made = MatMul(flat, w)" + _BACK,
    "flattened, affine": _FLAT + _WEIGHT + "made = Gemm<transB = 1>(flat, w)" + _BACK,
    "columns, affine": _FLAT
    + _WEIGHT
    + """
        columns = Gemm<transB = 1>(w, flat)
        made = Transpose<perm = [1, 0]>(columns)
    """
    + _BACK,
    "tokens first and flattened": _SIZES_OF_ROWS
    + _WEIGHT
    + """
        first = Transpose<perm = [1, 0, 2]>(x)
        flat_sizes = Constant<value_ints = [-1, 2]>()
        flat = Reshape(first, flat_sizes)
        made = MatMul(flat, w)
        sizes = Concat<axis = 0>(tokens, rows, two)
        apart = Reshape(made, sizes)
        y = Transpose<perm = [1, 0, 2]>(apart)
    """,
    "experts chosen by each token": _FLAT
    + _WEIGHT
    + """
        scores = MatMul(flat, w)
        shares = Softmax<axis = -1>(scores)
        k = Constant<value_ints = [1]>()
        share, chosen = TopK<axis = -1>(shares, k)
        again = GatherElements<axis = 1>(shares, chosen)
        experts = Constant<value = float[2,2] {1.0, 0.5, -1.0, 2.0}>()
        one = Constant<value_ints = [1]>()
        index = Squeeze(chosen, one)
        picked = Gather(experts, index)
        weighed = Mul(picked, again)
        sums = Mul(weighed, share)
        made = Mul(sums, flat)
    """
    + _BACK,
    "copies of each token": _FLAT
    + """
        middle = Constant<value_ints = [1]>()
        apart = Unsqueeze(flat, middle)
        three = Constant<value_ints = [1, 3, 1]>()
        copies = Expand(apart, three)
        all = Reshape(copies, flat_sizes)
        grown = Exp(all)
        back = Constant<value_ints = [-1, 3, 2]>()
        groups = Reshape(grown, back)
        made = ReduceMean<keepdims = 0>(groups, middle)
    """
    + _BACK,
    "weights chosen by each token": _FLAT
    + """
        best = ArgMax<axis = 1, keepdims = 1>(flat)
        weights = Constant<value = float[2,2,2] {1.0, 2.0, -1.0, 0.5, 3.0, -2.0, 1.5, 0.0}>()
        own = GatherND(weights, best)
        end = Constant<value_ints = [2]>()
        columns = Unsqueeze(flat, end)
        products = MatMul(own, columns)
        made = Squeeze(products, end)
    """
    + _BACK,
    "one-hot": """
        best = ArgMax<axis = 2, keepdims = 0>(x)
        depth = Constant<value_ints = [2]>()
        values = Constant<value_floats = [0.0, 1.0]>()
        y = OneHot(best, depth, values)
    """,
    "channels scattered": """
        best = ArgMax<axis = 2>(x)
        real = Cast<to = 1>(best)
        y = ScatterElements<axis = 2>(x, best, real)
    """,
    "products of channels": """
        end = Constant<value_ints = [3]>()
        middle = Constant<value_ints = [2]>()
        columns = Unsqueeze(x, end)
        lines = Unsqueeze(x, middle)
        outer = MatMul(columns, lines)
        y = ReduceSum<keepdims = 0>(outer, end)
    """,
    "Einsum with weights": _WEIGHT + 'y = Einsum<equation = "bsh,hd->bsd">(x, w)',
    "Einsum with dots": _WEIGHT + 'y = Einsum<equation = "...h,hd->...d">(x, w)',
    "Einsum within a token": """
        sums = Einsum<equation = "bsh,bsh->bs">(x, x)
        end = Constant<value_ints = [2]>()
        y = Unsqueeze(sums, end)
    """,
    "a filter of one": _TURNED
    + """
        w = Constant<value = float[2,2,1] {1.0, 2.0, -1.0, 0.5}>()
        made = Conv(turned, w)
    """
    + _TURN_BACK,
    "pooled channels": "y = MaxPool<kernel_shape = [2]>(x)",
    "instances are tokens": _FLAT
    + """
        middle = Constant<value_ints = [1]>()
        w = Constant<value_floats = [1.5]>()
        apart = Unsqueeze(flat, middle)
        normed = InstanceNormalization(apart, w, w)
        made = Squeeze(normed, middle)
    """
    + _BACK,
    "statistics that are constants": _FLAT
    + _BOTH
    + "made = BatchNormalization(flat, w1, b1, b1, w1)"
    + _BACK,
    "waves of channels": """
        ends = Constant<value_ints = [3]>()
        axis = Constant<value_int = 2>()
        complex = Unsqueeze(x, ends)
        waves = DFT(complex, , axis)
        y = ReduceSum<keepdims = 0>(waves, ends)
    """,
    "quantized with constants": _QUANTIZED
    + """
        q = QuantizeLinear(x, step, middle)
        y = DequantizeLinear(q, step, middle)
    """,
    "operators of ONNX Runtime": _BOTH
    + """
        curved = com.microsoft.FastGelu(x, b1)
        y = com.microsoft.SkipLayerNormalization(curved, x, w1, b1)
    """,
    "running sum of channels": "axis = Constant<value_int = -1>()\ny = CumSum(x, axis)",
    "a mask that shows each its own": _COLUMN
    + """
        limit = Constant<value_float = 0.0>()
        above = Greater(column, limit)
        y = Where(above, x, limit)
    """,
}


def graph_text(body: str) -> str:
    """The body as a model."""
    return f"""<ir_version: 10, opset_import: ["": 24, "com.microsoft": 1]>
    agraph (float[b,s,2] x) => (float[d0,d1,d2] y) {{
        {body}
    }}"""
