"""Tokens that a graph takes for padding: rows that really hold one would be answered wrongly.

Some decoders look for padding among their tokens. With a cache rows have lengths instead, and the
graph says which ids it does not look for any more (`optc.ir.padding_ids`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from optc.core.errors import UnsupportedError, UsageError

__all__ = ["check_generated", "check_prompts"]


def check_prompts(prompts: Sequence[Sequence[int]], padding: Collection[int]) -> None:
    """See that no prompt holds padding.

    Raises:
        UsageError: One does; the message names the id and its place.
    """
    for row, prompt in enumerate(prompts):
        for place, token in enumerate(prompt):
            if token in padding:
                raise UsageError(
                    f"token {token} at position {place} is what this model takes for padding",
                    where=f"prompt {row}",
                    remedy="leave padding out: prompts may differ in length",
                )


def check_generated(token: int, padding: Collection[int]) -> None:
    """See that a token may be followed by others.

    Raises:
        UnsupportedError: It is one that the graph takes for padding.
    """
    if token in padding:
        raise UnsupportedError(
            f"the model chose token {token}, which it takes for padding, and cannot go on",
            remedy=f"give {token} as an end-of-sequence token, or use a graph without a cache",
        )
