"""Ranges of activations from the distribution of all that calibration saw, by a given method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from optc.core.context import Context, Feeds
from optc.rewrite.quant_fit import Fit
from optc.rewrite.quant_histogram import Histogram
from optc.rewrite.quant_observe import fetch_groups, tokens_of
from optc.rewrite.quant_range import reach

__all__ = ["calibrated"]


def calibrated(
    model: ir.Model,
    fits: Mapping[str, Fit],
    channels: Mapping[str, int],
    method: str,
    ctx: Context,
    samples: Sequence[Feeds],
) -> dict[str, Fit]:
    """The same fits with the range that `method` gives; factors stay what they are.

    Args:
        model: The float graph; not changed.
        fits: Fit of each activation, by name.
        channels: Number of channels of each activation.
        method: One of `optc.rewrite.quant_range.METHODS`.
        ctx: Has the evaluator.
        samples: Calibration inputs.
    """
    if ctx.evaluate is None or not fits:
        return dict(fits)
    found: dict[str, Fit] = {}
    wanted = {name: channels[name] for name in fits}
    for group in fetch_groups(wanted, max(map(tokens_of, samples))):
        seen = {name: Histogram() for name in group}
        for got in ctx.evaluate(model, samples, fetch=group):
            for name in group:
                rows, factors = got.pop(name), fits[name].factors
                seen[name].add(rows if factors is None else rows / factors.astype(np.float32))
        for name, histogram in seen.items():
            largest = reach(histogram, method)
            found[name] = dataclasses.replace(fits[name], largest=largest)
        ctx.progress("calibrating ranges", len(found), len(fits))
    return {name: found[name] for name in fits}
