"""`Session`: PyTorch, ONNX Runtime and TensorRT look alike from here."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

from optc.core.context import Array, Feeds

__all__ = [
    "Cache",
    "CachedSession",
    "EncoderLimits",
    "EncodingSession",
    "PaddedSession",
    "Port",
    "Session",
    "encoder_limits",
    "padding_ids",
]


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

    @property
    def kind(self) -> tuple[str, str, tuple[int | None, ...]]:
        """Name, type and fixed sizes: all but what an axis of any size is called."""
        sizes = tuple(size if isinstance(size, int) else None for size in self.shape)
        return self.name, self.dtype, sizes


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


@runtime_checkable
class PaddedSession(Session, Protocol):
    """A session that knows which tokens its graph takes for padding."""

    @property
    def padding_ids(self) -> frozenset[int]:
        """Ids that may stand behind a row's tokens only, where nothing is read."""
        ...


def padding_ids(session: Session) -> frozenset[int]:
    """Ids that may not be among a row's tokens; none where the session knows of none."""
    return session.padding_ids if isinstance(session, PaddedSession) else frozenset()


@dataclasses.dataclass(frozen=True)
class EncoderLimits:
    """What an encoder takes, where it reads text.

    Attributes:
        tokens: Most tokens of a row, as it has positions for no more; None where that is not known.
        ids: Token ids are 0 to `ids - 1`; None where that is not known.
    """

    tokens: int | None = None
    ids: int | None = None


@runtime_checkable
class EncodingSession(Session, Protocol):
    """A session that knows what its encoder takes."""

    @property
    def encoder_limits(self) -> EncoderLimits:
        """What tables of the graph say."""
        ...


def encoder_limits(session: Session) -> EncoderLimits:
    """What a session's encoder takes; no limits where it knows of none."""
    return session.encoder_limits if isinstance(session, EncodingSession) else EncoderLimits()


class Cache(Protocol):
    """Keys and values of some rows, kept by whoever made it from one step to the next.

    Rows are numbered from 0. How many tokens a row has is known to its user, who says so with each
    step (`cache_lengths`); what lies behind a row's tokens is never read.
    """

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens that a row can have."""
        ...

    @property
    def seconds(self) -> float:
        """Seconds spent inside the runtime, over all steps."""
        ...

    def step(self, feeds: Feeds, fetch: tuple[str, ...], *, row: int = 0) -> dict[str, Array]:
        """Run once on rows `row` .. `row + B - 1`, and add the new tokens to them.

        Args:
            feeds: Every input but the caches; B is the batch of its token input [B,S].
            fetch: Names of the outputs wanted, caches not among them.
            row: The first row.

        Returns:
            The outputs by name. They may be overwritten by the next step.

        Raises:
            UnsupportedError: A row has no room for S more tokens; nothing was run.
        """
        ...

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of row `source` over row `target`."""
        ...


@runtime_checkable
class CachedSession(Session, Protocol):
    """A session that keeps caches itself, and so need not copy them at each step."""

    @property
    def most_tokens(self) -> int | None:
        """Tokens that a row can have whatever room there is, as positions are known for no more.

        None where there is no such limit, or none that is known.
        """
        ...

    def new_cache(self, rows: int, tokens: int) -> Cache | None:
        """An empty cache for `rows` rows of up to `tokens` tokens each.

        Returns:
            The cache; None where the session has nothing better than caches that go in and come out
            of `run`.

        Raises:
            UnsupportedError: The engine's caches are smaller.
        """
        ...
