"""A one-layer language model, plain and with a cache, and a small session to run graphs in."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from optc.core.context import Array, Feeds
from optc.core.errors import UnsupportedError
from optc.core.session import Port
from optc.ir.flash_attention import AttentionSpec, add_flash_attention
from optc.ir.interface import past_name, ports, present_name

VOCAB, WIDTH, HEADS, HEAD, POSITIONS = 32, 16, 2, 8, 64
SCALE = HEAD**-0.5


_REFUSALS = (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.RuntimeException)


class OrtModel:
    """A graph in memory, as a `Session`."""

    def __init__(self, model: ir.Model):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.inputs: tuple[Port, ...] = ports(model.graph.inputs)
        self.outputs: tuple[Port, ...] = ports(model.graph.outputs)
        data = ir.to_proto(model).SerializeToString()
        self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Feeds, fetch: tuple[str, ...] | None = None) -> dict[str, Array]:
        names = [port.name for port in self.outputs] if fetch is None else list(fetch)
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except _REFUSALS as error:
            raise UnsupportedError(f"onnxruntime: {error}") from error


@contextlib.contextmanager
def open_model(model: ir.Model) -> Iterator[OrtModel]:
    yield OrtModel(model)


_HEAD_NODES = """
  embedded = Gather (table, input_ids)
  placed = Gather (positions, at)
  x = Add (embedded, placed)
  q3 = MatMul (x, wq)
  k3 = MatMul (x, wk)
  v3 = MatMul (x, wv)
  q4 = Reshape (q3, q_shape)
  k4 = Reshape (k3, k_shape)
  v4 = Reshape (v3, k_shape)
  q = Transpose <perm = [0, 2, 1, 3]> (q4)
  k = Transpose <perm = [0, 2, 1, 3]> (k4)
  v = Transpose <perm = [0, 2, 1, 3]> (v4)
"""
_TAIL_NODES = """
  o4 = Transpose <perm = [0, 2, 1, 3]> (attended)
  o3 = Reshape (o4, o_shape)
  mixed = Add (x, o3)
  logits = MatMul (mixed, head)
"""
_COUNT = """
  tokens = Shape <start = 1, end = 2> (input_ids)
  tokens0 = Squeeze (tokens)
  steps = Range (zero, tokens0, one)
"""


def _weights(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {
        "table": (VOCAB, WIDTH),
        "positions": (POSITIONS, WIDTH),
        "wq": (WIDTH, HEADS * HEAD),
        "wk": (WIDTH, HEAD),
        "wv": (WIDTH, HEAD),
        "head": (WIDTH, VOCAB),
    }
    made: dict[str, Array] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    for name in ("wq", "wk"):
        made[name] *= 0.2  # scores of about 1: attention that spreads shows every wrong key
    made["head"] *= 0.1  # logits of about 2: a distribution over many tokens
    made["q_shape"] = np.array([0, 0, HEADS, HEAD])
    made["k_shape"] = np.array([0, 0, 1, HEAD])
    made["o_shape"] = np.array([0, 0, WIDTH])
    made["zero"], made["one"] = np.array(0), np.array(1)
    return made


def _model(text: str, seed: int) -> ir.Model:
    model = ir.from_onnx_text(text)
    for name, array in _weights(seed).items():
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    return model


def _inputs(*names: str) -> str:
    kinds = {"table": f"float[{VOCAB},{WIDTH}]", "positions": f"float[{POSITIONS},{WIDTH}]"}
    kinds |= {"wq": f"float[{WIDTH},{HEADS * HEAD}]", "head": f"float[{WIDTH},{VOCAB}]"}
    kinds |= dict.fromkeys(("wk", "wv"), f"float[{WIDTH},{HEAD}]")
    kinds |= {"q_shape": "int64[4]", "k_shape": "int64[4]", "o_shape": "int64[3]"}
    kinds |= dict.fromkeys(("zero", "one"), "int64")
    return ", ".join([*names, *(f"{kind} {name}" for name, kind in kinds.items())])


def plain_lm(seed: int = 0, *, causal: bool = True) -> ir.Model:
    """`input_ids` [B,S] -> `logits` [B,S,V], attention spelt as the standard op."""
    return _model(
        f"""<ir_version: 11, opset_import: ["": 24]>
        lm ({_inputs("int64[B,S] input_ids")}) => (float[B,S,{VOCAB}] logits) {{
        {_COUNT}
          at = Identity (steps)
        {_HEAD_NODES}
          attended = Attention <is_causal = {int(causal)}, scale = {SCALE}> (q, k, v)
        {_TAIL_NODES}
        }}""",
        seed,
    )


@dataclasses.dataclass(frozen=True)
class Bug:
    """How to build the graph with a cache wrongly: expressions over correct values."""

    causal: bool = True
    lengths: str = "Identity (new_lengths)"
    at: str = "Identity (right_at)"


def cached_lm(seed: int = 0, *, capacity: int | None = None, bug: Bug = Bug()) -> ir.Model:
    """The same model with the cache interface; a fixed buffer where `capacity` is given."""
    room = "P" if capacity is None else str(capacity)
    past = ", ".join(f"float[B,1,{room},{HEAD}] past_{part}" for part in ("key", "value"))
    model = _model(
        f"""<ir_version: 11, opset_import: ["": 24]>
        lm ({_inputs("int64[B,S] input_ids", "int64[B] cache_lengths", past)})
        => (float[B,S,{VOCAB}] logits) {{
        {_COUNT}
          new_lengths = Add (cache_lengths, tokens)
          lengths = {bug.lengths}
          column = Unsqueeze (cache_lengths, one)
          right_at = Add (column, steps)
          longest = ReduceMax <keepdims = 1> (cache_lengths)
          longest_new = Add (longest, tokens)
          rows = Shape (cache_lengths)
          not_first = Min (cache_lengths, one)
          at = {bug.at}
        {_HEAD_NODES}
          attended = Mul (q, lengths)
        {_TAIL_NODES}
        }}""",
        seed,
    )
    _put_attention(model, "concat" if capacity is None else "static", bug)
    return model


def _put_attention(model: ir.Model, cache: str, bug: Bug) -> None:
    values = {v.name: v for node in model.graph for v in node.outputs}
    values |= {v.name: v for v in model.graph.inputs}
    arguments = {"query": "q", "key": "k", "value": "v", "lengths": "lengths"}
    arguments |= {name: name for name in ("past_key", "past_value")}
    spec = AttentionSpec(scale=SCALE, causal=bug.causal, cache=cache, lengths=True)
    inputs = {name: values[source] for name, source in arguments.items()}
    node = add_flash_attention(model, spec, inputs, name="attention")
    place = values["attended"].producer()
    assert place is not None
    model.graph.insert_before(place, node)
    place.outputs[0].replace_all_uses_with(node.outputs[0])
    model.graph.remove(place, safe=True)
    for output, part in zip(node.outputs[1:], ("key", "value"), strict=True):
        values[f"past_{part}"].name = past_name(0, part)
        output.name = present_name(0, part)
        output.dtype = ir.DataType.FLOAT
        output.shape = ir.Shape(["B", 1, "T", HEAD])
        model.graph.outputs.append(output)
