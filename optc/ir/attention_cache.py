"""How the body of `optc::FlashAttention` updates a cache and reads it, as ONNX text.

In: `valid` and `new`, and the inputs of the op. Out: `present_key` and `present_value`; of an int8
cache also `read_key` and `read_value`, what its integers stand for.

Sources: ONNX operators TensorScatter-24, QuantizeLinear-23.
"""

from __future__ import annotations

__all__ = ["cache_lines"]

_PARTS = ("key", "value")


def cache_lines(layout: str, *, int8: bool) -> list[str]:
    """Write the new keys and values of row b at `valid[b] - new`.

    Args:
        layout: `concat` or `static`.
        int8: Whether the cache holds integers, with a float32 scale for each head.
    """
    store = "store_" if int8 else ""
    lines = [*(_store_lines() if int8 else []), "at = Sub(valid, new)"]
    if layout == "static":
        lines += [
            f"present_{part} = TensorScatter<axis = 2>(past_{part}, {store}{part}, at)"
            for part in _PARTS
        ]
    else:
        lines += _growing_lines(store)
    return lines + (_read_lines() if int8 else [])


def _growing_lines(store: str) -> list[str]:
    lines = [
        "none = Constant<value_ints = [0]>()",
        "tokens = Constant<value_ints = [2]>()",
        "most = ReduceMax<keepdims = 1>(valid)",
        "held = Shape<start = 2, end = 3>(past_key)",
        "lacking = Sub(most, held)",
        "missing = Max(lacking, none)",
        "spare = Sub(new, missing)",
    ]
    for part in _PARTS:
        lines += [
            f"{part}_more = Slice({store}{part}, spare, new, tokens)",
            f"{part}_room = Concat<axis = 2>(past_{part}, {part}_more)",
            f"present_{part} = TensorScatter<axis = 2>({part}_room, {store}{part}, at)",
        ]
    return lines


def _store_lines() -> list[str]:
    """`store_key`, `store_value`: the new ones as integers."""
    lines = []
    for part in _PARTS:
        lines += [
            f"{part}_wide = Cast<to = 1>({part})",
            f"store_{part} = QuantizeLinear<axis = 1, output_dtype = 3>({part}_wide, {part}_scale)",
        ]
    return lines


def _read_lines() -> list[str]:
    lines = []
    for part in _PARTS:
        lines += [
            f"{part}_meant = DequantizeLinear<axis = 1>(present_{part}, {part}_scale)",
            f"read_{part} = CastLike({part}_meant, query)",
        ]
    return lines
