"""Keep what one graph answered, so that the next graph can be compared with it.

Outputs go to disk as `.npy` files and come back memory-mapped: one sample is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optc.core.context import Array, Feeds, Progress, no_progress
from optc.core.session import Session
from optc.ir.reference import Reference, Sample
from optc.parity.compare import Tap, compare
from optc.parity.metrics import Metrics

__all__ = ["Baseline"]


class Baseline(Tap):
    """Answers of one graph on the samples and prompts of a reference.

    Its files live in a temporary folder that goes away with the object.
    """

    def __init__(self, reference: Reference):
        self._original = reference
        self._folder = Path(tempfile.mkdtemp(prefix="optc-baseline-"))
        self._outputs: dict[int, dict[str, Path]] = {}
        self._predictions: tuple[Array, ...] = ()
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def outputs(self, index: int, outputs: Feeds) -> None:
        """Write the outputs of one sample to disk."""
        files = {}
        for number, (name, array) in enumerate(outputs.items()):
            files[name] = self._folder / f"{index}_{number}.npy"
            storable = array if array.dtype.kind in "fiub" else array.astype(np.float32)
            np.save(files[name], storable, allow_pickle=False)  # bfloat16 has no .npy form
        self._outputs[index] = files

    def predictions(self, tokens: Sequence[Array]) -> None:
        """Keep the tokens predicted along each continuation."""
        self._predictions = tuple(tokens)

    def compare(self, session: Session, *, progress: Progress = no_progress) -> Metrics:
        """Measure another graph against this one, on the same samples and along the same text."""
        predicted = bool(self._predictions)
        reference = dataclasses.replace(
            self._original,
            source="graph",
            samples=tuple(self._sample(index) for index in sorted(self._outputs)),
            prompts=self._original.prompts if predicted else (),
            continuations=self._predictions,
        )
        forced = self._original.continuations if predicted else ()
        return compare(session, reference, forced=forced, progress=progress)

    def _sample(self, index: int) -> Sample:
        files = self._outputs[index]
        outputs: dict[str, Array] = {k: np.load(f, mmap_mode="r") for k, f in files.items()}
        return Sample(self._original.samples[index].inputs, outputs)
