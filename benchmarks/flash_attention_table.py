"""The arithmetic and the tables of `flash_attention_gpu.py`; needs no GPU."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from page import replace_section

TITLE = "## FlashAttention on NVIDIA GPUs"
UNITS = {"prefill": ("TFLOP/s", 1e9), "decode": ("GB/s", 1e6)}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of one call: B, Hq, Hkv, S, T, D."""

    batch: int
    heads: int
    kv_heads: int
    rows: int
    keys: int
    dim: int


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One contender on one shape.

    Attributes:
        form: `prefill` or `decode`.
        shape: Sizes.
        name: The contender.
        milliseconds: Median.
        rate: Floating-point operations, or bytes, per millisecond.
        ceiling: The same of the machine's own limit.
    """

    form: str
    shape: Shape
    name: str
    milliseconds: float
    rate: float
    ceiling: float


def prefill_flops(shape: Shape) -> float:
    """Floating-point operations of causal attention: two products, for each visible pair.

    Query i of S sees i + 1 + T - S keys.
    """
    visible = shape.rows * (shape.keys - shape.rows) + shape.rows * (shape.rows + 1) / 2
    return 4.0 * shape.batch * shape.heads * shape.dim * visible


def decode_bytes(shape: Shape, itemsize: int) -> float:
    """Bytes that must be moved: keys and values once, queries and outputs."""
    cache = 2 * shape.batch * shape.kv_heads * shape.keys * shape.dim
    ends = 2 * shape.batch * shape.heads * shape.rows * shape.dim
    return float(itemsize * (cache + ends))


def table(found: Sequence[Measurement]) -> str:
    """Markdown; `of PyTorch` compares with the fastest of its backends on the same shape."""
    lines = [
        "| | B | S | T | ms | rate | of the limit | of PyTorch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        same = [m for m in found if (m.form, m.shape) == (one.form, one.shape)]
        peers = [m.rate for m in same if m.name.startswith("PyTorch")]
        unit, scale = UNITS[one.form]
        cells = [
            one.name,
            str(one.shape.batch),
            str(one.shape.rows),
            str(one.shape.keys),
            f"{one.milliseconds:.3f}",
            f"{one.rate / scale:.0f} {unit}",
            f"{one.rate / one.ceiling:.0%}",
            f"{one.rate / max(peers):.2f}x" if peers else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def section(page: str, machine: str, dtype: str, measured: str) -> str:
    """The page with its section on this benchmark replaced."""
    today = datetime.date.today().isoformat()
    body = (
        f"{machine}, {dtype}, {today}, by `benchmarks/flash_attention_gpu.py --write`. 32 query "
        "heads, 8 key heads, head size 128. `of the limit`: of a matrix product of 8192 cubed "
        "for prefill, of a copy of 1 GiB for decoding, measured in the same run.\n\n"
        f"{measured}"
    )
    return replace_section(page, TITLE, body)
