"""Compile the kernels ahead of time, on any machine.

Triton needs no GPU and no driver to compile for a given one. The PTX is for embedding in an engine,
`optc.plugins.flash_attention.resources` reads from the assembled form what it costs.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from optc.core.errors import PassContractError, UnsupportedError
from optc.plugins.flash_attention.decode import combine_kernel, split_kernel
from optc.plugins.flash_attention.op import Site, padded
from optc.plugins.flash_attention.prefill import prefill_kernel
from optc.plugins.flash_attention.tiles import Tile

__all__ = ["ARCHITECTURES", "Compiled", "compile_kernel"]

ARCHITECTURES: Final = (80, 86, 89, 90, 100, 120)
_KERNELS: Final = {"prefill": prefill_kernel, "split": split_kernel, "combine": combine_kernel}

# The oldest that knows all of `ARCHITECTURES` (CUDA 12.8): a driver reads no PTX newer than itself.
# What else there is may need a newer one, and gets the compiler's own.
PTX_VERSION: Final = 87

_MASK_TYPES: Final = {"bool": "*i1", "bias": ""}
_PARAMETER: Final = re.compile(r",?\s*\.param [^,)]*?(\w+_param_(\d+))(?=\s*[,)])")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture.

    Attributes:
        name: Entry point.
        ptx: Its text; the entry takes the kernel's arguments and nothing else.
        cubin: The same, assembled.
        threads: Threads of a block.
        shared: Dynamic shared memory of a block, in bytes.
    """

    name: str
    ptx: str
    cubin: bytes
    threads: int
    shared: int


def compile_kernel(
    form: str, site: Site, tile: Tile, sm: int, *, splits: int = 1, lengths: str = "i64"
) -> Compiled:
    """Compile one kernel.

    Args:
        form: One of `op.FORMS`.
        site: What to compute.
        tile: How; of no matter to `combine`, but for its warps.
        sm: Compute capability, such as 90.
        splits: Number of splits of the keys, for `split` and `combine`.
        lengths: Type of the lengths, `i32` or `i64`.

    Raises:
        UnsupportedError: The kernel does not take this site.
    """
    reason = site.refusal()
    if reason:
        raise UnsupportedError(reason, remedy="let the function body compute it")
    kernel: Any = _KERNELS[form]
    constants = _constants(site, tile, splits)
    types = _types(form, site, lengths)
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    values = {name: constants.get(name) for name in names if name not in types}
    aligned = {
        (at,): [["tt.divisibility", 16]] for at, n in enumerate(names) if "*" in signature[n]
    }
    source = ASTSource(
        kernel, signature, {(names.index(n),): v for n, v in values.items()}, aligned
    )
    version = PTX_VERSION if sm in ARCHITECTURES else None
    with triton.knobs.compilation.scope():
        # Line information holds the paths of this machine, and an engine is to be reproducible.
        triton.knobs.compilation.disable_line_info = True
        built = triton.compile(
            source,
            target=GPUTarget("cuda", sm, 32),
            options={**tile.options(), "ptx_version": version},
        )
    return Compiled(
        name=built.metadata.name,
        ptx=_without_scratch(built.asm["ptx"], len(types)),
        cubin=built.asm["cubin"],
        threads=built.metadata.num_warps * 32,
        shared=built.metadata.shared,
    )


def _constants(site: Site, tile: Tile, splits: int) -> dict[str, object]:
    return {
        **site.constants(),
        **tile.constants(),
        "SPLITS": splits,
        "BLOCK_S": padded(splits),
    }


def _types(form: str, site: Site, lengths: str) -> dict[str, str]:
    """Types of the arguments that a kernel is launched with, by name."""
    element = f"*{site.dtype}"
    partial = {"partial": "*fp32", "weight": "*fp32"}
    if form == "combine":
        return {**partial, "output": element}
    types = {"query": element, "key": element, "value": element, "lengths": f"*{lengths}"}
    if site.spec.mask:
        types["mask"] = _MASK_TYPES[site.spec.mask] or element
    types |= {"rows": "i32", "keys": "i32"}
    return types | (partial if form == "split" else {"output": element})


def _without_scratch(ptx: str, arguments: int) -> str:
    """Drop the scratch pointers that Triton appends to every kernel's parameters.

    Triton's own launcher passes them; whoever embeds the PTX knows only the declared arguments. The
    kernels here use no scratch, so the parameters are never read.

    Raises:
        PassContractError: One of them is read after all.
    """
    before, entry, rest = ptx.partition(".visible .entry ")
    head, end, body = rest.partition("\n)")
    for whole, name, number in [m.group(0, 1, 2) for m in _PARAMETER.finditer(head + end)]:
        if int(number) < arguments:
            continue
        if name in body:
            raise PassContractError(f"the kernel reads the scratch pointer {name}", where="PTX")
        head = head.replace(whole, "")
    return before + entry + head + end + body
