"""The canonical attention op: `optc::FlashAttention`, an ONNX model-local function.

One op, several realisations: the function body below (any runtime), a runtime's own fused kernel
(target lowering), our kernel (plugin). The body is standard ONNX, so the graph is an ordinary
model wherever it goes.

    FlashAttention(query [B,Hq,S,D], key [B,Hkv,S',D], value [B,Hkv,S',Dv], mask?, past_key?,
                   past_value?, lengths?, key_scale?, value_scale?)
        -> (output [B,Hq,S,Dv], present_key?, present_value?)

* Hq is a multiple of Hkv; query head h reads key head h // (Hq / Hkv).
* `lengths` [B] int64 counts the valid keys of each row, the new ones included; absent: all T.
* `causal`: query i of row b sees key j iff j <= i + lengths[b] - S (bottom-right alignment).
* `window` w > 0: it sees only keys j > i + lengths[b] - S - w.
* `mask` [B|1, Hq|1, S, T], full in its last two axes: boolean (True is visible) or additive.
* `softcap` c > 0 replaces each score s by c * tanh(s / c), before the mask is added.
* A row that sees nothing gives zeros. Softmax accumulates in float32.
* With a past, the new keys of row b land at lengths[b] - S. Layout `static` writes into the fixed
  buffer that came in. Layout `concat` grows where it must: present has the past's keys or
  max(lengths), whichever is more. So a past with room to spare keeps its size, and a runtime may
  give one buffer as past and present.
* With `key_scale` and `value_scale` [Hkv], float32, the cache is int8: what is new is divided,
  rounded half to even and cut off at -128 and 127 before it goes in (`QuantizeLinear`), and all
  that is read, the new keys too, is the stored integer times its head's scale.

Sources: FlashAttention (Dao et al., 2022); ONNX operators Attention-24 and TensorScatter-24.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from optc.core.errors import PassContractError
from optc.ir.attention_cache import cache_lines

__all__ = [
    "DOMAIN",
    "INPUTS",
    "AttentionSpec",
    "add_flash_attention",
    "flash_attention_nodes",
    "read_spec",
    "remove_unused_overloads",
]

DOMAIN = "optc"
NAME = "FlashAttention"
INPUTS = (
    "query",
    "key",
    "value",
    "mask",
    "past_key",
    "past_value",
    "lengths",
    "key_scale",
    "value_scale",
)
_OPSET = 24


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """The attributes of one attention site, and which optional parts it has.

    Attributes:
        scale: Factor on the scores.
        causal: Whether later keys are hidden.
        window: Number of keys a query sees, itself included; 0 for all.
        softcap: Bound of the scores; 0.0 for none.
        mask: `""`, `"bool"` or `"bias"`.
        cache: `""`, `"concat"` or `"static"`.
        lengths: Whether per-row lengths are given.
        int8: Whether the cache holds int8, with scales.
    """

    scale: float
    causal: bool = False
    window: int = 0
    softcap: float = 0.0
    mask: str = ""
    cache: str = ""
    lengths: bool = False
    int8: bool = False

    @property
    def overload(self) -> str:
        """Name of the function overload whose body has just these parts."""
        parts = [
            self.mask,
            self.cache,
            "causal" if self.causal else "",
            "window" if self.window else "",
            "lengths" if self.lengths else "",
            "int8" if self.int8 else "",
        ]
        return "_".join(part for part in parts if part)


def add_flash_attention(
    model: ir.Model,
    spec: AttentionSpec,
    inputs: dict[str, ir.Value],
    *,
    name: str,
) -> ir.Node:
    """Make an attention node and see that its function overload is in the model.

    Args:
        model: Model that receives the function; the node is not yet inserted in its graph.
        spec: Attributes and parts.
        inputs: Values by the names in `INPUTS`; those that `spec` names must be there.
        name: Name of the node; its output value is `name` too.

    Returns:
        The node, with 1 output, or 3 when it has a cache.
    """
    _check_inputs(spec, inputs, name)
    model.functions.setdefault((DOMAIN, NAME, spec.overload), _function(spec))
    model.opset_imports[DOMAIN] = 1
    model.graph.opset_imports[DOMAIN] = 1
    ordered = [inputs.get(key) for key in INPUTS]
    while ordered[-1] is None:
        ordered.pop()
    attributes = {
        "scale": spec.scale,
        "causal": int(spec.causal),
        "window": spec.window,
        "softcap": spec.softcap,
    }
    node = ir.node(
        NAME,
        ordered,
        attributes,
        domain=DOMAIN,
        overload=spec.overload,
        num_outputs=3 if spec.cache else 1,
        name=name,
    )
    _describe_outputs(node, inputs)
    return node


def _check_inputs(spec: AttentionSpec, inputs: dict[str, ir.Value], name: str) -> None:
    expected = {"query", "key", "value"}
    expected |= {"mask"} if spec.mask else set()
    expected |= {"past_key", "past_value"} if spec.cache else set()
    expected |= {"lengths"} if spec.lengths else set()
    expected |= {"key_scale", "value_scale"} if spec.int8 else set()
    if set(inputs) != expected:
        problem = f"inputs {sorted(inputs)} do not fit the spec, which needs {sorted(expected)}"
        raise PassContractError(problem, where=name)


def _describe_outputs(node: ir.Node, inputs: dict[str, ir.Value]) -> None:
    query, value = inputs["query"], inputs["value"]
    names = (node.name, f"{node.name}_present_key", f"{node.name}_present_value")
    for output, name in zip(node.outputs, names, strict=False):
        output.name = name
        if query.dtype is not None:
            output.dtype = query.dtype
    if query.shape is not None and value.shape is not None and len(query.shape) == 4:
        node.outputs[0].shape = ir.Shape([*query.shape[:3], value.shape[-1]])
    for output, past in zip(node.outputs[1:], ("past_key", "past_value"), strict=False):
        output.type = inputs[past].type
        shape = inputs[past].shape
        if shape is not None:
            grown = shape[2] if "static" in node.overload else None
            output.shape = ir.Shape([shape[0], shape[1], grown, shape[3]])


def flash_attention_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every canonical attention node, in order; also those in branches."""
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) == (DOMAIN, NAME):
            yield node


