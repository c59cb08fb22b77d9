"""What `quant_metrics.py` adds up, beside the same by definition."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from quant_metrics import Score, Sums, engine_bytes, feeds_of, log_softmax, measure, opened

TOKENS, VOCABULARY = 150, 40  # more than one block, and not a multiple of it


def softmax(logits: np.ndarray) -> np.ndarray:
    found = np.exp(logits.astype(np.float64))
    return found / found.sum(-1, keepdims=True)


@pytest.fixture
def sequence() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    expected = draw.normal(size=(TOKENS, VOCABULARY)).astype(np.float32) * 3
    actual = expected + draw.normal(size=expected.shape).astype(np.float32)
    return expected, actual, draw.integers(0, VOCABULARY, TOKENS)


def test_the_scores_are_those_of_the_definitions(
    sequence: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    expected, actual, ids = sequence
    sums = Sums()
    sums.add(log_softmax(expected), actual, ids)
    found = sums.score()

    p, q = softmax(expected), softmax(actual)
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-5)
    assert found.top1 == (p.argmax(-1) == q.argmax(-1)).mean()
    following = np.arange(TOKENS - 1), ids[1:]
    perplexity = [math.exp(-np.log(d[:-1][following]).mean()) for d in (p, q)]
    assert found.ppl == pytest.approx(perplexity[0], rel=1e-5)
    assert found.ppl_ratio == pytest.approx(perplexity[1] / perplexity[0], rel=1e-5)
    assert found.tokens == TOKENS


def test_sequences_count_by_their_tokens(
    sequence: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Two in turn are the mean over all positions; the last of each predicts nothing known."""
    expected, actual, ids = sequence
    log_p, parts = log_softmax(expected), (slice(0, 50), slice(50, TOKENS))
    whole, single = Sums(), []
    for part in parts:
        whole.add(log_p[part], actual[part], ids[part])
        one = Sums()
        one.add(log_p[part], actual[part], ids[part])
        single.append(one.score())
    assert whole.score().kl == pytest.approx((50 * single[0].kl + 100 * single[1].kl) / 150)
    logs = [49 * math.log(single[0].ppl_ratio), 99 * math.log(single[1].ppl_ratio)]
    assert math.log(whole.score().ppl_ratio) == pytest.approx(sum(logs) / 148)


def test_a_model_beside_itself_is_perfect(
    sequence: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    expected, _, ids = sequence
    sums = Sums()
    sums.add(log_softmax(expected), expected + 5, ids)
    found = sums.score()
    assert found.top1 == 1
    assert found.ppl_ratio == pytest.approx(1, abs=1e-6)
    assert found.kl == pytest.approx(0, abs=1e-6)


def test_logits_that_are_not_finite_are_refused(
    sequence: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    expected, actual, ids = sequence
    actual[70, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Sums().add(log_softmax(expected), actual, ids)


def test_the_standard_error_is_that_of_a_fraction() -> None:
    assert Score(1, 0, 0.9, 10_000, 1).top1_error == pytest.approx(0.003)


def test_a_graph_gets_the_inputs_that_it_names() -> None:
    feeds = feeds_of(["position_ids", "input_ids"], np.array([[7, 8, 9]]))
    assert sorted(feeds) == ["input_ids", "position_ids"]
    assert feeds["position_ids"].tolist() == [[0, 1, 2]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Logits are a row of a table that lies in a file of its own."""
    table = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)
    graph = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        g (int64[B, S] input_ids) => (float[B, S, 6] logits) { logits = Gather(table, input_ids) }
    """)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    path = tmp_path / "model.onnx"
    onnx.save(graph, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_an_onnx_file_is_measured_on_kept_answers(model: Path, tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 3], [4, 5, 0, 1]])
    for folder in ("texts", "truth"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "texts" / "docs.npy", ids)
    with opened(model) as run:
        logits = np.concatenate([run(row[None]) for row in ids])
        np.save(tmp_path / "truth" / "docs.npy", log_softmax(logits))
        whole, first = measure(run, tmp_path), measure(run, tmp_path, sequences=1)
    assert (whole.tokens, first.tokens) == (8, 4)
    assert (whole.top1, first.top1) == (1, 1)


def test_the_size_of_a_file_holds_the_weights_that_it_names(model: Path) -> None:
    (model.parent / "another.bin").write_bytes(b"not named")
    weights = model.parent / "weights.bin"
    assert engine_bytes(model) == model.stat().st_size + weights.stat().st_size
    assert weights.stat().st_size >= 6 * 6 * 4


def test_the_size_of_a_bundle_is_that_of_its_engine(tmp_path: Path) -> None:
    manifest = {"engine": {"files": ["engine.onnx", "engine.onnx.data"]}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "engine.onnx").write_bytes(b"123")
    (tmp_path / "engine.onnx.data").write_bytes(b"12345")
    (tmp_path / "reference.npz").write_bytes(b"evidence")
    assert engine_bytes(tmp_path) == 8
