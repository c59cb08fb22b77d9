"""Sizes at which a graph is probed: small, and none like another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["probe_sizes"]

_LARGE = (101, 1009, 10007)  # images and sounds are cut down before they are tokens


def probe_sizes(model: ir.Model) -> dict[str, int]:
    """A size for each symbol of the inputs, such that every shape in the graph has elements."""
    symbols = {s for v in model.graph.inputs if v.shape for s in v.shape.free_symbols()}
    dims = {d for n in model.graph for v in n.outputs if v.shape for d in v.shape}
    free = (size for size in _primes() if size not in dims)  # no size is like another
    sizes = dict(zip(sorted(symbols), free, strict=False))
    expressions = [d for d in dims if isinstance(d, ir.SymbolicDim) and d.value is not None]
    for large in _LARGE:
        empty = {s for d in expressions if _is_empty(d, sizes) for s in d.free_symbols()}
        if not empty & set(sizes):
            break
        sizes |= {s: large + 2 * i for i, s in enumerate(sorted(empty & set(sizes)))}
    return sizes


def _primes() -> Iterator[int]:
    return (n for n in itertools.count(2) if n != 3 and all(n % d for d in range(2, n)))


def _is_empty(dim: ir.SymbolicDim, sizes: dict[str, int]) -> bool:
    size = dim.evaluate(sizes)
    return isinstance(size, int) and size <= 0
