"""Names to classes, loaded on first use; other distributions add theirs by one entry point.

An entry point of the group `optc.extensions` resolves to a mapping such as
`{"passes": {"my-pass": "my_package.my_pass:MyPass"}, "targets": {}}`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from optc.core.errors import NotYetError, OptcError, UsageError

__all__ = ["GROUP", "Registry", "suggestion"]

GROUP = "optc.extensions"

T = TypeVar("T")


def suggestion(word: str, known: list[str]) -> str:
    """`did you mean ...` for the nearest known word, else the list of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"


@dataclasses.dataclass(frozen=True)
class _Entry:
    path: str
    owner: str


class Registry(Generic[T]):
    """A table of classes by name.

    Args:
        kind: What the names stand for, singular, for messages: `pass` or `target`.
        section: Key of this kind in an extension's mapping: `passes` or `targets`.
        base: Class that every entry must derive from.
        builtin: Our own table, name to `module:Class`.
        planned: Names that are coming, each with a word on what it will be.
        points: Entry points to read; those installed, when None.
    """

    def __init__(
        self,
        kind: str,
        section: str,
        base: type[T],
        builtin: Mapping[str, str],
        *,
        planned: Mapping[str, str] | None = None,
        points: list[EntryPoint] | None = None,
    ):
        self.kind = kind
        self.base = base
        self.planned = dict(planned or {})
        self._entries = {name: _Entry(path, "optc") for name, path in builtin.items()}
        for point in entry_points(group=GROUP) if points is None else points:
            self._extend(section, point)

    def _extend(self, section: str, point: EntryPoint) -> None:
        owner = point.dist.name if point.dist else point.value
        try:
            table = point.load()
            rows = dict(table.get(section, {}))
        except Exception as error:
            problem = f"the extension '{point.name}' of '{owner}' cannot be loaded: {error}"
            raise UsageError(problem, remedy="repair or uninstall that package") from error
        for name, path in rows.items():
            if name in self._entries:
                other = self._entries[name].owner
                problem = f"the {self.kind} '{name}' is defined by both '{other}' and '{owner}'"
                raise UsageError(problem, remedy="uninstall one of them")
            self._entries[name] = _Entry(path, owner)

    def names(self) -> list[str]:
        """All names, ours first, in table order."""
        return list(self._entries)

    def owner(self, name: str) -> str:
        """Distribution that defines `name`."""
        return self._entries[name].owner

    def load(self, name: str, *, where: str | None = None) -> type[T]:
        """Import and return the class of `name`.

        Args:
            name: What the user typed.
            where: The option that it was given with, for messages.

        Raises:
            UsageError: No such name; the message suggests the nearest.
            NotYetError: The name is planned.
            OptcError: The table points at something that is not such a class.
        """
        if name in self.planned and name not in self._entries:
            problem = f"the {self.kind} '{name}' ({self.planned[name]}) is not there yet"
            raise NotYetError(problem, where=where)
        if name not in self._entries:
            problem, remedy = f"there is no {self.kind} '{name}'", suggestion(name, self.names())
            raise UsageError(problem, where=where, remedy=remedy)
        entry = self._entries[name]
        module, _, attribute = entry.path.partition(":")
        try:
            loaded = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            problem = f"the {self.kind} '{name}' cannot be imported from '{entry.path}': {error}"
            raise OptcError(problem) from error
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise OptcError(f"'{entry.path}' is not a {self.base.__name__}", where=name)
        return loaded
