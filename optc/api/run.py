"""`run`: generate text with a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optc.api.prompts import begin
from optc.api.sessions import open_bundle
from optc.core.context import Feeds, Progress, no_progress
from optc.core.session import Session
from optc.runtime.sampling import GREEDY, Sampling
from optc.runtime.stepper import places
from optc.runtime.text import Completion, complete

__all__ = ["RunResult", "run"]

_USUAL = 128


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a bundle said.

    Attributes:
        bundle: The bundle's folder.
        prompts: The prompts; None for a row whose encoder was given arrays.
        completion: New text and tokens of each prompt, why each ended, and what it cost.
    """

    bundle: Path
    prompts: tuple[str | None, ...]
    completion: Completion

    def as_json(self) -> dict[str, Any]:
        """The document `optc.run/1`; see `docs/json.md`."""
        found = self.completion
        rows = zip(self.prompts, found.texts, found.tokens, found.finish, strict=True)
        return {
            "schema": "optc.run/1",
            "bundle": str(self.bundle),
            "completions": [
                {"prompt": prompt, "text": text, "tokens": list(tokens), "finish": finish}
                for prompt, text, tokens, finish in rows
            ],
            "stats": dataclasses.asdict(found.stats),
        }


def _ignore(row: int, text: str) -> None:
    pass


def run(
    bundle: str | Path,
    prompts: Sequence[str] = (),
    *,
    inputs: Feeds | None = None,
    decoder_start: Sequence[int] | None = None,
    max_tokens: int | None = None,
    chat: bool = False,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] = _ignore,
    progress: Progress = no_progress,
) -> RunResult:
    """Continue prompts, all in one batch.

    Args:
        bundle: The bundle's folder.
        prompts: Texts; they may differ in length. A decoder continues them, an encoder reads them.
        inputs: What an encoder takes, by name, in place of texts; the first axis is the row.
        decoder_start: Token ids that a decoder beside an encoder starts with; those of the model's
            configuration by default.
        max_tokens: Largest number of new tokens for each; 128 by default, or as many as the
            engine's cache has room for.
        chat: Whether each prompt is what a user says to the model's chat template.
        sampling: How tokens are chosen.
        stop: Strings that end a text; they are not part of it.
        on_text: Called with (row, text) as text becomes certain.
        progress: Told the bytes checked before the engine is opened.

    Raises:
        BundleError: The bundle is damaged or unsafe.
        UnsupportedError: No tokenizer, no chat template, or too long for the engine's cache; see
            also `optc.api.prompts.begin`.
        UsageError: Nothing to do.
    """
    with open_bundle(bundle, progress=progress) as opened:
        start = begin(opened, prompts, inputs=inputs, chat=chat, decoder_start=decoder_start)
        rows = start.rows
        with start.explained():
            found = complete(
                opened.session,
                opened.tokenizer,
                rows,
                max_new_tokens=_limit(opened.session, rows) if max_tokens is None else max_tokens,
                sampling=sampling,
                stop=stop,
                on_text=on_text,
                inputs=start.inputs,
            )
    stats = dataclasses.replace(found.stats, prompt_tokens=start.prompt_tokens)
    return RunResult(Path(bundle), start.prompts, dataclasses.replace(found, stats=stats))


def _limit(session: Session, rows: Sequence[Sequence[int]]) -> int:
    room, longest = places(session), max((len(row) for row in rows), default=0)
    return _USUAL if room is None else max(1, min(_USUAL, room - longest + 1))
