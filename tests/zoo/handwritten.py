"""One attention layer, written in the ways that exporters, optimisers and people write it.

Every graph takes `x` [B,S,32], perhaps `padding` [B,S] (1 is a word), and gives `y` [B,S,32]. A way
of writing is a choice per part of the layer; `SPELLINGS` lists them, each with what it means.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
from handwritten_heads import HEADS, KEYS, REPEATS
from handwritten_masks import MASKS
from handwritten_scores import OUTPUTS, PRODUCTS, SCALES, SOFTMAX
from handwritten_whole import WHOLE

__all__ = ["HEAD_SIZE", "QUERY_HEADS", "SPELLINGS", "WIDTH", "Layer", "answer", "feeds", "weights"]

QUERY_HEADS, HEAD_SIZE = 4, 8
WIDTH = QUERY_HEADS * HEAD_SIZE
Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Layer:
    """One way of writing the layer.

    Attributes:
        heads: How heads are split off the projections.
        repeat: How key heads are repeated for the query heads.
        keys: How keys are transposed.
        product: How the two products are written.
        scale: Where the scale is.
        mask: How scores are masked.
        softmax: How the Softmax is written, and what is around it.
        output: How heads are put together again.
        whole: Instead of all these, the name of a way to write all at once.
        key_heads: Heads of keys and values.
    """

    heads: str = "reshape"
    repeat: str = "none"
    keys: str = "transpose"
    product: str = "matmul"
    scale: str = "mul"
    mask: str = "none"
    softmax: str = "op"
    output: str = "transpose"
    whole: str = ""
    key_heads: int = QUERY_HEADS

    def __str__(self) -> str:
        changed = [
            f"{f.name}={getattr(self, f.name)}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return ",".join(changed) or "plain"

    @property
    def causal(self) -> bool:
        """Whether later keys are hidden."""
        return "causal" in self.mask or "causal" in self.whole or "window" in self.mask

    @property
    def window(self) -> int:
        """Keys that a query sees, itself included; 0 for all."""
        return 4 if "window" in self.mask else 0

    @property
    def padded(self) -> bool:
        """Whether there is an input `padding`."""
        return "padding" in self.mask or "padding" in self.whole

    @property
    def biased(self) -> bool:
        """Whether there is a learned bias of the scores."""
        return "bias" in self.mask or "bias" in self.whole

    @property
    def softcap(self) -> float:
        """Bound of the scores; 0.0 for none."""
        return 3.0 if "softcap" in self.mask else 0.0

    @property
    def scale_value(self) -> float:
        """Factor on the scores that is left in the graph."""
        return 1.0 if self.scale.startswith("weights") else HEAD_SIZE**-0.5

    def text(self) -> str:
        """The graph as ONNX text, without the values of `wq`, `wk`, `wv` and `bias`."""
        parts = [WHOLE[self.whole]] if self.whole else self._parts()
        body = "\n".join(parts)
        sizes = {"KV": self.key_heads, "G": QUERY_HEADS // self.key_heads}
        body = string.Template(body).substitute(sizes | {"KVW": self.key_heads * HEAD_SIZE})
        padding = ", int64[B,S] padding" if self.padded else ""
        return f"""<ir_version: 10, opset_import: ["": {self.opset}]>
