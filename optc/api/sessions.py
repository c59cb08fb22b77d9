"""Open what a bundle holds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from optc.api.registries import targets
from optc.bundle.manifest import Engine
from optc.bundle.read import Bundle, read_bundle
from optc.core.context import Progress, no_progress
from optc.core.errors import BundleError, UnsupportedError
from optc.core.session import Session
from optc.runtime.limits import Limit, configured_limit
from optc.runtime.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from optc.targets.base import Target

__all__ = ["OpenBundle", "open_bundle", "opened", "target_of"]


@dataclasses.dataclass(frozen=True)
class OpenBundle:
    """A bundle that was checked, with its engine open.

    Attributes:
        bundle: The folder and its manifest.
        session: Runs the engine.
    """

    bundle: Bundle
    session: Session

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer.

        Raises:
            UnsupportedError: It carries none.
        """
        folder = self.bundle.tokenizer
        if folder is None or not has_tokenizer(folder):
            raise UnsupportedError(
                "the bundle carries no tokenizer",
                where=self.bundle.given,
                remedy="put the model's tokenizer.json beside its .onnx file and build again",
            )
        return load_tokenizer(folder)

    @property
    def limit(self) -> Limit | None:
        """Most tokens of a sequence, as the model's configuration says; None if it does not."""
        return configured_limit(self.bundle.tokenizer)


@contextlib.contextmanager
def open_bundle(
    path: str | Path, *, verify_hashes: bool = True, progress: Progress = no_progress
) -> Iterator[OpenBundle]:
    """Check a bundle and open its engine; closed at the end of the block.

    Args:
        path: The bundle's folder.
        verify_hashes: Whether to read every byte before anything is opened.
        progress: Told the bytes checked so far.

    Raises:
        BundleError: It is damaged or unsafe.
        UnsupportedError: This machine cannot run it.
    """
    bundle = read_bundle(path, verify_hashes=verify_hashes, progress=progress)
    with opened(target_of(bundle), bundle.folder, bundle.manifest.engine) as session:
        yield OpenBundle(bundle, session)


def target_of(bundle: Bundle) -> Target:
    """The target that a bundle was built for.

    Raises:
        BundleError: The manifest gives a role to another file than the target opens for it.
        UnsupportedError: This machine has not what it needs.
    """
    target, engine = targets().load(bundle.manifest.target)(), bundle.manifest.engine
    wanted = target.roles(engine.prefill_from is not None)
    if wanted is not None and engine.roles != wanted:
        said, opens = (
            ", ".join(f"{k} {v}" for k, v in sorted(r.items())) for r in (engine.roles, wanted)
        )
        problem = f"its engines are {said}; the target '{target.name}' opens {opens}"
        raise BundleError(problem, where=f"{bundle.given}: engine.roles")
    reason = target.unavailable()
    if reason is not None:
        raise UnsupportedError(reason, where=bundle.given)
    return target


@contextlib.contextmanager
def opened(
    target: Target, folder: Path, engine: Engine, *, role: str | None = None, lightly: bool = False
) -> Iterator[Session]:
    """Open the engine in `folder`, and give back its memory at the end of the block.

    Args:
        target: The target that built it.
        folder: The bundle.
        engine: What its manifest says of it.
        role: `prefill` or `decode`, to have that engine alone; by default all there are, each for
            its calls.
        lightly: Whether only to see that it opens.
    """
    session = _open(target, folder, engine, role, lightly)
    with contextlib.ExitStack() as stack:
        if isinstance(session, contextlib.AbstractContextManager):
            stack.enter_context(session)
        yield session


def _open(target: Target, folder: Path, engine: Engine, role: str | None, lightly: bool) -> Session:
    start = engine.prefill_from
    if start is not None and role == "prefill":
        return target.open_prefill(folder, lightly=lightly)
    if lightly:
        return target.open_lightly(folder)
    if start is not None and role is None:
        return target.open_both(folder, start)
    return target.open(folder)
