"""What a comparison leaves out, in words: for reports, and for rules that were not judged."""

from __future__ import annotations

from collections.abc import Sequence

from optc.core.errors import SampleError

__all__ = ["UNJUDGED", "left_out", "left_out_padded", "none_fits", "unjudged"]

UNJUDGED = "greedy continuations were not judged: "


def left_out(what: str, total: int, lengths: Sequence[int], room: int) -> str:
    """Say how many of `total` were left out, by their numbers of tokens, and what the limit is.

    >>> left_out("samples", 8, [70, 128], 64)
    '2 of 8 samples left out: they have up to 128 tokens, the cache holds 64'
    """
    have = "they have" if what == "samples" else "with continuation they have"
    count = f"{len(lengths)} of {total} {what} left out"
    return f"{count}: {have} up to {max(lengths)} tokens, the cache holds {room}"


def left_out_padded(what: str, total: int, count: int, token: int) -> str:
    """Say how many of `total` were left out for a token that the graph takes for padding.

    >>> left_out_padded("samples", 8, 1, 0)
    '1 of 8 samples left out: token 0 is in them, which the graph takes for padding'
    """
    reason = f"token {token} is in them, which the graph takes for padding"
    return f"{count} of {total} {what} left out: {reason}"


def none_fits(lengths: Sequence[int], room: int | None, notes: Sequence[str]) -> SampleError:
    """The error where nothing is left to judge."""
    if room is None or min(lengths) <= room:
        remedy = "give other samples with --reference"
        return SampleError(f"no sample is left: {'; '.join(notes)}", remedy=remedy)
    problem = f"none of {len(lengths)} samples fits in the cache of {room} tokens"
    return SampleError(
        f"{problem}, the shortest has {min(lengths)}",
        remedy="build with a larger kv:max, or give shorter samples with --reference",
    )


def unjudged(notes: Sequence[str]) -> str | None:
    """The note that says why no greedy token was judged, if there is one."""
    return next((note for note in notes if note.startswith(UNJUDGED)), None)
