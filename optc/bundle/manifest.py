"""`manifest.json`: what a bundle is, how it was made, what it needs, what was measured.

No times and no machine paths: the same inputs and versions give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from optc.bundle.decode import decode, encode
from optc.bundle.layout import MANIFEST, SIGNATURE, path_problem
from optc.core.errors import BundleError
from optc.core.session import Port

__all__ = [
    "LEVELS",
    "SCHEMA_VERSION",
    "SOURCES",
    "Engine",
    "Evidence",
    "FileEntry",
    "Manifest",
    "installed_versions",
]

SCHEMA_VERSION = 1
FORMAT = "optc bundle"
SOURCES = ("pytorch", "graph", "none")
LEVELS = ("none", "graph", "built", "run")


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """What a file of the bundle must be: its size in bytes and SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Engine:
    """What a target built, and what it takes to run it.

    Attributes:
        files: The engine's files.
        roles: Role (`prefill`, `decode`, ...) to the file that plays it.
        runtime: Name of the runtime.
        runtime_version: Its version at build time.
        hardware: What it runs on, in words.
        inputs: Signature.
        outputs: Signature.
        details: More facts of the target's own.
    """

    files: tuple[str, ...]
    roles: dict[str, str]
    runtime: str
    runtime_version: str
    hardware: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Engine:
        """Read what `Target.build` returned."""
        return decode(cls, {"details": {}, **encode(facts)}, "engine")

    def with_prefill(self, facts: Mapping[str, Any], prefill_from: int) -> Engine:
        """The same with a second file for prefill.

        Args:
            facts: What `Target.build_prefill` returned.
            prefill_from: New tokens of the longest row of a call from which on it runs the call.
        """
        prefill = {"from": prefill_from, **facts["details"]}
        return dataclasses.replace(
            self,
            files=tuple(facts["files"]),
            roles={**self.roles, "prefill": facts["file"]},
            details={**self.details, "prefill": prefill},
        )

    @property
    def prefill_from(self) -> int | None:
        """New tokens from which on the prefill engine runs a call; None where one runs all.

        Raises:
            BundleError: There are two engines, and what says so is no such number.
        """
        if self.roles.get("prefill") in (None, self.roles.get("decode")):
            return None
        said = self.details.get("prefill")
        number = said.get("from") if isinstance(said, dict) else None
        if type(number) is not int or number < 2:
            problem = "it has an engine for prefill and does not say from how many tokens on"
            raise BundleError(problem, where="engine.details.prefill.from")
        return number


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known about the bundle's numbers.

    Attributes:
        level: How far it was tried: `none`; `graph`, the last graph before lowering was compared;
            `built`, and the engine opened; `run`, the engine itself was run and compared.
        source: What it was compared with: `pytorch`, `graph` (the input graph), or `none`.
        metrics: Summary of the last comparison.
        policy: The limits it was judged by.
        passed: Whether it kept them.
        forced: Whether it was written although it did not.
    """

    level: str
    source: str
    metrics: dict[str, Any]
    policy: dict[str, Any]
    passed: bool
    forced: bool


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Attributes:
        pipeline: Pipeline text as it was asked for.
        order: Canonical text of each pass, in the order they ran.
        options: Pass name to all its options, defaults included.
        versions: Package to version at build time.
        target: Name of the target.
        engine: What the target built.
        evidence: What was measured.
        extra: Anything else a runtime wants, such as end-of-text tokens; JSON types.
        files: Every other file of the bundle but the signature; `write_bundle` fills it in.
    """

    pipeline: str
    order: tuple[str, ...]
    options: dict[str, dict[str, Any]]
    versions: dict[str, str]
    target: str
    engine: Engine
    evidence: Evidence
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, FileEntry] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Canonical text: sorted keys, one trailing newline."""
        document = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **encode(self)}
        text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return f"{text}\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = MANIFEST) -> Manifest:
        """Read and check a manifest, which may come from anyone.

        Raises:
            BundleError: Not JSON, another schema version, a missing, unknown or wrong field, or a
                file path that leaves the bundle.
        """
        document = _parse(text, where)
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise BundleError("it is not the manifest of an optc bundle", where=where)
        number = document.pop("schema_version", None)
        if type(number) is not int or number != SCHEMA_VERSION:
            problem = (
                f"schema version {number!r:.20} is not {SCHEMA_VERSION}, which this optc reads"
            )
            remedy = "install the optc that wrote it, or build again"
            raise BundleError(problem, where=where, remedy=remedy)
        manifest = decode(cls, document, where)
        manifest.check(where)
        return manifest

    def check(self, where: str = MANIFEST) -> None:
        """See that the fields agree with each other.

        Raises:
            BundleError: They do not.
        """
        for name, entry in self.files.items():
            _check_file(name, entry, where)
        engine = self.engine
        for name in (*engine.files, *engine.roles.values()):
            if name not in self.files:
                problem = f"the engine's file {name!a} is not among the bundle's files"
                raise BundleError(problem, where=where)
        if engine.prefill_from is not None and not {"prefill", "decode"} <= set(engine.roles):
            raise BundleError("an engine for prefill needs another to decode", where=where)
        if self.evidence.level not in LEVELS or self.evidence.source not in SOURCES:
            problem = f"evidence must have a level of {LEVELS} and a source of {SOURCES}"
            raise BundleError(problem, where=where)


def _check_file(name: str, entry: FileEntry, where: str) -> None:
    problem = path_problem(name)
    if problem is None and name in (MANIFEST, SIGNATURE):
        problem = "cannot be listed"
    if problem is None and (entry.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256)):
        problem = "has an impossible size or hash"
    if problem is not None:
        raise BundleError(f"the file {name!a} {problem}", where=where)


def _parse(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"it is not JSON ({error})", where=where) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of `packages` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
