"""A model of one canonical attention node, and inputs for it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from optc.core.context import Array
from optc.ir.flash_attention import AttentionSpec, add_flash_attention

OUTPUTS = ("output", "present_key", "present_value")


def attention_model(spec: AttentionSpec, inputs: dict[str, Array]) -> ir.Model:
    """All axes symbolic, so that one model takes any batch and any length."""
    values = {
        name: ir.val(name, ir.DataType.from_numpy(array.dtype), [None] * array.ndim)
        for name, array in inputs.items()
    }
    graph = ir.Graph(list(values.values()), [], nodes=[], opset_imports={"": 24}, name="attention")
    model = ir.Model(graph, ir_version=11)
    node = add_flash_attention(model, spec, values, name="site")
    graph.append(node)
    graph.outputs.extend(node.outputs)
    for output in node.outputs:
        output.type = ir.TensorType(ir.DataType.from_numpy(inputs["query"].dtype))
    return model


def run_attention(spec: AttentionSpec, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run the function body on ONNX Runtime, after the ONNX checker has seen it."""
    proto = ir.to_proto(attention_model(spec, inputs))
    onnx.checker.check_model(proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(None, inputs), strict=False))


def make_inputs(
    spec: AttentionSpec,
    *,
    batch: int = 2,
    heads: tuple[int, int] = (4, 2),
    rows: int = 3,
    keys: int = 7,
    dims: tuple[int, int] = (32, 32),
    past: int = 4,
    capacity: int = 9,
    lengths: list[int] | None = None,
    dtype: type = np.float32,
    seed: int = 0,
) -> dict[str, Array]:
    """Random inputs by the op's names.

    Args:
        spec: Which inputs there are.
        batch: B.
        heads: Hq and Hkv.
        rows: S; also the number of new keys when there is a cache.
        keys: Number of keys where there is no cache.
        dims: D and Dv.
        past: Keys already in a growing cache.
        capacity: Size of a static cache.
        lengths: Valid keys of each row; ragged ones when None.
        dtype: Element type.
        seed: Seed of all of it.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(dtype)

    new = rows if spec.cache else keys
    held = {"": 0, "concat": past, "static": capacity}[spec.cache]
    total = {"": keys, "concat": past + rows, "static": capacity}[spec.cache]
    inputs = {
        "query": normal(batch, heads[0], rows, dims[0]),
        "key": normal(batch, heads[1], new, dims[0]),
        "value": normal(batch, heads[1], new, dims[1]),
    }
    if spec.lengths:
        full = past + rows if spec.cache else keys
        ragged = [full - 2 * (row % 2) for row in range(batch)]
        inputs["lengths"] = np.array(lengths or ragged, np.int64)
        total = int(inputs["lengths"].max()) if spec.cache == "concat" else total
    if spec.cache:
        inputs["past_key"] = normal(batch, heads[1], held, dims[0])
        inputs["past_value"] = normal(batch, heads[1], held, dims[1])
    if spec.mask == "bool":
        inputs["mask"] = rng.random((batch, 1, rows, total)) > 0.3
    if spec.mask == "bias":
        inputs["mask"] = normal(1, heads[0], rows, total)
    return inputs
