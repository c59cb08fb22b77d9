"""Masks [H|1,N,T] as arrays: what queries see of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optc.core.context import Array
from optc.ir.probe import Probe, ProbeFailure
from optc.ir.recount import TokenAxes
from optc.ir.thresholds import HIDDEN

__all__ = ["read_rows", "same_rows", "seen_keys", "shows_everything"]

_ROUNDING = 1e-6
_LENGTHS = (8, 142)


def seen_keys(positions: Array, keys: int) -> Array:
    """What causality shows to queries at these positions, boolean [N, keys]."""
    return np.asarray(np.arange(keys) <= positions[:, None])


def read_rows(model: ir.Model, axes: TokenAxes, mask: ir.Value, tokens: int) -> Array:
    """A mask that depends on sizes only, for a sequence: [H|1, tokens, tokens].

    Raises:
        ProbeFailure: It cannot be evaluated, or does not run over queries and keys.
    """
    content = Probe(model, axes.sizes(tokens)).run(mask)
    if content.shape[-2:] != (tokens, tokens):
        raise ProbeFailure("it does not run over queries and keys")
    return content.reshape(-1, tokens, tokens)


def same_rows(got: Array, wanted: Array, seen: Array) -> bool:
    """Whether two masks [H|1,N,T] mean the same where keys are seen, boolean [N,T].

    Booleans are compared as they are, numbers up to one number per row, which Softmax does not see.
    """
    shape = np.broadcast_shapes(got.shape, wanted.shape)
    if shape[-2:] != seen.shape:
        return False
    if got.dtype == np.bool_:
        return bool(((got == wanted) | ~seen).all())
    hidden = wanted <= HIDDEN
    if (((got <= HIDDEN) != hidden) & seen).any():
        return False
    counted = np.broadcast_to(seen & ~hidden, shape)
    numbers = [np.where(counted, x, 0).astype(np.float64) for x in (got, wanted)]
    apart = numbers[0] - numbers[1]
    highest = np.where(counted, apart, -np.inf).max(-1)
    lowest = np.where(counted, apart, np.inf).min(-1)
    size = max(1.0, float(np.abs(numbers).max()))
    return bool((highest - lowest <= _ROUNDING * size).all())


def shows_everything(model: ir.Model, axes: TokenAxes, mask: ir.Value) -> bool:
    """Whether a boolean mask hides nothing that causality lets a query see."""
    for tokens in _LENGTHS:
        try:
            rows = read_rows(model, axes, mask, tokens)
        except ProbeFailure:
            return False
        if rows.dtype != np.bool_ or not (rows | ~seen_keys(np.arange(tokens), tokens)).all():
            return False
    return True
