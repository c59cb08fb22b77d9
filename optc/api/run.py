"""`run`: generate text with a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optc.api.prompts import begin
from optc.api.sessions import OpenBundle, open_bundle
from optc.core.context import Feeds, Log, Progress, no_progress, silent
from optc.runtime.arguments import check_count, texts
from optc.runtime.limits import smallest_limit
from optc.runtime.sampling import GREEDY, Sampling
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


def _say_unlimited(opened: OpenBundle, count: int, log: Log) -> None:
    if smallest_limit(opened.session, opened.limit) is None:
        log(f"no limit of this model's texts is known: up to {count} tokens, unless it ends before")


def run(
    bundle: str | Path,
    prompts: str | Sequence[str] = (),
    *,
    inputs: Feeds | None = None,
    decoder_start: Sequence[int] | None = None,
    max_tokens: int | None = None,
    chat: bool = False,
    sampling: Sampling = GREEDY,
    stop: str | Sequence[str] = (),
    on_text: Callable[[int, str], None] = _ignore,
    progress: Progress = no_progress,
    log: Log = silent,
) -> RunResult:
    """Continue prompts, all in one batch.

    Args:
        bundle: The bundle's folder.
        prompts: A text, or several, which may differ in length. A decoder continues them, an
            encoder reads them.
        inputs: What an encoder takes, by name, in place of texts; the first axis is the row.
        decoder_start: Token ids that a decoder beside an encoder starts with; those of the model's
            configuration by default.
        max_tokens: Largest number of new tokens for each; by default 128, and a text for which
            there is no room for that many ends where the room does.
        chat: Whether each prompt is what a user says to the model's chat template.
        sampling: How tokens are chosen.
        stop: Strings that end a text; they are not part of it.
        on_text: Called with (row, text) as text becomes certain.
        progress: Told the bytes checked before the engine is opened.
        log: Told where more than the usual number of tokens is asked of a model of which nobody
            says how long its texts may be.

    Raises:
        BundleError: The bundle is damaged or unsafe.
        UnsupportedError: No tokenizer, no chat template, or too long for the engine's cache or for
            the model; see also `optc.api.prompts.begin`.
        UsageError: Nothing to do.
    """
    if max_tokens is not None:
        check_count(max_tokens, "max_tokens")
    with open_bundle(bundle, progress=progress) as opened:
        start = begin(opened, texts(prompts), inputs=inputs, chat=chat, decoder_start=decoder_start)
        if max_tokens is not None and max_tokens > _USUAL:
            _say_unlimited(opened, max_tokens, log)
        found = complete(
            opened.session,
            opened.tokenizer,
            start.rows,
            max_new_tokens=_USUAL if max_tokens is None else max_tokens,
            sampling=sampling,
            stop=stop,
            on_text=on_text,
            inputs=start.inputs,
            limit=opened.limit,
            shorten=max_tokens is None,
            around_first=start.explained(),
        )
    stats = dataclasses.replace(found.stats, prompt_tokens=start.prompt_tokens)
    return RunResult(Path(bundle), start.prompts, dataclasses.replace(found, stats=stats))
