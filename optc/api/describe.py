"""What passes and targets there are, from the classes that declare them."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from typing import Any

from optc.api.registries import passes, targets
from optc.core.base import Pass

__all__ = [
    "OptionInfo",
    "PassInfo",
    "TargetInfo",
    "describe_pass",
    "describe_passes",
    "describe_targets",
]


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """One option of a pass, as it is typed in a pipeline."""

    name: str
    type: str
    default: Any
    help: str
    choices: tuple[Any, ...] | None
    minimum: float | None
    maximum: float | None


@dataclasses.dataclass(frozen=True)
class PassInfo:
    """One pass.

    Attributes:
        name: What users type.
        summary: First sentence of its documentation.
        text: The rest.
        available: False for what is planned.
        promise: `exact` or `measured`; None for what is planned.
        after: Passes that run before it, when they run at all.
        needs: Those of them without which it has nothing to do.
        owner: Distribution that defines it.
        options: Its options, in the order in which a bare value is taken.
    """

    name: str
    summary: str
    text: str = ""
    available: bool = True
    promise: str | None = None
    after: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    owner: str = "optc"
    options: tuple[OptionInfo, ...] = ()


@dataclasses.dataclass(frozen=True)
class TargetInfo:
    """One target.

    Attributes:
        name: What users type.
        summary: First sentence of its documentation.
        available: Whether this machine can build for it and run the result.
        reason: Why not.
        owner: Distribution that defines it.
    """

    name: str
    summary: str
    available: bool
    reason: str | None = None
    owner: str = "optc"


def describe_passes() -> list[PassInfo]:
    """Every pass, then the planned ones."""
    registry = passes()
    planned = [name for name in registry.planned if name not in registry.names()]
    return [describe_pass(name) for name in registry.names()] + [
        PassInfo(name, registry.planned[name], available=False) for name in planned
    ]


def describe_pass(name: str) -> PassInfo:
    """One pass, from its class.

    Raises:
        UsageError: There is no such pass.
        NotYetError: It is planned.
    """
    registry = passes()
    cls = registry.load(name)
    summary, text = _documentation(cls)
    return PassInfo(
        name=name,
        summary=summary,
        text=text,
        promise=cls.promise,
        after=cls.after,
        needs=cls.needs,
        owner=registry.owner(name),
        options=_options(cls),
    )


def _options(cls: type[Pass]) -> tuple[OptionInfo, ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        OptionInfo(
            name=field.name.replace("_", "-"),
            type=_type_name(hints[field.name]),
            default=field.default,
            help=field.metadata.get("help", ""),
            choices=field.metadata.get("choices"),
            minimum=field.metadata.get("minimum"),
            maximum=field.metadata.get("maximum"),
        )
        for field in dataclasses.fields(cls)
    )


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        names = (_type_name(part) for part in typing.get_args(kind))
        return " or ".join("auto" if name == "NoneType" else name for name in names)
    return str(kind.__name__)


def _documentation(cls: type) -> tuple[str, str]:
    """First paragraph and rest of the class's docstring."""
    summary, _, text = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")
    return " ".join(summary.split()), text


def describe_targets() -> list[TargetInfo]:
    """Every target with whether it can be used here, then the planned ones."""
    registry = targets()
    found = []
    for name in registry.names():
        cls = registry.load(name)
        reason = cls().unavailable()
        summary = _documentation(cls)[0]
        found.append(TargetInfo(name, summary, reason is None, reason, registry.owner(name)))
    planned = [name for name in registry.planned if name not in registry.names()]
    for name in planned:
        found.append(TargetInfo(name, registry.planned[name], False, "planned"))
    return found
