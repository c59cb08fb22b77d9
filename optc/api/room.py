"""What a build is told of its model before and after: an engine already, more room than it has."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from optc.bundle.layout import MANIFEST
from optc.core.errors import InputError
from optc.ir.interface import cache_ports, ports
from optc.runtime.limits import Limit, configured_limit
from optc.runtime.row import Finish
from optc.targets.ort import ENGINE
from optc.targets.ort_cache import IN_PLACE, MOST_TOKENS

__all__ = ["check_not_built", "room_note"]


def check_not_built(model: ir.Model, path: Path) -> None:
    """Refuse what a build has written: passes would find nothing, or take kernels for the model.

    Raises:
        InputError: It is an engine.
    """
    in_bundle = path.name == ENGINE and (path.parent / MANIFEST).is_file()
    if not in_bundle and IN_PLACE not in model.metadata_props:
        return
    cached = ", its cache is there already" if cache_ports(ports(model.graph.inputs)) else ""
    remedy = "give the model that it was built from"
    raise InputError(f"it is a built engine{cached}", where=str(path), remedy=remedy)


def room_note(lowered: ir.Model, folder: Path) -> str | None:
    """Say that caches have more room than the model has positions, or was trained for.

    Args:
        lowered: What the engine is made of.
        folder: Where the model lies, with its `config.json`.
    """
    caches = cache_ports(ports(lowered.graph.inputs))
    sizes = [c.capacity for c in caches if c.capacity is not None and not c.is_cross]
    most = lowered.metadata_props.get(MOST_TOKENS)
    limits = [Limit(int(most), "the model has positions for", Finish.CONTEXT)] if most else []
    configured = configured_limit(folder)
    limits += [] if configured is None else [configured]
    least = min(limits, key=lambda limit: limit.tokens, default=None)
    if not sizes or least is None or min(sizes) <= least.tokens:
        return None
    return f"kv:max={min(sizes)} has room that is never used: {least}"
