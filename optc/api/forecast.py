"""What a build will need, told before it starts: memory, and disk by folder.

A build reads and writes weights a few megabytes at a time, whatever their size; what takes memory
is running graphs, for evidence and for calibration. The numbers are estimates from above, from
builds that were measured (`docs/scale.md`): for a refusal that is right, not for a bill.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx_ir as ir

from optc.core.base import Pass
from optc.core.context import Log
from optc.core.errors import NotEnoughDiskError, NotEnoughMemoryError
from optc.core.machine import free_memory_bytes
from optc.ir.cache_memory import gigabytes
from optc.parity.hook import weight_bytes

__all__ = ["Forecast", "Machine", "check_forecast", "make_forecast"]

# What a build without evidence takes, measured from 0.5 to 3 billion weights (0.3 GiB), and more.
_STREAMING = 768 << 20
# ONNX Runtime packs weights for its kernels, and widens those of 16 bits to 32 on the CPU: opening
# half a billion of them took 1.14 and 2.4 times their size. The rest is for what flows.
_RUNNING = 1.5
_RUNNING_HALF = 3.0
# Files of a bundle beside the weights: graph, report, samples.
_BESIDE = 64 << 20
_HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a build is expected to need at its peak, in bytes.

    Attributes:
        memory: Of this process.
        frugal: The same where no graph is run.
        disk: By folder: the bundle's, the one for temporary files, the one for graphs to keep.
        way_out: What to say on the command line so that no graph is run; empty where none is.
    """

    memory: int
    frugal: int
    disk: dict[Path, int]
    way_out: str = ""


class Machine:
    """What this machine has left; another one in tests."""

    def memory(self) -> int | None:
        """Bytes of memory that are free, or would be if asked for; None if nobody says."""
        return free_memory_bytes()

    def disk(self, folder: Path) -> tuple[int, int]:
        """The disk that `folder` is or will be on, as a number, and its free bytes."""
        folder = folder.absolute()
        while not folder.exists():
            folder = folder.parent
        return os.stat(folder).st_dev, shutil.disk_usage(folder).free  # noqa: PTH116


def make_forecast(
    model: ir.Model,
    chains: Sequence[Sequence[Pass]],
    bundle: Path,
    dump_dir: Path | None = None,
    *,
    way_out: str,
) -> Forecast:
    """Tell what a build will need.

    Passes that measure open a graph that holds some weights twice, as they were and quantised, and
    may put what they solved for aside on disk, for each engine, until the bundle is written.

    Args:
        model: As it was read.
        chains: For each engine of the bundle its passes, in the order they will run.
        bundle: The bundle's folder.
        dump_dir: Folder for the graph after each pass.
        way_out: What to say on the command line so that no graph is run, for evidence or to
            calibrate; empty where none is.
    """
    sizes = [_sizes(model, passes) for passes in chains]
    memory = frugal = _STREAMING + 2 * _held(model)
    disk = {bundle.absolute().parent: sum(max(made[-1], 0) for made in sizes) + _BESIDE}
    if way_out:
        asides = [p.aside(model) for passes in chains for p in passes]
        trial = max((aside.trial for aside in asides), default=0)
        memory += round(_running(model, weight_bytes(model))) + trial
        kept = sum(aside.kept for aside in asides)
        _add(disk, Path(tempfile.gettempdir()), max(map(max, sizes)) + trial + kept)
    if dump_dir is not None:
        _add(disk, dump_dir, sum(map(sum, sizes)))
    return Forecast(memory, frugal, disk, way_out)


def _sizes(model: ir.Model, passes: Iterable[Pass]) -> list[int]:
    """Bytes of all weights at first and after each pass."""
    sizes = [weight_bytes(model)]
    for p in passes:
        sizes.append(p.footprint(model, sizes[-1]))
    return sizes


def _add(disk: dict[Path, int], folder: Path, count: int) -> None:
    folder = folder.absolute()
    disk[folder] = disk.get(folder, 0) + count


def _held(model: ir.Model) -> int:
    """Bytes of weights that are not in a file of their own: they are in memory from the start."""
    tensors = (v.const_value for g in model.graphs() for v in g.initializers.values())
    return sum(
        t.nbytes
        for t in tensors
        if t is not None and isinstance(t, ir.Tensor | ir.TensorProtoTensor)
    )


def _running(model: ir.Model, weights: int) -> float:
    tensors = (v.const_value for v in model.graph.initializers.values())
    half = sum(t.nbytes for t in tensors if t is not None and t.dtype in _HALF)
    return _RUNNING * (weights - half) + _RUNNING_HALF * half


def check_forecast(
    forecast: Forecast, *, force: bool = False, log: Log, machine: Machine | None = None
) -> None:
    """Refuse a build that will not fit.

    Args:
        forecast: What it needs.
        force: Say so and go on.
        log: Told what was let through.
        machine: What there is; this machine by default.

    Raises:
        NotEnoughMemoryError: There is less memory free.
        NotEnoughDiskError: There is less disk free where something will be written.
    """
    machine = machine or Machine()
    for error in (_memory_problem(forecast, machine), _disk_problem(forecast, machine)):
        if error is None:
            continue
        if not force:
            raise error
        log(f"note: {error.problem}; going on, since --force was given")


def _memory_problem(forecast: Forecast, machine: Machine) -> NotEnoughMemoryError | None:
    free = machine.memory()
    if free is None or forecast.memory <= free:
        return None
    needs = gigabytes(forecast.memory)
    problem = f"the build needs about {needs} of memory, {gigabytes(free)} are free"
    remedy = "end other programs, or give --force to try all the same"
    if forecast.way_out:
        frugal = gigabytes(forecast.frugal)
        remedy = f"{forecast.way_out}: no graph is run then, and it takes about {frugal}; "
        remedy += "or give --force"
    return NotEnoughMemoryError(problem, remedy=remedy)


def _disk_problem(forecast: Forecast, machine: Machine) -> NotEnoughDiskError | None:
    needed: dict[int, tuple[int, int, list[Path]]] = {}
    for folder, count in forecast.disk.items():
        disk, free = machine.disk(folder)
        before, _, folders = needed.get(disk, (0, 0, []))
        needed[disk] = before + count, free, [*folders, folder]
    temporary = Path(tempfile.gettempdir()).absolute()
    for count, free, folders in needed.values():
        if count <= free:
            continue
        where = " and ".join(str(folder) for folder in folders)
        problem = f"the build writes about {gigabytes(count)}, {gigabytes(free)} are free there"
        remedy = "write to another disk with --output, or give --force to try all the same"
        if temporary in folders:
            remedy = (
                f"point TMPDIR to another disk; or {forecast.way_out}: no temporary files are "
                "written then; or give --force"
            )
        return NotEnoughDiskError(problem, where=where, remedy=remedy)
    return None
