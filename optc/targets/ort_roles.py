"""`OrtRoles`: two engines that look like one session; how many tokens are new says which one runs.

A call with many new tokens is bound by arithmetic, one with a single token by reading weights, and
what is fastest for the one is not for the other. Both engines take and give the same arrays, and
write keys and values into the same memory, so a text that one has begun the other goes on with.
"""

from __future__ import annotations

from types import TracebackType

from optc.core.context import Array, Feeds
from optc.core.errors import ModelFileError
from optc.core.session import EncoderLimits, Port
from optc.ir.interface import cache_ports, token_count
from optc.targets.ort_cache import OrtCache
from optc.targets.ort_session import OrtSession

__all__ = ["OrtRoles"]


class OrtRoles:
    """A prefill engine for calls with many new tokens, a decode engine for all others.

    Implements `CachedSession`, `PaddedSession` and `EncodingSession`. Usable as a context manager,
    which closes both engines.

    Args:
        decode: Runs calls with few new tokens.
        prefill: Runs calls with many.
        prefill_from: New tokens of the longest row from which on they are many.

    Raises:
        ModelFileError: The engines differ in what they take or give.
    """

    def __init__(self, decode: OrtSession, prefill: OrtSession, prefill_from: int):
        for kind, one, other in (
            ("input", decode.inputs, prefill.inputs),
            ("output", decode.outputs, prefill.outputs),
        ):
            if [port.kind for port in one] != [port.kind for port in other]:
                problem = f"the {kind}s of the prefill engine are not those of the decode engine"
                raise ModelFileError(problem, remedy="build the bundle again")
        self._decode = decode
        self._prefill = prefill
        self._from = prefill_from

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What both engines take."""
        return self._decode.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What both engines give."""
        return self._decode.outputs

    @property
    def most_tokens(self) -> int | None:
        """Tokens of a row that both engines know positions for; None where neither has a table."""
        known = (self._decode.most_tokens, self._prefill.most_tokens)
        return min((most for most in known if most is not None), default=None)

    @property
    def padding_ids(self) -> frozenset[int]:
        """Tokens that either graph takes for padding."""
        return self._decode.padding_ids | self._prefill.padding_ids

    @property
    def encoder_limits(self) -> EncoderLimits:
        """What the encoder takes, which is the same in both."""
        return self._decode.encoder_limits

    def engine_for(self, tokens: int) -> OrtSession:
        """The engine that runs a call with so many new tokens in its longest row."""
        return self._prefill if tokens >= self._from else self._decode

    def run(self, feeds: Feeds, fetch: tuple[str, ...] | None = None) -> dict[str, Array]:
        """Run once, on the engine for this many tokens; see `OrtSession.run`."""
        return self.engine_for(token_count(feeds)).run(feeds, fetch)

    def new_cache(self, rows: int, tokens: int) -> OrtCache | None:
        """Buffers that both engines update in place; None if one of them cannot.

        Raises:
            UnsupportedError: The engines' caches have a fixed size, and it is smaller.
        """
        if not (self._decode.keeps_caches and self._prefill.keeps_caches):
            return None
        return OrtCache(self, cache_ports(self.inputs), rows, tokens)

    def close(self) -> None:
        """Give back the runtime's memory; the engines cannot be run any more."""
        self._decode.close()
        self._prefill.close()

    def __enter__(self) -> OrtRoles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
