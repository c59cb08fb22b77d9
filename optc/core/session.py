"""`Session`: PyTorch, ONNX Runtime and TensorRT look alike from here."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

from optc.core.context import Array, Feeds

__all__ = ["Port", "Session"]


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of a session.

    Attributes:
        name: Name of the value.
        dtype: numpy name of its element type, such as `float32`.
        shape: One entry per axis: an int where fixed, the symbol's name (or `?`) where not.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@runtime_checkable
class Session(Protocol):
    """Something that can be run on named arrays."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What it takes."""
        ...

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What it gives."""
        ...

    def run(self, feeds: Feeds, fetch: tuple[str, ...] | None = None) -> dict[str, Array]:
        """Run once.

        Args:
            feeds: Every input, by name.
            fetch: Names of the outputs wanted; all when None.

        Returns:
            The outputs by name.
        """
        ...
