"""Which positions of a sample are padding: what is said there means nothing."""

from __future__ import annotations

from optc.core.context import Array, Feeds
from optc.ir.interface import TOKENS, token_name

__all__ = ["valid_positions"]


def valid_positions(inputs: Feeds) -> Array | None:
    """Which positions of [B,S] are not padding, from the input that is called a mask; or None.

    In an encoder-decoder S counts the decoder's tokens, and the encoder's mask is about others.
    """
    side = "" if token_name(inputs) in (None, TOKENS) else "decoder"
    masks = (a for n, a in inputs.items() if "mask" in n.lower() and n.startswith(side))
    return next((mask != 0 for mask in masks if mask.ndim == 2 and mask.dtype.kind in "iub"), None)
