"""A tiny language model, without a cache and as it comes out of `kv`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from optc.ir.flash_attention import AttentionSpec, add_flash_attention

__all__ = ["DIM", "HEADS", "PLACES", "VOCAB", "tiny_language_model"]

VOCAB, WIDTH, HEADS, DIM = 259, 16, 2, 8
PLACES = 64
WEIGHTS = (
    ("embedding", VOCAB, WIDTH),
    ("places", None, WIDTH),
    ("wq", WIDTH, WIDTH),
    ("wk", WIDTH, WIDTH),
    ("wv", WIDTH, WIDTH),
    ("head", WIDTH, VOCAB),
)


LAST = (
    "index_1d = Sub(new_lengths, one) ",
    "index = Unsqueeze(index_1d, axis) ",
    "row = GatherND<batch_dims = 1>(z, index) ",
    "chosen = Unsqueeze(row, axis)",
)


def tiny_language_model(
    cache: str, capacity: int | None = None, *, last: bool = False, places: int = PLACES
) -> ir.Model:
    """One attention layer over learned positions.

    Args:
        cache: `""` for a plain graph, else `concat` or `static`.
        capacity: Places of a static cache.
        places: Positions that it knows.
        last: Whether `new_lengths` comes in and only each row's last logits go out.
    """
    width = capacity if cache == "static" else "past"
    state = f"float[B,{HEADS},{width},{DIM}]"
    cached = f", int64[B] cache_lengths, {state} past_key, {state} past_value" if cache else ""
    cached += ", int64[B] new_lengths" if last else ""
    steps = "1" if last else "S"
    start = "cache_lengths" if cache else "none"
    sizes = [(name, rows or places, cols) for name, rows, cols in WEIGHTS]
    weights = ", ".join(f"float[{rows},{cols}] {name}" for name, rows, cols in sizes)
    text = f"""<ir_version: 11, opset_import: ["": 24]>
tiny (int64[B,S] input_ids{cached}, {weights}) => (float[B,{steps},{VOCAB}] logits) {{
  batch = Shape<start = 0, end = 1>(input_ids)
  steps_1d = Shape<start = 1, end = 2>(input_ids)
  steps = Squeeze(steps_1d)
  zero = Constant<value_int = 0>()
  one = Constant<value_int = 1>()
  axis = Constant<value_ints = [1]>()
  none = Expand(zero, batch)
  offsets = Range(zero, steps, one)
  first = Unsqueeze({start}, axis)
  positions = Add(first, offsets)
  word = Gather(embedding, input_ids)
  place = Gather(places, positions)
  x = Add(word, place)
  q3 = MatMul(x, wq)
  k3 = MatMul(x, wk)
  v3 = MatMul(x, wv)
  split = Constant<value_ints = [0, 0, {HEADS}, {DIM}]>()
  q4 = Reshape(q3, split)
  k4 = Reshape(k3, split)
  v4 = Reshape(v3, split)
  q = Transpose<perm = [0, 2, 1, 3]>(q4)
  k = Transpose<perm = [0, 2, 1, 3]>(k4)
  v = Transpose<perm = [0, 2, 1, 3]>(v4)
  lengths = Add({start}, steps)
  attended = Identity(q)
  back = Transpose<perm = [0, 2, 1, 3]>(attended)
  join = Constant<value_ints = [0, 0, {WIDTH}]>()
  y = Reshape(back, join)
  z = Add(x, y)
  {"".join(LAST) if last else "chosen = Identity(z)"}
  logits = MatMul(chosen, head)
}}"""
    model = ir.from_onnx_text(text)
    _fill_weights(model, sizes)
    common.ShapeInferencePass()(model)
    _insert_attention(model, cache)
    return model


def _fill_weights(model: ir.Model, sizes: list[tuple[str, int, int]]) -> None:
    rng = np.random.default_rng(7)
    named = {value.name: value for value in model.graph.inputs}
    for name, rows, cols in sizes:
        value = named[name]
        value.const_value = ir.tensor(rng.normal(size=(rows, cols)).astype(np.float32), name=name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)


def _insert_attention(model: ir.Model, cache: str) -> None:
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    spec = AttentionSpec(scale=0.5, causal=True, cache=cache, lengths=bool(cache))
    inputs = {"query": values["q"], "key": values["k"], "value": values["v"]}
    if cache:
        inputs |= {name: values[name] for name in ("past_key", "past_value", "lengths")}
    node = add_flash_attention(model, spec, inputs, name="attention")
    stand_in = values["attended"].producer()
    assert stand_in is not None
    model.graph.insert_before(stand_in, node)
    stand_in.replace_input_with(0, node.outputs[0])
    for part, output in zip(("key", "value"), node.outputs[1:], strict=False):
        past = values[f"past_{part}"]
        past.name, output.name = f"past_key_values.0.{part}", f"present.0.{part}"
        output.type, output.shape = past.type, ir.Shape(["B", HEADS, "present", DIM])
        model.graph.outputs.append(output)
