"""Generation from text to text: encode, generate, decode while it runs, stop at strings."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

from optc.core.context import Feeds
from optc.core.errors import UsageError
from optc.core.session import Session
from optc.runtime.arguments import check_text, named, texts
from optc.runtime.generate import Stats, generate
from optc.runtime.limits import Limit
from optc.runtime.row import Finish
from optc.runtime.sampling import GREEDY, Sampling
from optc.runtime.tokenizer import Tokenizer

__all__ = ["Completion", "OnText", "StopFilter", "TextRow", "complete"]

OnText = Callable[[int, str], None]
"""Called with (row, text) whenever more text of a row is certain."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model said.

    Attributes:
        texts: New text of each row, up to a stop string.
        tokens: New tokens of each row.
        finish: Why each row ended; see `Finish`.
        stats: What it cost.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    finish: tuple[str, ...]
    stats: Stats


class StopFilter:
    """Lets text through until a stop string comes; holds back what may be the start of one."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """Add text; what may be shown of it."""
        if self.hit:
            return ""
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.hit = True
            return self._take(min(found))
        return self._take(len(self._held) - self._possible_start())

    def finish(self) -> str:
        """What was held back, once it is certain that no stop string follows."""
        return "" if self.hit else self._take(len(self._held))

    def _take(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _possible_start(self) -> int:
        longest = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        for size in range(longest, 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0


def _ignore(row: int, text: str) -> None:
    pass


def complete(
    session: Session,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop: str | Sequence[str] = (),
    on_text: OnText = _ignore,
    limit: Limit | None = None,
    shorten: bool = False,
    inputs: Feeds | None = None,
    around_first: contextlib.AbstractContextManager[None] | None = None,
) -> Completion:
    """Continue each prompt, with text while it runs.

    Args:
        session: See `optc.runtime.generate`.
        tokenizer: Decodes; its `eos_ids` end a row.
        prompts: Token ids of each row.
        max_new_tokens: Largest number of new tokens per row.
        sampling: How tokens are chosen.
        stop: Strings that end a row; they are not part of the text.
        on_text: Called with (row, text) as text becomes certain.
        limit: Most tokens of a row; see `generate`.
        shorten: Whether rows may end where there is no more room; see `generate`.
        inputs: What else the graph takes; see `generate`.
        around_first: Entered around the session's work on the prompts; see `generate`.

    Raises:
        UsageError: An empty stop string; see also `generate`.
        UnsupportedError: See `generate`.
    """
    stop = texts(stop)
    for number, text in enumerate(stop, start=1):
        if not text:
            raise UsageError("a stop string is empty")
        check_text(text, named("stop string", number, len(stop)))
    rows = [TextRow(index, tokenizer, stop, on_text) for index in range(len(prompts))]
    found = generate(
        session,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        eos=tokenizer.eos_ids,
        on_token=lambda row, token: rows[row].push(token),
        limit=limit,
        shorten=shorten,
        inputs=inputs,
        around_first=around_first,
    )
    for row in rows:
        row.finish()
    # The end of the text may complete a stop string that no single token did.
    finish = [Finish.STOP if r.stopped else f for r, f in zip(rows, found.finish, strict=True)]
    said = tuple("".join(row.pieces) for row in rows)
    return Completion(said, found.tokens, tuple(finish), found.stats)


class TextRow:
    """The text of one row, as it becomes certain.

    Args:
        index: What `on_text` is told is the row.
        tokenizer: Decodes.
        stop: Strings that end the row; they are not part of its text.
        on_text: Called with (row, text).

    Attributes:
        pieces: The text so far, in pieces.
    """

    def __init__(self, index: int, tokenizer: Tokenizer, stop: Sequence[str], on_text: OnText):
        self.pieces: list[str] = []
        self._index = index
        self._stream = tokenizer.stream()
        self._filter = StopFilter(stop)
        self._on_text = on_text

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        return self._filter.hit

    def push(self, token: int) -> bool:
        """Add one token; whether the row ends here."""
        self._show(self._filter.push(self._stream.push(token)))
        return self.stopped

    def finish(self) -> None:
        """Show what was held back; called once, after the last token."""
        self._show(self._filter.push(self._stream.finish()))
        self._show(self._filter.finish())

    def _show(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            self._on_text(self._index, text)
