"""What people hand to a generation: token ids by row, texts, numbers; one sentence for the rest."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optc.core.context import Array
from optc.core.errors import UsageError

__all__ = ["check_arrays", "check_count", "check_rows", "check_text", "named", "texts"]


def named(what: str, number: int, count: int) -> str:
    """Which one it is: `the prompt` of one, `prompt 2` of several; `number` starts at 1."""
    return f"{what} {number}" if count > 1 else f"the {what}"


def texts(given: str | Sequence[str]) -> tuple[str, ...]:
    """One text, or several: a text by itself is not a sequence of its letters."""
    return (given,) if isinstance(given, str) else tuple(given)


def check_text(text: str, what: str) -> None:
    """See that a text can be written down, as tokenizers want it.

    Raises:
        UsageError: It holds half of a surrogate pair: what Python makes of bytes that are no UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not UTF-8") from error


def check_rows(prompts: Sequence[Sequence[int]]) -> None:
    """See that prompts are rows of token ids, and none is empty.

    Raises:
        UsageError: They are not; the message says which.
    """
    if _is_text(prompts):
        raise _text_for_ids("prompts")
    if len(prompts) == 0:
        raise UsageError("no prompt was given")
    for number, row in enumerate(prompts, start=1):
        _check_row(row, named("prompt", number, len(prompts)))


def _check_row(row: Any, which: str) -> None:
    if _is_text(row):
        raise _text_for_ids(which)
    if not hasattr(row, "__len__"):
        raise UsageError(f"{which} is {row!r}, not a row of token ids")
    if len(row) == 0:
        raise UsageError(f"{which} has no tokens")
    for token in row:
        if not _is_whole(token):
            raise UsageError(f"{which} has {token!r} in it, which is no token id")


def _is_text(given: Any) -> bool:
    return isinstance(given, str)


def _is_whole(number: Any) -> bool:
    """Whether it is a whole number, numpy's too; not a truth value, which Python calls one."""
    return isinstance(number, numbers.Integral) and not isinstance(number, bool | np.bool_)


def _text_for_ids(which: str) -> UsageError:
    remedy = "give token ids, such as those of the bundle's tokenizer, or use optc.run"
    return UsageError(f"{which} is text, and generation takes token ids", remedy=remedy)


def check_count(count: Any, where: str) -> None:
    """See that a number of new tokens is one.

    Raises:
        UsageError: It is not a whole number, or is not positive.
    """
    if not _is_whole(count):
        raise UsageError(f"a whole number of new tokens is needed, not {count!r}", where=where)
    if count < 1:
        raise UsageError("at least one new token must be asked for", where=where)


def check_arrays(inputs: Mapping[str, Any], known: Sequence[str]) -> dict[str, Array]:
    """What a graph is given beside tokens, as arrays.

    Raises:
        UsageError: The graph has no such input.
    """
    for name in inputs:
        if name not in known:
            raise UsageError(f"the engine has no input '{name}', but {', '.join(known)}")
    return {name: np.asarray(array) for name, array in inputs.items()}
