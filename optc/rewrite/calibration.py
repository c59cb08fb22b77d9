"""Calibration samples as a graph with a fixed cache can take them."""

from __future__ import annotations

from collections.abc import Sequence

from optc.core.context import Array, Feeds
from optc.core.session import Port
from optc.ir.interface import cache_ports, token_name

__all__ = ["cut_to_cache"]


def cut_to_cache(
    samples: Sequence[Feeds], inputs: Sequence[Port]
) -> tuple[Sequence[Feeds], tuple[str, ...]]:
    """Cut samples that are longer than the cache to what it holds.

    What a causal graph computes for a sample's first tokens does not depend on the others, so
    calibration sees less, and nothing wrong.

    Args:
        samples: Inputs by name; those that have the axes of the token input [B,S] are cut along S,
            and of an encoder-decoder only the tokens.
        inputs: What the graph takes.

    Returns:
        The samples, and what to say about it: nothing where all fit.
    """
    caches = cache_ports(inputs)
    room = min((c.capacity for c in caches if c.capacity and not c.is_cross), default=None)
    tokens = token_name(port.name for port in inputs)
    if room is None or tokens is None:
        return samples, ()
    long = sum(sample[tokens].shape[1] > room for sample in samples)
    if not long:
        return samples, ()
    alone = any(cache.is_cross for cache in caches)
    cut = [_cut(sample, tokens, room, alone=alone) for sample in samples]
    note = f"calibration samples were cut to {room} tokens, which is what the cache holds"
    return cut, (f"{note}: {long} of {len(samples)}",)


def _cut(sample: Feeds, tokens: str, room: int, *, alone: bool) -> dict[str, Array]:
    axes = sample[tokens].shape[:2]

    def belongs(name: str, array: Array) -> bool:
        return name == tokens or (not alone and array.shape[:2] == axes)

    return {name: a[:, :room] if belongs(name, a) else a for name, a in sample.items()}
