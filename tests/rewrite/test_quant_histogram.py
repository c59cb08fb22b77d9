"""Histograms of a stream: the same whatever the order and the parts it came in."""

import numpy as np
import pytest

from optc.rewrite.quant_histogram import BINS, Histogram


def _values(seed=0, size=5000):
    return np.random.default_rng(seed).standard_t(2, size=size).astype(np.float32)


def _counted(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def test_every_magnitude_is_counted_in_its_bin():
    values = _values()
    histogram = _counted(values)
    expected, _ = np.histogram(np.abs(values).astype(np.float64), histogram.edges)
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.largest == np.abs(values).max()
    assert histogram.end / 2 < histogram.largest <= histogram.end


@pytest.mark.parametrize("growth", [1.0, 3.0, 1e6])
def test_the_order_and_size_of_the_parts_do_not_matter(growth):
    parts = [_values(seed) * np.float32(growth**seed) for seed in range(4)]
    whole = _counted(np.concatenate(parts).reshape(4, -1))
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        found = _counted(*(parts[index] for index in order))
        np.testing.assert_array_equal(found.counts, whole.counts)
        assert (found.end, found.largest) == (whole.end, whole.largest)


@pytest.mark.parametrize("values", [np.zeros(7, np.float32), np.zeros(0, np.float32)])
def test_zeros_and_nothing_have_no_width(values):
    histogram = _counted(values)
    assert (histogram.end, histogram.largest, histogram.counts.sum()) == (0, 0, values.size)


@pytest.mark.parametrize("value", [1e-42, 1.0, 3.4e38])
def test_the_largest_and_the_smallest_numbers_have_bins(value):
    histogram = _counted(np.array([value, -value, 0], np.float32))
    assert histogram.counts[0] == 1
    assert histogram.counts[BINS // 2 :].sum() == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        _counted(np.array([1, value], np.float32))
