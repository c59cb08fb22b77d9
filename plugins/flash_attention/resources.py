"""What a compiled kernel takes: registers, spilled registers, shared memory.

Read from the assembled kernel with NVIDIA's disassemblers, which come with Triton.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import triton

from optc.plugins.flash_attention.compile import Compiled

__all__ = ["Resources", "resources"]

_LABEL: Final = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION: Final = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(.*?);")
_BRANCH: Final = re.compile(r"\bBRA\b.*?(\.L_x_\d+)")
_LOCAL_MEMORY: Final = re.compile(r"\b(?:LDL|STL)\b")
_TENSOR_CORE: Final = re.compile(r"\b(?:HMMA|HGMMA|UTCHMMA)\b")


@dataclasses.dataclass(frozen=True)
class Resources:
    """What one thread, or one block, takes.

    Attributes:
        registers: Of a thread.
        stack: Bytes of a thread's registers that went to memory.
        loop_spills: Instructions inside loops that move such registers; the rest happen once.
        matrix: Tensor-core instructions inside loops.
        shared: Shared memory of a block, in bytes.
    """

    registers: int
    stack: int
    loop_spills: int
    matrix: int
    shared: int


def resources(compiled: Compiled) -> Resources:
    """Disassemble a kernel and count."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        loops = _in_loops(_tool("nvdisasm", "-c", file.name).splitlines())
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", usage))
    return Resources(
        registers=int(found["REG"]),
        stack=int(found["STACK"]),
        loop_spills=sum(bool(_LOCAL_MEMORY.search(line)) for line in loops),
        matrix=sum(bool(_TENSOR_CORE.search(line)) for line in loops),
        # All shared memory of these kernels is dynamic.
        shared=compiled.shared,
    )


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _in_loops(listing: list[str]) -> list[str]:
    """Instructions between the target of a backward branch and the branch."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    inside: set[int] = set()
    for line in listing:
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        if not (instruction := _INSTRUCTION.match(line)):
            continue
        branch = _BRANCH.search(instruction[1])
        at = len(instructions)
        # A branch to itself is the trap that pads the end of a kernel.
        if branch and labels.get(branch[1], at) < at:
            inside.update(range(labels[branch[1]], at + 1))
        instructions.append(instruction[1])
    return [instructions[at] for at in sorted(inside)]