layer (float[B,S,32] x{padding}) => (float[B,S,32] y) {{
{body}
}}"""

    def model(self) -> ir.Model:
        """The graph, with its weights."""
        proto = onnx.parser.parse_model(self.text())
        used = {name for node in proto.graph.node for name in node.input}
        for name, value in weights(self).items():
            if name in used:
                proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return ir.from_proto(proto)

    @property
    def opset(self) -> int:
        """The standard op came with 23."""
        return 23 if self.whole.startswith("op") else 18

    def _parts(self) -> list[str]:
        return [
            HEADS[self.heads],
            REPEATS[self.repeat],
            KEYS[self.keys],
            *_around_product(self.scale, self.product),
            MASKS[self.mask],
            SOFTMAX[self.softmax],
            PRODUCTS[self.product][1],
            OUTPUTS[self.output],
        ]


def _around_product(scale: str, product: str) -> tuple[str, str, str]:
    before, after = SCALES[scale]
    return before, PRODUCTS[product][0], after


def weights(layer: Layer) -> dict[str, Array]:
    """Seeded weights; with the scale in them where the layer has it there."""
    rng = np.random.default_rng(0)
    width = layer.key_heads * HEAD_SIZE
    made = {
        "wq": rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5,
        "wk": rng.standard_normal((WIDTH, width)) / WIDTH**0.5,
        "wv": rng.standard_normal((WIDTH, width)) / WIDTH**0.5,
        "bias": rng.standard_normal((1, QUERY_HEADS, 24, 24)),
    }
    if layer.scale == "weights":
        made["wq"] = made["wq"] * HEAD_SIZE**-0.5
    return {name: value.astype(np.float32) for name, value in made.items()}


def feeds(layer: Layer, batch: int = 2, length: int = 9) -> dict[str, Array]:
    """Seeded inputs; every query sees something, the last row has two words less."""
    x = np.random.default_rng(1).standard_normal((batch, length, WIDTH))
    made = {"x": x.astype(np.float32)}
    if layer.padded:
        made["padding"] = np.ones((batch, length), np.int64)
        made["padding"][-1, -2:] = 0
    return made


def answer(layer: Layer, given: dict[str, Array]) -> Array:
    """What the layer means, in float64."""
    x, parts = given["x"].astype(np.float64), weights(layer)
    count = x.shape[1]
    heads = [
        (x @ parts[w]).reshape(*x.shape[:2], -1, HEAD_SIZE).transpose(0, 2, 1, 3)
        for w in ("wq", "wk", "wv")
    ]
    query, key, value = (np.repeat(h, QUERY_HEADS // h.shape[1], axis=1) for h in heads)
    scores = query @ key.swapaxes(2, 3)
    bias = parts["bias"][:, :, :count, :count] * float(layer.biased)
    if layer.whole == "bias_before_scale":
        bias = bias * layer.scale_value
    scores = scores * layer.scale_value + bias
    if layer.softcap:
        scores = layer.softcap * np.tanh(scores / layer.softcap)
    scores = np.where(_visible(layer, given, count), scores, -np.inf)
    seen = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = seen / seen.sum(-1, keepdims=True) @ value
    return mixed.transpose(0, 2, 1, 3).reshape(x.shape)


def _visible(layer: Layer, given: dict[str, Array], count: int) -> Array:
    i, j = np.arange(count)[:, None], np.arange(count)[None]
    visible = np.ones((1, 1, count, count), bool)
    if layer.causal:
        visible = visible & (j <= i)
    if layer.window:
        visible = visible & (j > i - layer.window)
    if layer.padded:
        visible = visible & (given["padding"] == 1)[:, None, None]
    return visible


def _each(part: str, names: Iterable[str], **more: object) -> list[Layer]:
    return [Layer(**{part: name, **more}) for name in names]  # type: ignore[arg-type]


_GROUPED = [n for n in REPEATS if n not in {"none", "tile_one", "one"}]
_TURNED = [n for n in HEADS if not n.startswith(("flat", "not_turned"))]
_RANK_4_KEYS = [n for n in KEYS if n not in {"transpose_flat", "none"}]
_FLAT = {"heads": "flat", "keys": "transpose_flat", "output": "flat"}
_WORDS_FIRST = {
    "heads": "flat_words_first",
    "keys": "transpose_flat",
    "output": "flat_words_first",
}
_TRANSPOSED = {"keys": "none", "heads": "not_turned", "product": "einsum_words_first"}

SPELLINGS: list[Layer] = list(
    dict.fromkeys(
        [
            *_each("heads", _TURNED),
            *_each("keys", _RANK_4_KEYS),
            *_each("scale", SCALES),
            *_each("mask", MASKS),
            *_each("softmax", SOFTMAX, mask="causal_where_inf"),
            *_each("repeat", _GROUPED, key_heads=2),
            *_each("repeat", ["tile_one", "one"], key_heads=1),
            Layer(heads="split", output="squeezed"),
            Layer(heads="slice", output="squeezed", mask="causal_where_inf"),
            Layer(product="einsum", keys="none"),
            Layer(product="einsum", keys="none", repeat="expand", key_heads=2),
            Layer(product="einsum_other_letters", keys="none", mask="causal_add_inf"),
            Layer(**_TRANSPOSED, output="reshape"),
            Layer(**_TRANSPOSED, output="reshape", mask="causal_padding_and"),
            Layer(**_FLAT),
            Layer(**_FLAT, mask="causal_add_inf"),
            Layer(**_FLAT, scale="query", softmax="dropout"),
            Layer(**_WORDS_FIRST),
            Layer(**_WORDS_FIRST, scale="query_div", mask="causal_add_inf"),
            *_each("whole", WHOLE),
            *_each("whole", [n for n in WHOLE if n.startswith("op_rank_3")], key_heads=2),
            *_each("whole", [n for n in WHOLE if n.startswith("grouped")], key_heads=2),
            Layer(whole="op_causal", key_heads=2),
            # several at once, as files are found
            Layer(heads="packed_split", repeat="expand", key_heads=2, mask="window", scale="both"),
            Layer(heads="packed_gather", keys="through_rank_3", scale="query", softmax="cast"),
            Layer(keys="at_once", mask="causal_padding_and_added", softmax="guarded"),
            Layer(repeat="gather", key_heads=2, mask="causal_padding_two_wheres", scale="div"),
        ]
    )
)
