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


# Best first. For plain, causal or capped scores; a window adds a third loop, and a mask needs
# addresses and values of its own in registers, so they get smaller tiles.
_PREFILL: Final[dict[int, dict[int, tuple[Tile, ...]]]] = {
    80: {
        32: (Tile(128, 64, 4, 3), Tile(128, 64, 8, 3)),
        64: (Tile(128, 64, 4, 2), Tile(128, 64, 8, 3)),
        128: (Tile(64, 64, 4, 2), Tile(128, 32, 8, 3), Tile(64, 32, 4, 2)),
        256: (Tile(64, 32, 8, 2), Tile(32, 32, 4, 2)),
    },
    86: {
        32: (Tile(128, 64, 4, 3), Tile(128, 64, 8, 3)),
        64: (Tile(128, 64, 4, 2), Tile(128, 64, 8, 3)),
        128: (Tile(128, 32, 8, 2), Tile(64, 32, 4, 2)),
        256: (Tile(64, 32, 8, 2),),
    },
    90: {
        32: (Tile(128, 64, 8, 3), Tile(128, 128, 8, 3)),
        64: (Tile(128, 64, 8, 3), Tile(128, 128, 8, 3)),
        128: (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3)),
        256: (Tile(128, 64, 8, 2), Tile(128, 32, 8, 2)),
    },
    100: {
        32: (Tile(128, 64, 8, 3),),
        64: (Tile(128, 64, 8, 3), Tile(128, 128, 8, 2)),
        128: (Tile(128, 64, 8, 3), Tile(128, 128, 8, 2)),
        256: (Tile(128, 32, 8, 2),),
    },
    120: {
        32: (Tile(128, 64, 8, 3),),
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
        128: (Tile(128, 64, 8, 2), Tile(128, 32, 8, 3)),
        256: (Tile(64, 32, 8, 2),),
    },
}
_SAME_AS: Final = {89: 86}
_MASKED: Final = (Tile(64, 32, 8, 2),)
_MASKED_WIDE: Final = (Tile(128, 32, 8, 2),)


def prefill_tiles(sm: int, head_size: int, *, masked: bool, window: bool) -> tuple[Tile, ...]:
    """Tiles to try for the prefill kernel, the one expected to be fastest first.

    Args:
        sm: Compute capability, one of `SHARED_LIMITS`.
        head_size: `Site.head_size`.
        masked: Whether the site has a mask.
        window: Whether it has a window.
    """
    if masked:
        return _MASKED_WIDE if sm == 90 and head_size <= 128 else _MASKED
    tiles = _PREFILL[_SAME_AS.get(sm, sm)][max(32, head_size)]
    return tiles[1:] if window and len(tiles) > 1 else tiles


def decode_tile(sm: int, head_size: int, packed: int) -> Tile:
    """Tile for the decode kernel.

    Args:
        sm: Compute capability, one of `SHARED_LIMITS`.
        head_size: `Site.head_size`.
        packed: Query rows that share a key head: S times the group.
    """
    block_m = min(64, padded(packed))
    roomy = SHARED_LIMITS[sm] > 128 * 1024
    if head_size >= 256:
        return Tile(min(block_m, 32), 32, 4, 3 if roomy else 2)
    if head_size == 128:
        return Tile(block_m, 64, 4, 3 if roomy else 2)
    return Tile(block_m, 64, 4, 4 if roomy else 3)


def split_count(programs: int, processors: int, keys: int, tile: Tile, resident: int = 2) -> int:
    """How many programs share the keys of one row, so that all processors have work.

    Args:
        programs: Programs without splitting: batch x key heads x tiles of packed rows.
        processors: Streaming multiprocessors of the chip.
        keys: T.
        tile: The decode tile.
        resident: Programs that one multiprocessor holds at a time.
    """
    most = -(-keys // (2 * tile.block_n))
    return max(1, min(processors * resident // programs, most, 128))
