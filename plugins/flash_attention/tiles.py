"""Tile sizes, warps and pipeline stages, by chip and head size.

Chosen by reading what the compiler makes of them (`benchmarks/flash_attention_compile.py`): no
spilled registers, shared memory within the chip, and as large a tile as that allows. A tile of
queries is read once and reused for every tile of keys, so larger is better until registers run out.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from optc.plugins.flash_attention.op import padded

__all__ = ["SHARED_LIMITS", "Tile", "decode_tile", "prefill_tiles", "split_count"]

# Largest shared memory of one block in bytes (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMITS: Final = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}
# What a block gets without asking the driver for more.
SHARED_DEFAULT: Final = 48 * 1024


@dataclasses.dataclass(frozen=True)
class Tile:
    """How one program works.

    Attributes:
        block_m: Query rows of a tile.
        block_n: Keys of a tile.
        warps: Warps of a program.
        stages: Tiles of keys in flight.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int

    def constants(self) -> dict[str, object]:
        """The kernels' compile-time constants."""
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n}

    def options(self) -> dict[str, object]:
        """Options of the compiler and the launch."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