def read_spec(node: ir.Node) -> AttentionSpec:
    """The spec of a canonical attention node."""
    parts = set(node.overload.split("_"))
    attributes = node.attributes
    return AttentionSpec(
        scale=attributes["scale"].as_float(),
        causal=bool(attributes["causal"].as_int()),
        window=attributes["window"].as_int(),
        softcap=attributes["softcap"].as_float(),
        mask=next((kind for kind in ("bool", "bias") if kind in parts), ""),
        cache=next((kind for kind in ("concat", "static") if kind in parts), ""),
        lengths="lengths" in parts,
        int8="int8" in parts,
    )


def remove_unused_overloads(model: ir.Model) -> None:
    """Drop the function overloads that no node calls any more."""
    used = {node.op_identifier() for node in flash_attention_nodes(model)}
    for key in [k for k in model.functions if k[:2] == (DOMAIN, NAME) and k not in used]:
        del model.functions[key]


def _function(spec: AttentionSpec) -> ir.Function:
    """Build the body for one overload, as ONNX text."""
    needs_lengths = spec.causal or bool(spec.window) or spec.lengths or spec.cache == "static"
    body: list[str] = []
    key, value = "key", "value"
    if needs_lengths or spec.cache:
        body += _lengths_lines(spec)
    if spec.cache:
        body += cache_lines(spec.cache, int8=spec.int8)
        key, value = ("read_key", "read_value") if spec.int8 else ("present_key", "present_value")
    mask = {"": "", "bool": "mask", "bias": "mask"}[spec.mask]
    if spec.window:
        body += _window_lines(spec, key)
        mask = "visible"
    arguments = ["query", key, value, mask, "", "", "valid"]
    if not needs_lengths:
        arguments = arguments[:4] if mask else arguments[:3]
    call = "Attention<is_causal: int = @causal, scale: float = @scale, softcap: float = @softcap, "
    body.append(f"output = {call}softmax_precision = 1>({', '.join(arguments)})")
    outputs = "output, present_key, present_value" if spec.cache else "output"
    overload = f', overload: "{spec.overload}"' if spec.overload else ""
    lines = "\n".join(f"  {line}" for line in body)
    text = f"""<ir_version: 11, opset_import: ["": {_OPSET}, "{DOMAIN}": 1]>
main (float x) => (float y) {{ y = Identity(x) }}
<domain: "{DOMAIN}"{overload}, opset_import: ["": {_OPSET}]>
{NAME} <causal: int = 0, scale: float = 1.0, softcap: float = 0.0, window: int = 0>
({", ".join(INPUTS)}) => ({outputs}) {{
{lines}
}}"""
    return ir.from_onnx_text(text).functions[DOMAIN, NAME, spec.overload]


def _lengths_lines(spec: AttentionSpec) -> list[str]:
    """`new` = S' (keys that came with this call), `valid` [B] = keys per row, new ones included."""
    lines = ["new = Shape<start = 2, end = 3>(key)"]
    if spec.lengths:
        return [*lines, "valid = Identity(lengths)"]
    lines.append("batch = Shape<start = 0, end = 1>(query)")
    if not spec.cache:
        return [*lines, "valid = Expand(new, batch)"]
    return [
        *lines,
        "past_count = Shape<start = 2, end = 3>(past_key)",
        "total = Add(past_count, new)",
        "valid = Expand(total, batch)",
    ]


def _window_lines(spec: AttentionSpec, key: str) -> list[str]:
    """`visible`: the window as a mask [B,1,S,T], joined with the mask that came in."""
    lines = [
        "zero = Constant<value_int = 0>()",
        "one = Constant<value_int = 1>()",
        "rows_1d = Shape<start = 2, end = 3>(query)",
        "rows = Squeeze(rows_1d)",
        f"columns_1d = Shape<start = 2, end = 3>({key})",
        "columns = Squeeze(columns_1d)",
        "i = Range(zero, rows, one)",
        "j = Range(zero, columns, one)",
        "axes_i = Constant<value_ints = [0, 1, 3]>()",
        "i4 = Unsqueeze(i, axes_i)",
        "axes_b = Constant<value_ints = [1, 2, 3]>()",
        "valid4 = Unsqueeze(valid, axes_b)",
        "width = Constant<value_int: int = @window>()",
        "last = Add(i4, valid4)",
        "behind = Add(rows, width)",
        "first = Sub(last, behind)",
        "inside = Greater(j, first)",
    ]
    if not spec.mask:
        return [*lines, "visible = Identity(inside)"]
    if spec.mask == "bool":
        return [*lines, "visible = And(inside, mask)"]
    return [
        *lines,
        "minus = Constant<value_float = -inf>()",
        "hidden = CastLike(minus, mask)",
        "visible = Where(inside, mask, hidden)",
    ]
