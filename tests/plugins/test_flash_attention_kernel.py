"""Our Triton kernels pass the conformance suite, run by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from attention_cases import Case, cases, check, make_inputs
from kernel_in_interpreter import bound, interpreter, realisation

from optc.ir.flash_attention import AttentionSpec

# The cache is updated before the kernel reads it: how it grows makes no difference, one is enough.
EVERY_CASE = [
    case
    for case in cases("float32", "float16", "bfloat16")
    if case.spec.cache != "concat" and not case.spec.int8
]
FEW_ROWS = [case for case in EVERY_CASE if case.sizes.get("rows", 3) <= 4]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with interpreter() as pool:
        yield pool


@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_prefill_conforms(case: Case, pool: ProcessPoolExecutor) -> None:
    check(case, realisation(pool, splits=0), bound)


@pytest.mark.parametrize("case", FEW_ROWS, ids=str)
def test_decode_conforms(case: Case, pool: ProcessPoolExecutor) -> None:
    check(case, realisation(pool, splits=3), bound)


@pytest.mark.parametrize("splits", [0, 1, 3])
@pytest.mark.parametrize("scale", [0.0, -0.2])
def test_the_factor_on_the_scores_may_be_anything(
    scale: float, splits: int, pool: ProcessPoolExecutor
) -> None:
    case = Case("scale", AttentionSpec(scale, causal=True))
    check(case, realisation(pool, splits), bound)


@pytest.mark.parametrize("splits", [0, 1, 3])
def test_what_lies_behind_a_rows_end_may_be_no_number(
    splits: int, pool: ProcessPoolExecutor
) -> None:
    """A cache starts uninitialised; nothing times NaN would still be NaN."""
    spec = AttentionSpec(0.2, causal=True, lengths=True)
    inputs = make_inputs(spec, keys=70, lengths=[33, 70])
    clean = realisation(pool, splits)(spec, inputs)["output"]
    for name in ("key", "value"):
        inputs[name][0, :, 33:] = np.nan
    np.testing.assert_array_equal(realisation(pool, splits)(spec, inputs)["output"], clean)


@pytest.mark.parametrize("splits", [0, 1, 3])
def test_nothing_but_the_lowest_float_is_an_average(splits: int, pool: ProcessPoolExecutor) -> None:
    """In base 2 the lowest float would overflow to -inf, and the average become zeros."""
    spec = AttentionSpec(0.2, mask="bias")
    inputs = make_inputs(spec)
    inputs["mask"] = np.full_like(inputs["mask"], np.finfo(np.float32).min)
    average = inputs["value"].mean(axis=2, keepdims=True).repeat(2, axis=1)
    output = realisation(pool, splits)(spec, inputs)["output"]
    np.testing.assert_allclose(output, np.broadcast_to(average, output.shape), rtol=0, atol=1e-6)


def test_splits_that_have_no_keys_count_for_nothing(pool: ProcessPoolExecutor) -> None:
    """Seven keys are one tile: of eight splits, seven stay empty."""
    check(Case("splits", AttentionSpec(0.2, causal=True)), realisation(pool, splits=8), bound)
