"""One canonical attention as graphs have it, lowered for ONNX Runtime, and run.

The sizes and inputs are those of the suite that every realisation of the op must pass; they are
imported here and nowhere else in this folder.
"""

from __future__ import annotations

import onnx_ir as ir
from attention_cases import OUTPUTS, make_inputs

from optc.core.context import Array
from optc.ir.flash_attention import AttentionSpec, add_flash_attention
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort
from optc.targets.ort_attention import Choice, attention_choices

__all__ = ["OUTPUTS", "choice_of", "make_inputs", "run_lowered", "to_rows", "typed_model"]

OPERANDS = ("query", "key", "value")


def typed_model(
    spec: AttentionSpec, inputs: dict[str, Array], *, rows: bool = False, sites: int = 1
) -> ir.Model:
    """A model of attention sites over the same inputs, whose sizes are named as passes name them.

    Args:
        spec: The sites.
        inputs: Arrays by the op's input names; heads and head sizes are read off them.
        rows: Whether operands and output are [B,S,H*D], with heads split as exporters do.
        sites: How many; each but the last gives its output to the next as the query.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="attention")
    model = ir.Model(graph, ir_version=11)
    values = {name: _input(graph, name, inputs, rows=rows) for name in inputs}
    for index in range(sites):
        node = add_flash_attention(model, spec, values, name=f"site_{index}")
        graph.append(node)
        values["query"] = node.outputs[0]
        for output in node.outputs[1:]:
            output.type = values["past_key"].type
    output = _joined(graph, node.outputs[0], inputs) if rows else node.outputs[0]
    graph.outputs.extend([output, *node.outputs[1:]])
    return model


def _input(graph: ir.Graph, name: str, inputs: dict[str, Array], *, rows: bool) -> ir.Value:
    array = inputs[name]
    dims: list[int | str | None] = list(array.shape)
    if name != "mask" and not name.endswith("_scale"):
        dims[0] = "batch"
    if name in OPERANDS:
        same = inputs["query"].shape[2] == array.shape[2]
        dims[2] = "new" if same else "keys"
    if name.startswith("past"):
        dims[2] = "past"
    if name == "mask":
        dims = [None] * 4
    heads = ir.val(name, ir.DataType.from_numpy(array.dtype), dims)
    if not rows or name not in OPERANDS:
        graph.inputs.append(heads)
        return heads
    batch, count, tokens, dim = dims
    flat = ir.val(f"{name}_rows", heads.dtype, [batch, tokens, array.shape[1] * array.shape[3]])
    graph.inputs.append(flat)
    split = _reshape(graph, flat, [0, 0, array.shape[1], array.shape[3]], name)
    split.shape = ir.Shape([batch, tokens, count, dim])
    swap = ir.node("Transpose", [split], {"perm": [0, 2, 1, 3]})
    swap.outputs[0].name, swap.outputs[0].type = name, heads.type
    swap.outputs[0].shape = heads.shape
    graph.append(swap)
    return swap.outputs[0]


def _joined(graph: ir.Graph, value: ir.Value, inputs: dict[str, Array]) -> ir.Value:
    swap = ir.node("Transpose", [value], {"perm": [0, 2, 1, 3]})
    swap.outputs[0].name, swap.outputs[0].type = "swapped", value.type
    graph.append(swap)
    width = inputs["query"].shape[1] * inputs["value"].shape[3]
    joined = _reshape(graph, swap.outputs[0], [0, 0, width], "output")
    joined.shape = ir.Shape(["batch", "new", width])
    return joined


def _reshape(graph: ir.Graph, value: ir.Value, dims: list[int], name: str) -> ir.Value:
    shape = ir.node("Constant", [], {"value_ints": dims})
    node = ir.node("Reshape", [value, shape.outputs[0]])
    shape.outputs[0].name, node.outputs[0].name = f"{name}_shape", f"{name}_reshaped"
    node.outputs[0].type = value.type
    graph.extend([shape, node])
    return node.outputs[0]


def to_rows(array: Array) -> Array:
    """[B,H,S,D] as [B,S,H*D]."""
    batch, heads, tokens, dim = array.shape
    return array.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * dim)


def choice_of(spec: AttentionSpec, inputs: dict[str, Array], *, rows: bool = False) -> Choice:
    """What the target chooses for a site."""
    (choice,) = attention_choices(Ort().lower(typed_model(spec, inputs, rows=rows)))
    return choice


def run_lowered(
    spec: AttentionSpec, inputs: dict[str, Array], *, rows: bool = False
) -> dict[str, Array]:
    """Lower, check, run; the op's outputs by name, [B,Hq,S,Dv] whatever the form."""
    feeds = dict(inputs)
    if rows:
        feeds |= {f"{name}_rows": to_rows(feeds.pop(name)) for name in OPERANDS}
    with open_model(Ort().lower(typed_model(spec, inputs, rows=rows))) as session:
        found = dict(zip(OUTPUTS, session.run(feeds).values(), strict=False))
    if rows:
        batch, heads, tokens, _ = inputs["query"].shape
        found["output"] = found["output"].reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3)
    return found
