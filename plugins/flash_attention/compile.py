"""Compile the kernels ahead of time, on any machine: PTX to embed, and what it costs.

Triton needs no GPU and no driver to compile for a given one. The assembler that comes with Triton
says how many registers and how much shared memory the result takes.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from optc.core.errors import PassContractError, UnsupportedError
from optc.plugins.flash_attention.decode import combine_kernel, split_kernel
from optc.plugins.flash_attention.op import Site, padded
from optc.plugins.flash_attention.prefill import prefill_kernel
from optc.plugins.flash_attention.tiles import Tile

__all__ = ["ARCHITECTURES", "FORMS", "Compiled", "Resources", "compile_kernel", "resources"]

ARCHITECTURES: Final = (80, 86, 89, 90, 100, 120)
FORMS: Final = {"prefill": prefill_kernel, "split": split_kernel, "combine": combine_kernel}

_MASK_TYPES: Final = {"bool": "*i1", "bias": ""}
_PARAMETER: Final = re.compile(r",?\s*\.param [^,)]*?(\w+_param_(\d+))(?:\[\d+\])?(?=\s*[,)])")


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


@dataclasses.dataclass(frozen=True)
class Resources:
    """What one thread, or one block, takes.

    Attributes:
        registers: Of a thread.
        spilled: Bytes of registers that went to memory, of a thread.
        shared: Shared memory of a block, in bytes.
    """

    registers: int
    spilled: int
    shared: int


def compile_kernel(
    form: str, site: Site, tile: Tile, sm: int, *, splits: int = 1, lengths: str = "i64"
) -> Compiled:
    """Compile one of `FORMS`.

    Args:
        form: `prefill`, `split` or `combine`.
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
    kernel: Any = FORMS[form]
    constants = _constants(site, tile, splits)
    types = _types(form, site, lengths)
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    values = {name: constants.get(name) for name in names if name not in types}
    aligned = {
        (at,): [["tt.divisibility", 16]] for at, n in enumerate(names) if "*" in signature[n]
    }
    built = triton.compile(
        ASTSource(kernel, signature, {(names.index(n),): v for n, v in values.items()}, aligned),
        target=GPUTarget("cuda", sm, 32),
        options=tile.options(),
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
    head, brace, body = ptx.partition("{")
    for whole, name, number in [m.group(0, 1, 2) for m in _PARAMETER.finditer(head)]:
        if int(number) < arguments:
            continue
        if name in body:
            raise PassContractError(f"the kernel reads the scratch pointer {name}", where="PTX")
        head = head.replace(whole, "")
    return head + brace + body


def resources(compiled: Compiled) -> Resources:
    """Ask the disassembler what a kernel takes."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|SHARED):(\d+)", text))
    shared = int(found["SHARED"]) + compiled.shared
    return Resources(int(found["REG"]), int(found["STACK"]), shared)
