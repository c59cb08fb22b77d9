"""Other spellings of products and Softmax, brought to the one that attention is looked for in.

1. `Einsum` of two computed operands, such as `bqhd,bkhd->bhqk`, becomes `MatMul` and transposes.
2. `Exp(x) / ReduceSum(Exp(x))` over the last axis becomes `Softmax`, whether or not the maximum was
   subtracted before; so does `Exp(LogSoftmax(x))`.
3. `P @ V1` and `P @ V2` become one product with V1 and V2 side by side.
4. `V @ Transpose(P)` becomes `Transpose(P @ Transpose(V))` where P comes from a Softmax.
5. `Attention` over [B,S,H*D] gets [B,H,S,D].
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optc.ir.constants import constant
from optc.ir.insert import Insert, take_over
from optc.ir.probe import ancestors

__all__ = ["spell_plainly"]


def spell_plainly(model: ir.Model) -> None:
    """Rewrite what stands around attention, in place; dead nodes are left for the caller."""
    for node in list(model.graph):
        if node.domain:
            continue
        if node.op_type == "Einsum":
            _einsum(model, node)
        elif node.op_type == "Exp":
            _log_softmax(model, node)
        elif node.op_type == "Attention":
            _split_heads(model, node)
        elif node.op_type == "Div":
            _softmax(model, node)
        elif node.op_type == "MatMul":
            _transposed_product(model, node)
            _shared_probabilities(model, node)


@dataclasses.dataclass(frozen=True)
class _Equation:
    """Labels of `a,b->c` by their role; `batch` labels may be missing in one operand."""

    left: str
    right: str
    result: str
    batch: str
    rows: str
    columns: str
    inner: str


def _einsum(model: ir.Model, node: ir.Node) -> None:
    left, right = node.inputs if len(node.inputs) == 2 else (None, None)
    if left is None or right is None or left.shape is None:
        return
    equation = _parse(node.attributes.get_string("equation", ""), len(left.shape))
    if equation is None:
        return
    if left.is_initializer() or right.is_initializer():  # a projection
        return
    insert = Insert(model, node)
    a = _operand(insert, left, equation.left, equation.batch, equation.rows + equation.inner)
    b = _operand(insert, right, equation.right, equation.batch, equation.inner + equation.columns)
    made = equation.batch + equation.rows + equation.columns
    product = insert.node("MatMul", [a, b], node.outputs[0].dtype)
    if node.outputs[0].shape is not None:
        dims = dict(zip(equation.result, node.outputs[0].shape, strict=True))
        product.shape = ir.Shape([dims[label] for label in made])
    take_over(node.outputs[0], _arranged(insert, product, made, equation.result))


def _parse(text: str, rank: int) -> _Equation | None:
    """Read `a,b->c`; an ellipsis stands for as many axes as the left operand has over."""
    named = len(text.replace(" ", "").partition(",")[0].replace("...", ""))
    text = text.replace("...", "ABCDEFGH"[: max(rank - named, 0)])
    operands, arrow, result = text.replace(" ", "").partition("->")
    left, comma, right = operands.partition(",")
    if not arrow or not comma or "." in text or "," in right:
        return None
    if any(len(set(labels)) != len(labels) for labels in (left, right, result)):
        return None
    inner = "".join(c for c in left if c in right and c not in result)
    if len(inner) != 1 or set(left) | set(right) != {*result, inner}:
        return None
    rows = [c for c in left if c in result and c not in right][-1:]
    columns = [c for c in right if c in result and c not in left][-1:]
    if not rows or not columns:
        return None
    batch = "".join(c for c in result if c not in {*rows, *columns})
    return _Equation(left, right, result, batch, rows[0], columns[0], inner)


def _operand(insert: Insert, value: ir.Value, labels: str, batch: str, last: str) -> ir.Value:
    """[batch, last] with axes of size 1 for batch labels that the operand has not."""
    own = "".join(label for label in batch if label in labels)
    value = _arranged(insert, value, labels, own + last)
    missing = [axis for axis, label in enumerate(batch) if label not in labels]
    if not missing:
        return value
    dims = list(value.shape or ())
    for axis in missing if dims else ():
        dims.insert(axis, 1)
    shape = ir.Shape(dims) if dims else None
    return insert.node("Unsqueeze", [value, insert.ints(missing)], value.dtype, shape)


def _arranged(insert: Insert, value: ir.Value, labels: str, wanted: str) -> ir.Value:
    order = [labels.index(label) for label in wanted]
    return value if order == sorted(order) else insert.transpose(value, order)


def _softmax(model: ir.Model, divide: ir.Node) -> None:
    top, total = divide.inputs
    exp, added = (v.producer() if v is not None else None for v in (top, total))
    if exp is None or added is None or exp.op_type != "Exp" or added.op_type != "ReduceSum":
        return
    if added.inputs[0] is not top or not _is_over_last_axis(added) or exp.inputs[0] is None:
        return
    insert = Insert(model, divide)
    output = divide.outputs[0]
    take_over(output, insert.node("Softmax", [exp.inputs[0]], output.dtype, output.shape, axis=-1))


def _log_softmax(model: ir.Model, exp: ir.Node) -> None:
    log = exp.inputs[0].producer() if exp.inputs[0] is not None else None
    if log is None or log.op_type != "LogSoftmax" or log.inputs[0] is None:
        return
    output, axis = exp.outputs[0], log.attributes.get_int("axis", -1)
    insert = Insert(model, exp)
    softmax = insert.node("Softmax", [log.inputs[0]], output.dtype, output.shape, axis=axis)
    take_over(output, softmax)


def _is_over_last_axis(reduction: ir.Node) -> bool:
    axes = constant(reduction.inputs[1]) if len(reduction.inputs) > 1 else None
    shape = reduction.inputs[0].shape if reduction.inputs[0] is not None else None
    if axes is None or axes.size != 1 or not reduction.attributes.get_int("keepdims", 1):
        return False
    return int(axes.item()) in {-1, len(shape) - 1 if shape is not None else -1}


def _transposed_product(model: ir.Model, product: ir.Node) -> None:
    values, turned = product.inputs
    transpose = turned.producer() if turned is not None else None
    if values is None or transpose is None or transpose.op_type != "Transpose":
        return
    order = list(transpose.attributes.get_ints("perm", []))
    swapped = [*range(len(order) - 2), len(order) - 1, len(order) - 2]
    probabilities = transpose.inputs[0]
    if len(order) < 2 or order != swapped or not _comes_from_softmax(probabilities):
        return
    if values.shape is None or len(values.shape) != len(order):
        return
    assert probabilities is not None
    insert = Insert(model, product)
    straight = insert.transpose(values, swapped)
    made = insert.node("MatMul", [probabilities, straight], product.outputs[0].dtype)
    shape = product.outputs[0].shape
    made.shape = ir.Shape([shape[i] for i in swapped]) if shape is not None else None
    take_over(product.outputs[0], insert.transpose(made, swapped))


def _shared_probabilities(model: ir.Model, first: ir.Node) -> None:
    probabilities = first.inputs[0]
    if probabilities is None or len(probabilities.uses()) < 2 or probabilities.is_graph_output():
        return
    products = list(dict.fromkeys(use.node for use in probabilities.uses()))
    if products[0] is not first or not _comes_from_softmax(probabilities):
        return
    values = [product.inputs[1] for product in products if product.inputs[0] is probabilities]
    shapes = [value.shape for value in values if value is not None and value.shape is not None]
    alike = len({str(shape[:-1]) for shape in shapes}) == 1
    if len(shapes) < len(products) or not alike or any(p.op_type != "MatMul" for p in products):
        return
    made = {product.outputs[0] for product in products}
    if any(ancestors(value) & made for value in values if value is not None):
        return  # one is computed from another
    sizes = [shape[-1] for shape in shapes]
    if not all(isinstance(size, int) for size in sizes):
        return
    _join_values(Insert(model, first), products, [v for v in values if v is not None], shapes)


def _join_values(
    insert: Insert, products: list[ir.Node], values: list[ir.Value], shapes: list[ir.Shape]
) -> None:
    sizes = [int(shape[-1]) for shape in shapes]  # type: ignore[arg-type]
    wide = ir.Shape([*shapes[0][:-1], sum(sizes)])
    joined = insert.node("Concat", values, values[0].dtype, wide, axis=-1)
    result = products[0].outputs[0]
    lead = result.shape[:-1] if result.shape is not None else None
    whole = ir.Shape([*lead, sum(sizes)]) if lead is not None else None
    probabilities = products[0].inputs[0]
    assert probabilities is not None
    made = insert.node("MatMul", [probabilities, joined], result.dtype, whole)
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    for product, start, end in zip(products, ends, ends[1:], strict=False):
        bounds = [insert.ints([number]) for number in (start, end, -1)]
        part = insert.node("Slice", [made, *bounds], result.dtype, product.outputs[0].shape)
        take_over(product.outputs[0], part)


def _comes_from_softmax(value: ir.Value | None, depth: int = 4) -> bool:
    node = value.producer() if value is not None else None
    if node is None or not depth:
        return False
    if node.op_type == "Softmax":
        return True
    if node.op_type == "Where":
        return any(_comes_from_softmax(v, depth - 1) for v in node.inputs[1:])
    through = {"Cast", "Identity", "Dropout", "Reshape"}
    return node.op_type in through and _comes_from_softmax(node.inputs[0], depth - 1)


def _split_heads(model: ir.Model, node: ir.Node) -> None:
    """`Attention` with `q_num_heads` and `kv_num_heads`."""
    heads = [node.attributes.get_int(f"{kind}_num_heads", 0) for kind in ("q", "kv")]
    query, output = node.inputs[0], node.outputs[0]
    if not all(heads) or query is None or query.shape is None or len(query.shape) != 3:
        return
    insert = Insert(model, node)
    inputs = list(node.inputs)
    for index, count in enumerate((heads[0], heads[1], heads[1])):
        value = inputs[index]
        inputs[index] = _with_heads(insert, value, count) if value is not None else None
    kept = {k: v for k, v in node.attributes.items() if not k.endswith("_num_heads")}
    whole = ir.node("Attention", inputs, kept, num_outputs=len(node.outputs))
    model.graph.insert_before(node, whole)
    for old, new in zip(node.outputs[1:], whole.outputs[1:], strict=True):
        new.type = old.type
        take_over(old, new)
    made, values = whole.outputs[0], inputs[2]
    made.type = output.type
    if inputs[0] is not None and inputs[0].shape is not None and values is not None:
        last = values.shape[3] if values.shape is not None else None
        made.shape = ir.Shape([*inputs[0].shape[:3], last])
    turned = insert.transpose(made, [0, 2, 1, 3])
    flat = insert.node("Reshape", [turned, insert.ints([0, 0, -1])], output.dtype, output.shape)
    take_over(output, flat)


def _with_heads(insert: Insert, value: ir.Value, heads: int) -> ir.Value:
    """[B,S,H*D] to [B,H,S,D]."""
    dims = list(value.shape) if value.shape is not None else [None, None, None]
    size = dims[2] // heads if isinstance(dims[2], int) else None
    shape = ir.Shape([dims[0], dims[1], heads, size])
    split = insert.node("Reshape", [value, insert.ints([0, 0, heads, -1])], value.dtype, shape)
    return insert.transpose(split, [0, 2, 1, 3])
