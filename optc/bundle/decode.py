"""JSON to dataclasses, strictly: every key there, none unknown, every type as declared."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from optc.core.errors import BundleError

__all__ = ["decode", "encode"]

T = TypeVar("T")
_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def decode(kind: type[T], data: Any, where: str) -> T:
    """Turn parsed JSON into `kind`.

    Understands dataclasses, `dict[str, X]`, `tuple[X, ...]`, unions of plain types, plain types,
    and `Any`, which is taken as it is. Text must be printable, so that no manifest can send
    control sequences to a terminal.

    Args:
        kind: What to make.
        data: What `json.loads` gave.
        where: Path of `data` in the document, for messages.

    Raises:
        BundleError: It does not fit; the message names the field.
    """
    return typing.cast(T, _decode(kind, data, where))


def _decode(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _record(kind, data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        rows = _plain((dict,), data, where)
        return {k: _decode(arguments[1], v, f"{where}.{ascii(k)[1:-1]}") for k, v in rows.items()}
    if origin is tuple:
        items = _plain((list,), data, where)
        return tuple(_decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    return _plain(arguments if origin in (types.UnionType, typing.Union) else (kind,), data, where)


def _record(kind: Any, data: Any, where: str) -> Any:
    given = _plain((dict,), data, where)
    fields = {field.name for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for name in sorted(fields - set(given)):
        raise BundleError(f"the field '{name}' is missing", where=where)
    for name in sorted(set(given) - fields):
        raise BundleError(f"the field {name!a} is unknown", where=where)
    return kind(**{name: _decode(hints[name], given[name], f"{where}.{name}") for name in given})


def _plain(kinds: tuple[type, ...], data: Any, where: str) -> Any:
    # type() and not isinstance(): True is no number here.
    if type(data) not in kinds and not (type(data) is int and float in kinds):
        wanted = " or ".join(_WORDS[kind] for kind in kinds)
        problem = f"must be {wanted}, not {_WORDS.get(type(data), 'that')}"
        raise BundleError(problem, where=where)
    if isinstance(data, str) and not data.isprintable():
        raise BundleError("has control characters in it", where=where)
    return data


def encode(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what `json.dumps` takes.

    A float that JSON cannot hold becomes the text `NaN`, `Infinity` or `-Infinity`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return "NaN" if value != value else ("Infinity" if value > 0 else "-Infinity")
    return value
