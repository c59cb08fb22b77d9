"""Attention lowered for ONNX Runtime agrees with float64 numpy, whatever kernel is chosen."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from attention_cases import CAUSAL, EVERY_SPEC, GROWING, STATIC, Case, cases, check, label
from lowered_attention import make_inputs, run_lowered, typed_model

from optc.core.context import Array
from optc.ir.flash_attention import AttentionSpec
from optc.ir.save import save_model
from optc.plugins.flash_attention.reference import flash_attention, round_off
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort

FORMS = pytest.mark.parametrize("rows", [False, True], ids=["heads", "rows"])
CACHES = pytest.mark.parametrize("spec", [GROWING, STATIC], ids=["concat", "static"])
CAUSAL_ONES = pytest.mark.parametrize(
    "spec", [CAUSAL, GROWING, STATIC], ids=["no cache", "concat", "static"]
)


@FORMS
@pytest.mark.parametrize("case", cases("float32", "float16"), ids=str)
def test_conformance(case: Case, rows: bool) -> None:
    check(case, functools.partial(run_lowered, rows=rows))


def assert_agrees(
    spec: AttentionSpec, inputs: dict[str, Array], *, rows: bool = False
) -> dict[str, Array]:
    given, expected = run_lowered(spec, inputs, rows=rows), flash_attention(spec, inputs)
    tolerance = round_off(spec, inputs)
    np.testing.assert_allclose(given["output"], expected["output"], rtol=0, atol=tolerance)
    return given


@FORMS
@pytest.mark.parametrize("spec", EVERY_SPEC, ids=label)
def test_every_combination_of_parts_with_as_many_keys_as_queries(
    spec: AttentionSpec, rows: bool
) -> None:
    assert_agrees(spec, make_inputs(spec, keys=3), rows=rows)


@FORMS
@pytest.mark.parametrize("dim", [8, 12, 30, 32, 64, 128, 256])
@CAUSAL_ONES
def test_head_sizes(spec: AttentionSpec, dim: int, rows: bool) -> None:
    spec = dataclasses.replace(spec, scale=dim**-0.5)
    assert_agrees(spec, make_inputs(spec, keys=3, dims=(dim, dim)), rows=rows)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (8, 2), (4, 1)], ids=str)
@CAUSAL_ONES
def test_grouped_and_multi_query_heads(spec: AttentionSpec, heads: tuple[int, int]) -> None:
    assert_agrees(spec, make_inputs(spec, keys=3, heads=heads), rows=True)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 3])
@CAUSAL_ONES
def test_batches_of_tokens(spec: AttentionSpec, count: int, batch: int) -> None:
    assert_agrees(spec, make_inputs(spec, rows=count, keys=count, batch=batch), rows=True)


@pytest.mark.parametrize("count", [63, 64, 65, 200])
@pytest.mark.parametrize("window", [0, 1, 7, 100])
@CAUSAL_ONES
def test_counts_around_the_tiles_of_a_kernel(spec: AttentionSpec, window: int, count: int) -> None:
    spec = dataclasses.replace(spec, window=window)
    lengths = [count + 80, count + 90] if spec.lengths else None
    sizes = {"rows": count, "keys": count, "past": 90, "capacity": 300, "lengths": lengths}
    assert_agrees(spec, make_inputs(spec, **sizes), rows=True)


@CACHES
def test_what_lies_behind_a_rows_end_may_be_no_number(spec: AttentionSpec) -> None:
    inputs = make_inputs(spec, lengths=[5, 7])
    expected = flash_attention(spec, inputs)["output"]
    for name in ("past_key", "past_value"):
        inputs[name][0, :, 2:] = np.nan
    given = run_lowered(spec, inputs)["output"]
    np.testing.assert_allclose(given, expected, rtol=0, atol=round_off(spec, make_inputs(spec)))


@CAUSAL_ONES
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_half_precision(spec: AttentionSpec, softcap: float) -> None:
    spec = dataclasses.replace(spec, softcap=softcap)
    assert_agrees(spec, make_inputs(spec, keys=3, dtype=np.float16), rows=True)


@FORMS
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["bool", "bias"])
def test_a_row_that_sees_nothing_gives_zeros(kind: str, causal: bool, rows: bool) -> None:
    spec = AttentionSpec(0.2, causal=causal, mask=kind)
    inputs = make_inputs(spec, keys=3)
    mask = np.ones((2, 1, 3, 3), bool)
    mask[0, 0, 1] = False
    inputs["mask"] = mask if kind == "bool" else np.where(mask, 0, -np.inf).astype(np.float32)
    given = assert_agrees(spec, inputs, rows=rows)
    np.testing.assert_array_equal(given["output"][0, :, 1], 0)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("chunks", [[6], [4, 2], [2, 2, 2], [1] * 6], ids=str)
@CACHES
def test_one_lowered_graph_takes_prefill_chunks_and_single_steps(
    spec: AttentionSpec, chunks: list[int], window: int
) -> None:
    whole = dataclasses.replace(CAUSAL, window=window)
    tokens = make_inputs(whole, rows=6, keys=6)
    spec = dataclasses.replace(spec, window=window)
    capacity = 8 if spec.cache == "static" else 0
    cache = {f"past_{n}": np.zeros((2, 2, capacity, 32), np.float32) for n in ("key", "value")}
    example = {**tokens, **cache, "lengths": np.array([6, 6])}
    outputs, done = [], 0
    with open_model(Ort().lower(typed_model(spec, example))) as session:
        for count in chunks:
            chunk = {name: array[:, :, done : done + count] for name, array in tokens.items()}
            done += count
            given = [*session.run({**chunk, **cache, "lengths": np.full(2, done)}).values()]
            cache = dict(zip(cache, given[1:], strict=True))
            outputs.append(given[0])
    expected = flash_attention(whole, tokens)["output"]
    joined = np.concatenate(outputs, axis=2)
    np.testing.assert_allclose(joined, expected, rtol=0, atol=round_off(whole, tokens))


@CACHES
def test_a_cache_with_room_may_be_one_buffer_on_both_sides(
    spec: AttentionSpec, tmp_path: Path
) -> None:
    """What I/O binding is for: nothing is copied, and the numbers are the same."""
    inputs = make_inputs(spec, past=12, capacity=12, lengths=[5, 8])
    expected = flash_attention(spec, inputs)
    path = save_model(Ort().lower(typed_model(spec, inputs)), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    held = {n: onnxruntime.OrtValue.ortvalue_from_numpy(a.copy()) for n, a in inputs.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    binding.bind_output(names[0])
    for name, past in zip(names[1:], ("past_key", "past_value"), strict=True):
        binding.bind_ortvalue_output(name, held[past])
    session.run_with_iobinding(binding)
    output = binding.get_outputs()[0].numpy()
    np.testing.assert_allclose(output, expected["output"], rtol=0, atol=round_off(spec, inputs))
    for row, length in enumerate(inputs["lengths"]):
        buffer = held["past_key"].numpy()[row, :, :length]
        assert held["past_key"].shape()[2] == 12
        np.testing.assert_array_equal(buffer, expected["present_key"][row, :, :length])
