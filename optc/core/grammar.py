"""Pipeline text: `flash,kv:max=4096,quant:scheme=w8:max-drift=0.05`.

```
pipeline := pass ("," pass)*
pass     := name (":" option)*
option   := key "=" value  |  value          (a bare value sets the first option)
```

Colons and commas need no quoting in any shell. `print_passes(parse_passes(text))` is canonical:
options in field order, defaults left out; parsing it gives the same passes.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from optc.core.base import Pass
from optc.core.errors import UsageError
from optc.core.registry import Registry, suggestion

__all__ = ["parse_pass", "parse_passes", "print_pass", "print_passes"]

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


def parse_passes(text: str, registry: Registry[Pass], *, where: str = "--passes") -> list[Pass]:
    """Turn pipeline text into passes, in the order written.

    Args:
        text: Pipeline text.
        registry: The passes that there are.
        where: The option that the text was given with, for messages.

    Raises:
        UsageError: Empty text, an unknown pass or option, a bad value, a pass named twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise UsageError("no pass is named", where=where, remedy="for example 'flash,kv'")
    if not all(parts):
        raise UsageError(f"'{text}' has an empty entry between commas", where=where)
    passes = [parse_pass(part, registry, where=where) for part in parts]
    names = [p.name for p in passes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the pass '{name}' is named twice", where=where)
    return passes


def parse_pass(text: str, registry: Registry[Pass], *, where: str = "--passes") -> Pass:
    """Turn `name:key=value:...` into one pass; see `parse_passes`."""
    name, *options = text.split(":")
    cls = registry.load(name.strip(), where=where)
    fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}
    types = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for position, item in enumerate(options):
        key, value = _split(name, item, position, list(fields), where)
        if key not in fields:
            remedy = suggestion(key, list(fields)) if fields else "it takes no options"
            raise UsageError(f"the pass '{name}' has no option '{key}'", remedy=remedy)
        field = fields[key]
        if field.name in values:
            raise UsageError("the option is given twice", where=f"{name}:{key}")
        bare = "=" not in item
        hint = _hint(name, value, fields, types) if bare else None
        values[field.name] = _convert(value, types[field.name], field, f"{name}:{key}", hint)
    return cls(**values)


def _hint(
    name: str, text: str, fields: Mapping[str, dataclasses.Field[Any]], types: Mapping[str, Any]
) -> str | None:
    """What a number without an option's name may have been meant for."""
    if not text.isdigit():
        return None
    for key, field in fields.items():
        if int in {types[field.name], *typing.get_args(types[field.name])}:
            return f"did you mean {name}:{key}={text}?"
    return None


def _split(name: str, item: str, position: int, keys: list[str], where: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if equals:
        return key.strip().replace("_", "-"), value.strip()
    if position == 0 and keys and item.strip() and item.strip() not in keys:
        return keys[0], item.strip()
    raise UsageError(f"'{item}' is not of the form option=value", where=f"{where} {name}")


def _convert(
    text: str, kind: Any, field: dataclasses.Field[Any], where: str, hint: str | None
) -> Any:
    value = _typed(text, kind, where)
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        known = [str(c) for c in choices]
        remedy = hint or suggestion(text, known)
        raise UsageError(f"'{text}' is not allowed", where=where, remedy=remedy)
    low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
    if value is not None and low is not None and not value >= low:
        raise UsageError(f"{text} is too small, the smallest is {low}", where=where)
    if value is not None and high is not None and not value <= high:
        raise UsageError(f"{text} is too large, the largest is {high}", where=where)
    return value


def _typed(text: str, kind: Any, where: str) -> Any:
    args = [a for a in typing.get_args(kind) if a is not type(None)]
    if type(None) in typing.get_args(kind):
        if text.lower() in {"none", "auto"}:
            return None
        kind = args[0]
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise UsageError(f"'{text}' is not true or false", where=where)
    try:
        value = kind(text)
    except ValueError as error:
        word = {int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")
        raise UsageError(f"'{text}' is not {word}", where=where) from error
    if kind is float and not math.isfinite(value):
        raise UsageError(f"'{text}' is not a finite number", where=where)
    return value


def print_pass(p: Pass) -> str:
    """One pass as canonical text."""
    items = [p.name]
    for field in dataclasses.fields(p):
        value = getattr(p, field.name)
        if value != field.default:
            items.append(f"{field.name.replace('_', '-')}={_text(value)}")
    return ":".join(items)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def print_passes(passes: Iterable[Pass]) -> str:
    """Passes as canonical pipeline text."""
    return ",".join(print_pass(p) for p in passes)
