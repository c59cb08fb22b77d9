"""What passes and targets there are: ours, those planned, those of installed extensions."""

from __future__ import annotations

import optc.passes
import optc.targets
from optc.core.base import Pass
from optc.core.registry import Registry
from optc.targets.base import Target

__all__ = ["passes", "targets"]

_PLANNED_PASSES = {
    "prune": "structured pruning",
    "spec": "speculative decoding in the graph",
    "precision": "half precision, and wider where it matters",
}


def passes() -> Registry[Pass]:
    """The passes that can be named in a pipeline."""
    # mypy: a registry never makes an instance of its abstract base.
    base: type[Pass] = Pass  # type: ignore[type-abstract]
    return Registry("pass", "passes", base, optc.passes.TABLE, planned=_PLANNED_PASSES)


def targets() -> Registry[Target]:
    """The targets that a bundle can be built for."""
    base: type[Target] = Target  # type: ignore[type-abstract]
    return Registry("target", "targets", base, optc.targets.TABLE, planned=optc.targets.PLANNED)
