"""What the FlashAttention kernels take on each NVIDIA architecture: registers, spills, memory.

    python benchmarks/flash_attention_compile.py [--sm 80,90] [--dims 64,128] [--dtypes fp16,bf16]

Compiles for each without a GPU and prints a table. `spills in loops` counts the instructions that
move spilled registers inside loops; a spill outside of them costs a few cycles once per program.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

from optc.ir.flash_attention import AttentionSpec
from optc.plugins.flash_attention.compile import ARCHITECTURES, compile_kernel
from optc.plugins.flash_attention.op import FORMS, Site
from optc.plugins.flash_attention.resources import Resources, resources
from optc.plugins.flash_attention.tiles import SHARED_LIMITS, Tile, tiles_for

VARIANTS = {
    "": {},
    "window": {"window": 1024},
    "softcap": {"softcap": 50.0},
    "bool": {"mask": "bool"},
    "bias": {"mask": "bias"},
}
HEADER = (
    "kernel",
    "sm",
    "dtype",
    "D",
    "tile",
    "warps",
    "stages",
    "registers",
    "stack bytes",
    "spills in loops",
    "shared KB",
    "fits",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One compiled kernel and what it takes."""

    form: str
    variant: str
    sm: int
    dtype: str
    dim: int
    tile: Tile
    taken: Resources

    @property
    def fits(self) -> bool:
        """Whether nothing is spilled in loops and the shared memory is there."""
        return not self.taken.loop_spills and self.taken.shared <= SHARED_LIMITS[self.sm]


def site(variant: str, dtype: str, dim: int) -> Site:
    """A causal site with 32 query heads and 8 key heads."""
    spec = dataclasses.replace(AttentionSpec(dim**-0.5, causal=True), **VARIANTS[variant])
    return Site(spec, 32, 8, dim, dim, dtype)


def measure(form: str, variant: str, sm: int, dtype: str, dim: int) -> Row:
    """Compile one kernel."""
    where = site(variant, dtype, dim)
    tile = tiles_for(form, where, sm)[0]
    taken = resources(compile_kernel(form, where, tile, sm, splits=16))
    return Row(form, variant, sm, dtype, dim, tile, taken)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    for form in FORMS:
        for variant in VARIANTS if form != "combine" else [""]:
            for sm in arguments.sm:
                for dtype in arguments.dtypes:
                    for dim in arguments.dims:
                        yield measure(form, variant, sm, dtype, dim)


def line(row: Row) -> str:
    tile, taken = row.tile, row.taken
    cells = [
        f"{row.form} {row.variant}".strip(),
        row.sm,
        row.dtype,
        row.dim,
        "" if row.form == "combine" else f"{tile.block_m}x{tile.block_n}",
        tile.warps,
        tile.stages,
        taken.registers,
        taken.stack,
        taken.loop_spills,
        f"{taken.shared / 1024:.0f} of {SHARED_LIMITS[row.sm] // 1024}",
        "yes" if row.fits else "no",
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sm", type=numbers, default=list(ARCHITECTURES))
    parser.add_argument("--dims", type=numbers, default=[64, 128])
    parser.add_argument("--dtypes", type=lambda text: text.split(","), default=["fp16", "bf16"])
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    for row in rows(parser.parse_args()):
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
