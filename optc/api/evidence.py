"""What a build is judged by, and with: the reference, calibration data, what compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from optc.api.log import stage
from optc.api.samples import calibration_of, find_reference, given_reference
from optc.core.context import Feeds, Log, Progress
from optc.core.errors import UsageError
from optc.ir.reference import NOTHING, Reference
from optc.parity.hook import CompareHook
from optc.parity.policy import Policy
from optc.parity.unmeasured import UnmeasuredHook
from optc.targets.base import Target
from optc.targets.evaluate import open_model
from optc.targets.speed import Speed, speed_notes

__all__ = ["EVIDENCE", "Data", "Wanted"]

EVIDENCE = ("full", "none")


@dataclasses.dataclass(frozen=True)
class Data:
    """What there is to run graphs on.

    Attributes:
        reference: Judged samples and the original's answers; maybe none.
        calibration: Inputs for passes that calibrate; maybe none.
    """

    reference: Reference
    calibration: tuple[Feeds, ...]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user wants to know of a build, and gives for it.

    Attributes:
        evidence: `full`, or `none`: nothing is compared, and no graph is run but to calibrate.
        reference: The file named by the user.
        calibration: The file named by the user.
    """

    evidence: str = "full"
    reference: str | Path | None = None
    calibration: str | Path | None = None

    def __post_init__(self) -> None:
        if self.evidence not in EVIDENCE:
            problem, known = f"'{self.evidence}' is no kind of evidence", ", ".join(EVIDENCE)
            raise UsageError(problem, where="--evidence", remedy=f"give one of {known}")

    @property
    def is_measured(self) -> bool:
        """Whether graphs are run before and after every pass."""
        return self.evidence == "full"

    @property
    def way_out(self) -> str:
        """What to say on the command line so that no graph is run; empty where none is.

        Passes that cannot do without calibration say so themselves.
        """
        if self.calibration is None:
            return "give --evidence none" if self.is_measured else ""
        without = "leave out --calibration (quant:scheme=w8 and quant:method=rtn need none)"
        return f"give --evidence none and {without}" if self.is_measured else without

    def find(
        self, graph: ir.Model, model: Path, *, seed: int, log: Log, progress: Progress
    ) -> Data:
        """Read the files, or let the graph make its own.

        Without evidence what lies beside the model is not calibrated on, which would run the graph.

        Raises:
            SampleError: A file cannot be read or does not fit the graph.
        """
        if self.is_measured:
            reference = find_reference(
                graph, model, self.reference, seed=seed, log=log, progress=progress
            )
            return Data(reference, calibration_of(reference, self.calibration, graph))
        reference = given_reference(graph, model, self.reference) or NOTHING
        if self.calibration is None:
            return Data(reference, ())
        return Data(reference, calibration_of(reference, self.calibration, graph))

    def hook(
        self, reference: Reference, limits: Policy, *, force: bool, progress: Progress
    ) -> CompareHook | UnmeasuredHook:
        """What looks at the graph before the first and after every pass."""
        if not self.is_measured:
            return UnmeasuredHook()
        return CompareHook(open_model, reference, limits, force=force, progress=progress)

    def speed(
        self,
        target: Target,
        engines: Sequence[tuple[ir.Model, range]],
        *,
        log: Log,
        progress: Progress,
    ) -> tuple[Speed, ...]:
        """Time quantised products beside float, and say which are slower.

        Args:
            target: What times them; nothing is timed where it cannot run here.
            engines: The canonical graph of each, with the numbers of new tokens that it runs.
            log: Told a sentence for what is slower.
            progress: Told when it begins and ends.
        """
        if not self.is_measured or target.unavailable() is not None:
            return ()
        with stage(progress, "timing quantised products"):
            found = [
                speed.among(calls) for graph, calls in engines for speed in target.speed(graph)
            ]
        for note in speed_notes(found):
            log(f"note: {note}")
        return tuple(found)
