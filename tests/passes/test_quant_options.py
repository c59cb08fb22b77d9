"""Options of `quant`: ranges by each method, limits by scheme, and what means nothing together."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from quant_graphs import K, linear, quantise, samples

from optc.core.context import Feeds
from optc.core.errors import UsageError
from optc.passes.quant import Quant
from optc.rewrite.quant_histogram import Histogram
from optc.rewrite.quant_range import METHODS, reach
from optc.rewrite.quant_scheme import SCHEMES, limits_in_words


def heavy(rng: np.random.Generator) -> tuple[list[Feeds], Histogram]:
    """Calibration data with a heavy tail, and the magnitudes of what is not held out of it."""
    data = [{"x": rng.standard_t(4, (1, 200, K)).astype(np.float32)} for _ in range(4)]
    seen = Histogram()
    for feeds in data[:3]:
        seen.add(feeds["x"])
    return data, seen


def scale(model: ir.Model) -> float:
    down = next(n for n in model.graph if n.op_type == "QuantizeLinear")
    return float(down.inputs[1].const_value.numpy())


def test_ranges_are_calibrated_by_the_method_asked_for(rng):
    data, seen = heavy(rng)
    expected = {method: reach(seen, method) for method in METHODS}
    ordered = sorted(expected.values())
    assert min(np.divide(ordered[1:], ordered[:-1])) > 1.01  # none can stand in for another
    found = {}
    for method in METHODS:
        model = linear(rng)
        quantise(model, data, calibrate=method, smooth="off")
        found[method] = 127 * scale(model)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_the_last_step_of_e4m3_is_448(method, rng):
    (data, seen), model = heavy(rng), linear(rng)
    quantise(model, data, scheme="fp8", calibrate=method, smooth="off")
    assert 448 * scale(model) == pytest.approx(reach(seen, method), rel=1e-6)


def test_the_help_says_which_limit_a_scheme_has():
    words = "auto: 0.1 for int4, 0.03 for fp8, else 0.011"
    assert words in Quant.__dataclass_fields__["max_drift"].metadata["help"]
    assert limits_in_words("max_error") == "0.1 for int4, else 0.03"


WRONG = {
    "groups": ({"scheme": "int8", "group": 32}, "no groups", "quant:group"),
    "symmetric": ({"scheme": "w8", "symmetric": True}, "never has zero points", "quant:symmetric"),
    "method": ({"scheme": "w8", "method": "gptq"}, "4-bit weights", "quant:method"),
    "tables": ({"scheme": "w8", "vocabulary": 4}, "8 bits everywhere", "quant:vocabulary"),
    "ranges": ({"scheme": "w8", "calibrate": "mse"}, "no ranges", "quant:calibrate"),
    "channels": ({"scheme": "int4", "smooth": "off"}, "rounds no activations", "quant:smooth"),
    "entropy": ({"scheme": "fp8", "calibrate": "entropy"}, "steps of one size", "quant:calibrate"),
    "error": ({"scheme": "fp8", "calibrate": "mse"}, "steps of one size", "quant:calibrate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_mean_nothing_together_are_refused(case, rng):
    options, words, where = WRONG[case]
    with pytest.raises(UsageError, match=words) as caught:
        quantise(linear(rng), samples(rng), **options)
    assert caught.value.where == where


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_true_of_every_scheme_may_be_said(scheme, rng):
    said = {"method": "rtn", "vocabulary": 8, "symmetric": False, "smooth": "auto"}
    assert quantise(linear(rng), samples(rng), scheme=scheme, **said).sites == ("y",)
