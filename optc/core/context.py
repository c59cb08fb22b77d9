"""What a pass may ask of the world: calibration data, an evaluator, a seed, progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "Array",
    "Context",
    "Evaluator",
    "Feeds",
    "Log",
    "Progress",
    "no_progress",
    "silent",
]

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Log = Callable[[str], None]
"""Where a long step says what people should know, a line at a time."""


class Evaluator(Protocol):
    """Runs a graph, whole, on the CPU."""

    def __call__(
        self, model: ir.Model, feeds: Iterable[Feeds], *, fetch: Sequence[str] | None = None
    ) -> Iterator[dict[str, Array]]:
        """Run `model` once per element of `feeds`.

        Args:
            model: The graph to run; it is not changed.
            feeds: Inputs by name. Cache inputs that a sample does not name are filled in empty,
                so that a sample made for the exported graph also feeds the graph after `kv`.
            fetch: Names of the values to return, graph outputs or intermediates; the graph's
                outputs when None.

        Yields:
            The fetched values by name, one mapping per element of `feeds`.
        """
        ...


class Progress(Protocol):
    """A way to say how far a long step has come."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report `done` of `total` units of `what`."""
        ...


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def silent(line: str) -> None:
    """Say nothing."""


def _every_site(site: str) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Context:
    """Read-only surroundings of a pass.

    Attributes:
        evaluate: Runs a graph on the CPU; None where the caller has no runtime.
        calibration: Inputs that stand for real use; never the samples a build is judged on
            when other text was available.
        target: Name of the target that the result is for.
        seed: Seed of everything random.
        progress: Where a long pass reports how far it is.
        wants: Whether a rewrite site may be touched; bisection narrows it. A pass asks it for
            each site, by the site's name, and skips the ones that are not wanted.
    """

    evaluate: Evaluator | None = None
    calibration: Sequence[Feeds] = ()
    target: str = "ort"
    seed: int = 0
    progress: Progress = no_progress
    wants: Callable[[str], bool] = _every_site

    def rng(self) -> np.random.Generator:
        """A fresh generator from the seed."""
        return np.random.default_rng(self.seed)
