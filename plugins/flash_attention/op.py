"""What `optc::FlashAttention` is to a plugin: inputs, output, attributes, types, limits.

Declared once; the kernels, the launcher, the compiler and the TensorRT plugins all read it here.
The op is that of `optc.ir.flash_attention` with two differences. The cache update is not part of
it: a target writes new keys into the cache first, and the kernel reads `[B,Hkv,T,D]` with a length
per row. And lengths are always given: a site without them gets `T` for every row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from optc.ir.flash_attention import DOMAIN, AttentionSpec

__all__ = [
    "ATTRIBUTES",
    "DOMAIN",
    "DTYPES",
    "INPUTS",
    "FORMS",
    "LARGEST_HEAD",
    "MASKS",
    "Site",
    "grid",
    "output_shape",
    "padded",
    "partial_shape",
    "plugin_name",
    "weight_shape",
]

# query [B,Hq,S,D], key [B,Hkv,T,D], value [B,Hkv,T,Dv], lengths [B]; then the mask, where there is
# one: [B|1,Hq|1,S,T], boolean or additive.
FORMS: Final = ("prefill", "split", "combine")
INPUTS: Final = ("query", "key", "value", "lengths")
MASKS: Final = ("", "bool", "bias")
ATTRIBUTES: Final[dict[str, type]] = {
    "scale": float,
    "causal": int,
    "window": int,
    "softcap": float,
}

# By the names that Triton has for them; float32 is for checking numbers, its kernels are not tuned.
DTYPES: Final = ("fp16", "bf16", "fp32")
LARGEST_HEAD: Final = 256

_Size = TypeVar("_Size", bound=Any)


@dataclasses.dataclass(frozen=True)
class Site:
    """One place where the op stands, as far as its kernel is compiled for it.

    Attributes:
        spec: Attributes and parts.
        heads: Hq.
        kv_heads: Hkv.
        dim: D.
        value_dim: Dv.
        dtype: Element type of query, key, value and output, one of `DTYPES`.
        mask_batch: Whether the mask differs along the batch.
        mask_heads: Whether the mask differs from head to head.
    """

    spec: AttentionSpec
    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    dtype: str
    mask_batch: bool = False
    mask_heads: bool = False

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def head_size(self) -> int:
        """The larger of D and Dv, rounded up to a power of two: what tiles are chosen for."""
        return max(padded(self.dim), padded(self.value_dim))

    def refusal(self) -> str | None:
        """Why the kernel does not take this site, as a sentence without its full stop; or None."""
        if self.dtype not in DTYPES:
            return f"the kernel computes in {', '.join(DTYPES)}, and this site is {self.dtype}"
        if self.heads % self.kv_heads:
            return f"{self.heads} query heads cannot share {self.kv_heads} key heads evenly"
        largest = max(self.dim, self.value_dim)
        if largest > LARGEST_HEAD:
            return f"the kernel takes heads of at most {LARGEST_HEAD}, and these have {largest}"
        if self.spec.cache:
            return "the kernel reads keys that are in place, and this site still updates its cache"
        return None

    def constants(self) -> dict[str, object]:
        """The kernels' compile-time constants that follow from the site alone."""
        return {
            "SCALE": self.spec.scale,
            "SOFTCAP": self.spec.softcap,
            "CAUSAL": self.spec.causal,
            "WINDOW": self.spec.window,
            "MASK": self.spec.mask,
            "MASK_BATCH": self.mask_batch,
            "MASK_HEADS": self.mask_heads,
            "HEADS": self.heads,
            "KV_HEADS": self.kv_heads,
            "DIM": self.dim,
            "VALUE_DIM": self.value_dim,
            "BLOCK_D": padded(self.dim),
            "BLOCK_V": padded(self.value_dim),
            # Half-precision products are exact in float32; float32 is not to become TF32.
            "PRECISION": "ieee",
        }


def padded(size: int) -> int:
    """`size` rounded up to a power of two, at least 16: what a tile's axis must be."""
    return max(16, 1 << (size - 1).bit_length())


def output_shape(query: Sequence[_Size], value: Sequence[_Size]) -> tuple[_Size, ...]:
    """[B,Hq,S,Dv]; sizes may be numbers or whatever a runtime computes shapes with."""
    return (query[0], query[1], query[2], value[3])


def partial_shape(
    query: Sequence[_Size], value: Sequence[_Size], splits: _Size
) -> tuple[_Size, ...]:
    """[B,Hq,S,splits,Dv]: what each split of the keys alone gives, in float32."""
    return (query[0], query[1], query[2], splits, value[3])


def weight_shape(query: Sequence[_Size], splits: _Size) -> tuple[_Size, ...]:
    """[B,Hq,S,splits]: base-2 log-sum-exp of each split's scores, in float32."""
    return (query[0], query[1], query[2], splits)


def grid(
    form: str,
    site: Site,
    block_m: int,
    sizes: tuple[_Size, _Size],
    splits: int,
    cdiv: Callable[[_Size, int], _Size],
) -> tuple[_Size | int, ...]:
    """Programs to launch, along three axes.

    Args:
        form: One of `FORMS`.
        site: What is computed.
        block_m: Query rows of a tile.
        sizes: B and S, numbers or whatever a runtime computes shapes with.
        splits: Number of splits of the keys.
        cdiv: Division that rounds up, of such sizes.
    """
    batch, rows = sizes
    if form == "prefill":
        return (cdiv(rows, block_m), site.heads, batch)
    if form == "split":
        return (cdiv(rows * site.group, block_m) * splits, site.kv_heads, batch)
    return (batch * rows * site.heads, 1, 1)


def plugin_name(form: str, mask: str = "") -> str:
    """Name of the plugin op, in the domain `DOMAIN`, of one kernel and one kind of mask.

    A plugin has a fixed number of inputs, so each kind of mask is an op of its own.
    """
    return f"FlashAttention{form.capitalize()}{mask.capitalize()}"
