"""Run the kernels on tensors: PyTorch's, on a GPU or in Triton's interpreter.

Outputs are the caller's: nothing is allocated here, and PyTorch is not imported.
"""

from __future__ import annotations

from typing import Protocol

from optc.plugins.flash_attention.decode import combine_kernel, split_kernel
from optc.plugins.flash_attention.op import Site, grid, padded
from optc.plugins.flash_attention.prefill import prefill_kernel
from optc.plugins.flash_attention.tiles import COMBINE, Tile

__all__ = ["Tensor", "decode", "prefill"]


class Tensor(Protocol):
    """As much of a tensor as is needed here; contiguous, on the device."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""

    def data_ptr(self) -> int:
        """Address of its first element."""


def prefill(
    site: Site,
    tile: Tile,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    output: Tensor,
) -> None:
    """Many query rows.

    Args:
        site: What to compute.
        tile: How.
        tensors: query, key, value, lengths and mask (or None), as in `op.INPUTS`.
        output: [B,Hq,S,Dv], written.
    """
    query, key = tensors[0], tensors[1]
    batch, _, rows, _ = query.shape
    prefill_kernel[grid("prefill", site, tile.block_m, (batch, rows), 1, _cdiv)](
        *tensors,
        rows,
        key.shape[2],
        output,
        **site.constants(),
        **tile.constants(),
        **tile.options(),
    )


def decode(
    site: Site,
    tile: Tile,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    partial: Tensor,
    weight: Tensor,
    output: Tensor,
) -> None:
    """Few query rows, the keys split; the number of splits is that of `partial`.

    Args:
        site: What to compute.
        tile: How.
        tensors: query, key, value, lengths and mask (or None), as in `op.INPUTS`.
        partial: [B,Hq,S,splits,Dv] float32, scratch. With one split it may be `output` itself (the
            same elements in the same order), and then nothing is left to combine.
        weight: [B,Hq,S,splits] float32, scratch.
        output: [B,Hq,S,Dv], written.
    """
    query, key = tensors[0], tensors[1]
    batch, _, rows, _ = query.shape
    splits = weight.shape[3]
    split_kernel[grid("split", site, tile.block_m, (batch, rows), splits, _cdiv)](
        *tensors,
        rows,
        key.shape[2],
        partial,
        weight,
        **site.constants(),
        **tile.constants(),
        SPLITS=splits,
        **tile.options(),
    )
    if partial.data_ptr() == output.data_ptr():
        return
    combine_kernel[grid("combine", site, 1, (batch, rows), splits, _cdiv)](
        partial,
        weight,
        output,
        VALUE_DIM=site.value_dim,
        BLOCK_V=padded(site.value_dim),
        SPLITS=splits,
        BLOCK_S=padded(splits),
        **COMBINE.options(),
    )


def _cdiv(size: int, by: int) -> int:
    return -(-size // by)
