"""Tile sizes, warps and pipeline stages, by chip and head size.

Chosen by reading what the compiler makes of them (`benchmarks/flash_attention_compile.py`): no
spilled registers, shared memory within the chip, and as large a tile as that allows. A tile of
queries is read once and reused for every tile of keys, so larger is better until registers run out.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from optc.core.errors import UnsupportedError
from optc.plugins.flash_attention.op import Site, padded

__all__ = ["COMBINE", "SHARED_DEFAULT", "SHARED_LIMITS", "Tile", "split_count", "tiles_for"]

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


# The combining kernel has no tile, only warps.
COMBINE: Final = Tile(16, 16, 4, 1)

# Best first. For plain, causal or capped scores; a window adds a third loop, and a mask needs
# addresses and values of its own in registers, so they get smaller tiles. Three stages, not two,
# wherever there is memory: with two, a tile is asked for at the end of one round and waited for at
# the beginning of the next, and its way from memory is not hidden.
_PREFILL: Final[dict[int, dict[int, tuple[Tile, ...]]]] = {
    80: {
        32: (Tile(128, 64, 4, 3), Tile(128, 64, 8, 3)),
        64: (Tile(128, 64, 4, 3), Tile(128, 64, 8, 3)),
        128: (Tile(128, 32, 8, 3), Tile(128, 64, 8, 3), Tile(64, 32, 4, 3)),
        256: (Tile(64, 32, 8, 3), Tile(64, 16, 8, 3)),
    },
    86: {
        32: (Tile(128, 64, 4, 3), Tile(128, 64, 8, 3)),
        64: (Tile(128, 64, 4, 3), Tile(128, 64, 8, 3)),
        128: (Tile(128, 32, 8, 3), Tile(64, 32, 4, 3)),
        256: (Tile(64, 16, 8, 3), Tile(64, 32, 8, 2)),
    },
    90: {
        32: (Tile(128, 64, 8, 3), Tile(128, 128, 8, 3)),
        64: (Tile(128, 64, 8, 3), Tile(128, 128, 8, 3)),
        128: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
        256: (Tile(128, 32, 8, 3), Tile(128, 64, 8, 2)),
    },
    100: {
        32: (Tile(128, 64, 8, 3),),
        64: (Tile(128, 64, 8, 3), Tile(128, 128, 8, 3)),
        128: (Tile(128, 64, 8, 3), Tile(128, 128, 8, 2)),
        256: (Tile(128, 32, 8, 3),),
    },
    120: {
        32: (Tile(128, 64, 8, 3),),
        64: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
        128: (Tile(128, 64, 8, 3), Tile(128, 32, 8, 3)),
        256: (Tile(64, 16, 8, 3), Tile(64, 32, 8, 2)),
    },
}
_WINDOW: Final = {
    80: {64: (Tile(128, 64, 8, 3),)},
    86: {64: (Tile(128, 64, 8, 3),)},
    90: {128: (Tile(128, 64, 8, 3),)},
    120: {128: (Tile(128, 32, 8, 3),)},
}
_SAME_AS: Final = {89: 86}
_MASKED: Final = (Tile(64, 32, 8, 3),)
_MASKED_WIDE: Final = (Tile(128, 32, 8, 3),)
_MASKED_LARGE: Final = (Tile(64, 32, 8, 2),)


def tiles_for(form: str, site: Site, sm: int, rows: int = 1) -> tuple[Tile, ...]:
    """Tiles to try for a kernel, the one expected to be fastest first.

    The last one always fits what a block gets without asking the driver for more.

    Args:
        form: One of `op.FORMS`.
        site: What to compute.
        sm: Compute capability, such as 90; one that is not known here gets the tiles of the next
            lower one.
        rows: S, as far as `split` is concerned.

    Raises:
        UnsupportedError: The kernel does not take this site, or the chip is too old.
    """
    if reason := site.refusal():
        raise UnsupportedError(reason, remedy="let the function body compute it")
    known = [known for known in SHARED_LIMITS if known <= sm]
    if not known:
        problem = f"the kernels need compute capability 8.0, and this chip has {sm / 10}"
        raise UnsupportedError(problem, remedy="let the function body compute it")
    sm = max(known)
    if form == "combine":
        return (COMBINE,)
    small = Tile(64, 32, 4, 2) if site.head_size <= 128 else Tile(32, 16, 4, 2)
    if form == "prefill":
        best = _prefill_tiles(site, sm)
    else:
        best = (_decode_tile(site, sm, rows),)
        small = dataclasses.replace(small, block_m=min(best[0].block_m, 32), block_n=16)
    return best if small in best else (*best, small)


def _prefill_tiles(site: Site, sm: int) -> tuple[Tile, ...]:
    if site.spec.mask and site.head_size > 128:
        return _MASKED_LARGE
    if site.spec.mask:
        return _MASKED_WIDE if sm == 90 else _MASKED
    known, size = _SAME_AS.get(sm, sm), max(32, site.head_size)
    if site.spec.window:
        return _WINDOW.get(known, {}).get(size, _PREFILL[known][size])
    return _PREFILL[known][size]


def _decode_tile(site: Site, sm: int, rows: int) -> Tile:
    """Two programs at least are to fit a multiprocessor: while one waits, the other works."""
    block_m = min(64, padded(rows * site.group))
    roomy = SHARED_LIMITS[sm] > 128 * 1024
    if site.head_size == 256:
        return Tile(min(block_m, 32), 32 if roomy else 16, 4, 3)
    if site.head_size == 128:
        return Tile(block_m, 64 if roomy else 32, 4, 3)
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
