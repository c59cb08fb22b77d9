"""What a build is told of its model before and after: an engine already, more room than it has."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from optc.bundle.layout import MANIFEST
from optc.core.context import Log
from optc.core.errors import InputError
from optc.ir.interface import cache_ports, ports
from optc.runtime.limits import Limit, configured_limit, least, positions_limit
from optc.targets.ort import ENGINE, PREFILL
from optc.targets.ort_cache import IN_PLACE, MOST_TOKENS

__all__ = ["check_not_built", "model_limit", "tell_room"]


def check_not_built(model: ir.Model, path: Path) -> None:
    """Refuse what a build has written: passes would find nothing, or take kernels for the model.

    Raises:
        InputError: It is an engine.
    """
    in_bundle = path.name in (ENGINE, PREFILL) and (path.parent / MANIFEST).is_file()
    if not in_bundle and IN_PLACE not in model.metadata_props:
        return
    cached = ", its cache is there already" if cache_ports(ports(model.graph.inputs)) else ""
    remedy = "give the model that it was built from"
    raise InputError(f"it is a built engine{cached}", where=str(path), remedy=remedy)


def tell_room(lowered: ir.Model, folder: Path, log: Log) -> None:
    """Say that caches have more room than the model has positions, or was trained for.

    Args:
        lowered: What the engine is made of.
        folder: Where the model lies, with its `config.json`.
        log: Told, if it is so.
    """
    caches = cache_ports(ports(lowered.graph.inputs))
    sizes = [c.capacity for c in caches if c.capacity is not None and not c.is_cross]
    limit = model_limit(lowered, folder)
    if sizes and limit is not None and min(sizes) > limit.tokens:
        log(f"note: kv:max={min(sizes)} has room that is never used: {limit}")


def model_limit(lowered: ir.Model, folder: Path | None) -> Limit | None:
    """Most tokens of a sequence: what a lowered graph has positions for, or the model's files say.

    Args:
        lowered: The graph.
        folder: Has the model's files; None where there are none.
    """
    most = lowered.metadata_props.get(MOST_TOKENS)
    return least([positions_limit(int(most)) if most else None, configured_limit(folder)])
