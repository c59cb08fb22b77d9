"""Ranges of activations, against the definitions written out."""

import numpy as np
import pytest

from optc.rewrite.quant_histogram import BINS, Histogram
from optc.rewrite.quant_range import METHODS, PERCENTILE, divergence, reach

SHAPES = ["normal", "heavy", "outliers", "one-sided"]


def _values(shape, seed=0, size=20000):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, size=size) if shape == "heavy" else rng.normal(size=size)
    if shape == "outliers":
        values[:5] *= 200
    if shape == "one-sided":
        values = np.maximum(values, 0)
    return values.astype(np.float32)


def _seen(values):
    histogram = Histogram()
    histogram.add(values)
    return histogram


def _error(values, largest):
    step = largest / 127
    return np.square(np.clip(np.rint(values / step), -127, 127) * step - values).mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_minmax_clips_nothing(shape):
    values = _values(shape)
    assert reach(_seen(values), "minmax") == np.abs(values).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_percentile_clips_its_share(shape):
    values, seen = _values(shape), _seen(_values(shape))
    found = reach(seen, "percentile")
    share = PERCENTILE / 100
    ends = [np.quantile(np.abs(values), share, method=method) for method in ("lower", "higher")]
    assert ends[0] - seen.end / BINS <= found <= ends[1] + seen.end / BINS


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_finds_a_range_as_good_as_the_best_of_a_thousand(shape):
    values = _values(shape)
    best = min(_error(values, np.abs(values).max() * part) for part in np.geomspace(2e-3, 1, 1000))
    assert _error(values, reach(_seen(values), "mse")) <= 1.02 * best


def test_mse_clips_normal_noise_and_keeps_even_noise():
    """Gaussian noise at 8 bits is clipped at about four standard deviations."""
    noise = np.random.default_rng(1).normal(size=1_000_000).astype(np.float32)
    assert 3.7 < reach(_seen(noise), "mse") < 4.3
    even = np.random.default_rng(2).uniform(-1, 1, 100_000).astype(np.float32)
    assert reach(_seen(even), "mse") > 0.99


def _plain_divergence(counts, end):
    """As the talk has it, one bin at a time."""
    reference = list(counts[:end])
    reference[-1] += sum(counts[end:])
    candidate = [0.0] * end
    for level in range(128):
        bins = range(level * end // 128, (level + 1) * end // 128)
        filled = [index for index in bins if counts[index] > 0]
        for index in filled:
            candidate[index] = sum(counts[place] for place in bins) / len(filled)
    total, divergence = 0.0, 0.0
    for index in range(end):
        if reference[index] > 0 and candidate[index] == 0:
            return np.inf
        if reference[index] > 0:
            part = reference[index] / sum(reference)
            divergence += part * np.log(part / (candidate[index] / sum(candidate)))
            total += part
    assert total == pytest.approx(1)
    return divergence


@pytest.mark.parametrize("end", [128, 129, 200, 384, 511, 512])
@pytest.mark.parametrize("shape", SHAPES)
def test_divergence_is_that_of_the_talk(shape, end):
    values = np.abs(_values(shape, size=3000)).astype(np.float64)
    counts, _ = np.histogram(values, 512, (0, values.max()))
    counts = counts.astype(np.float64)
    expected = _plain_divergence(counts, end)
    assert divergence(counts, end) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_entropy_takes_a_divergence_among_the_smallest():
    seen = _seen(_values("heavy"))
    counts = seen.counts.reshape(2048, -1).sum(axis=1).astype(np.float64)
    counts[0] = counts[1]
    found = round(reach(seen, "entropy") / seen.end * 2048)
    every = [divergence(counts, end) for end in np.flatnonzero(counts) + 1 if end >= 128]
    assert len(every) > 50
    assert divergence(counts, found) <= np.quantile(every, 0.2) < np.median(every)


def test_entropy_leaves_rare_outliers_out():
    values = _values("outliers")
    assert reach(_seen(values), "entropy") < 0.5 * np.abs(values).max()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_seen_is_a_range_of_nothing(method):
    assert reach(Histogram(), method) == 0
    assert reach(_seen(np.zeros(10, np.float32)), method) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1e-30, 1.0, 1e30])
def test_one_magnitude_is_its_own_range(method, value):
    values = np.full(100, value, np.float32)
    assert reach(_seen(values), method) == pytest.approx(float(values[0]), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_units_do_not_matter(method, shape):
    values = _values(shape)
    small, large = (reach(_seen(values * np.float32(unit)), method) for unit in (2**-9, 2**9))
    assert large == pytest.approx(2**18 * small, rel=1e-6)


def test_unknown_methods_are_named():
    with pytest.raises(ValueError, match="no method 'median' among minmax, percentile"):
        reach(Histogram(), "median")
