"""`Target`: what a runtime must do for optc to build for it. Add one: `docs/architecture.md`."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optc.core.errors import UnsupportedError
from optc.core.session import Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from optc.targets.speed import Speed

__all__ = ["Target"]


class Target(abc.ABC):
    """One runtime that canonical graphs can be lowered to.

    Its life in a build: `unavailable` and `refuses` first, before anything expensive; then `lower`
    (graph to graph, still ordinary ONNX where the runtime allows), `build` (graph to files), and
    later, maybe on another machine, `open` (files to session).

    Class attributes:
        name: What users type.
        has_prefill: Whether it has `build_prefill`, `open_prefill` and `open_both`: an engine of
            its own for calls with many new tokens.
    """

    name: ClassVar[str]
    has_prefill: ClassVar[bool] = False

    def roles(self, has_prefill: bool) -> Mapping[str, str] | None:
        """File that plays each role, as `open` and its like take them; None if that varies.

        Args:
            has_prefill: Whether there is an engine for prefill.
        """
        return None

    def unavailable(self) -> str | None:
        """Why this machine cannot run what `build` makes, as one sentence; None if it can."""
        return None

    @abc.abstractmethod
    def refuses(self, model: ir.Model) -> list[str]:
        """Reasons, one sentence each, why `model` cannot be built; empty if it can.

        Cheap: reads the graph, never the weights, and starts nothing.
        """

    @abc.abstractmethod
    def lower(self, model: ir.Model) -> ir.Model:
        """Rewrite canonical ops into what this runtime runs fast.

        Returns:
            A new model that may share weights with `model`, which is left as it is.

        Raises:
            UnsupportedError: The graph cannot be lowered.
        """

    @abc.abstractmethod
    def build(self, model: ir.Model, folder: Path) -> dict[str, Any]:
        """Write the engine of a lowered graph into `folder`, and prove that it opens.

        Args:
            model: What `lower` returned.
            folder: An existing folder; the engine's files go directly into it.

        Returns:
            Facts for the manifest, in JSON types, with at least the fields of
            `optc.bundle.manifest.Engine`: `files`, `roles` (role to file, with `prefill` and
            `decode`), `runtime`, `runtime_version`, `hardware`, `inputs` and `outputs` (each a
            list of `name`, `dtype`, `shape`).

        Raises:
            UnsupportedError: The runtime refuses the graph.
            OutputError: The folder cannot be written.
        """

    def speed(self, model: ir.Model) -> tuple[Speed, ...]:
        """Time the quantised products of a canonical graph beside the same in float, here and now.

        A target overrides this where it can: a few seconds, whatever the model is. Nothing is timed
        where nothing is quantised.
        """
        return ()

    def open_lightly(self, folder: Path) -> Session:
        """Open what `build` wrote to see that it opens, and not to run it.

        A target overrides this where the runtime can do so with less memory.

        Raises:
            ModelFileError, UnsupportedError: As `open`.
        """
        return self.open(folder)

    @abc.abstractmethod
    def open(self, folder: Path) -> Session:
        """Open what `build` wrote into `folder`.

        Raises:
            ModelFileError: The engine's files are missing or damaged.
            UnsupportedError: This machine cannot run them.
        """

    def build_prefill(self, model: ir.Model, folder: Path) -> dict[str, Any]:
        """Write a second engine beside that of `build`, for calls with many new tokens.

        Args:
            model: What `lower` returned, with the inputs and outputs of the first engine.
            folder: Where `build` wrote the first one.

        Returns:
            `file`, the one that plays the role; `files`, all files of both engines; `details`.

        Raises:
            UnsupportedError: The runtime refuses the graph, or the target has no such engine.
            OutputError: The folder cannot be written.
        """
        raise self._without_prefill()

    def open_prefill(self, folder: Path, *, lightly: bool = False) -> Session:
        """Open the engine that `build_prefill` wrote, by itself.

        Args:
            folder: The folder.
            lightly: Only to see that it opens.

        Raises:
            ModelFileError, UnsupportedError: As `open`.
        """
        raise self._without_prefill()

    def open_both(self, folder: Path, prefill_from: int) -> Session:
        """Open both engines as one session.

        Args:
            folder: The folder.
            prefill_from: New tokens of the longest row of a call from which on the prefill engine
                runs it.

        Raises:
            ModelFileError, UnsupportedError: As `open`.
        """
        raise self._without_prefill()

    def _without_prefill(self) -> UnsupportedError:
        return UnsupportedError(f"the target '{self.name}' has one engine for all calls")
