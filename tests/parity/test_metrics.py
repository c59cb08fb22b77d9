"""Metrics equal their textbook formulas, and nothing that is not finite is averaged away."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from optc.parity.metrics import Accumulator, Metrics
from optc.parity.padding import valid_positions

BATCH, TOKENS, VOCAB = 2, 5, 11


def sample(seed: int, noise: float = 0.3) -> tuple[dict, dict, dict]:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((BATCH, TOKENS, VOCAB)).astype(np.float32) * 3
    other = (logits + noise * rng.standard_normal(logits.shape)).astype(np.float32)
    ids = rng.integers(0, VOCAB, (BATCH, TOKENS))
    return {"logits": logits}, {"logits": other}, {"input_ids": ids}


def measure(*samples: tuple[dict, dict, dict], causal: bool = True) -> Metrics:
    accumulator = Accumulator(causal=causal)
    for expected, actual, inputs in samples:
        accumulator.add(expected, actual, inputs)
    return accumulator.metrics()


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_whole_output_metrics_are_those_of_all_samples_stacked() -> None:
    samples = [sample(seed) for seed in range(3)]
    e = np.concatenate([s[0]["logits"].ravel() for s in samples]).astype(np.float64)
    a = np.concatenate([s[1]["logits"].ravel() for s in samples]).astype(np.float64)
    found = measure(*samples)
    assert found.max_abs == np.abs(e - a).max()
    assert found.max_rel == np.abs(e - a).max() / np.abs(e).max()
    assert found.rel_l2 == pytest.approx(np.linalg.norm(e - a) / np.linalg.norm(e), rel=1e-12)
    cosine = e @ a / np.linalg.norm(e) / np.linalg.norm(a)
    assert found.cosine == pytest.approx(cosine, rel=1e-12)


def test_token_metrics_are_those_of_all_positions_stacked() -> None:
    samples = [sample(seed) for seed in range(3)]
    p = np.concatenate([log_softmax(s[0]["logits"]).reshape(-1, VOCAB) for s in samples])
    q = np.concatenate([log_softmax(s[1]["logits"]).reshape(-1, VOCAB) for s in samples])
    found = measure(*samples)
    assert found.kl == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-12)
    assert found.top1 == (p.argmax(-1) == q.argmax(-1)).mean()

    nll = np.zeros(2)
    for expected, actual, inputs in samples:
        following = inputs["input_ids"][:, 1:, None]
        for which, outputs in enumerate((expected, actual)):
            scores = log_softmax(outputs["logits"])[:, :-1]
            nll[which] -= np.take_along_axis(scores, following, -1).sum()
    count = len(samples) * BATCH * (TOKENS - 1)
    assert found.ppl_ratio == pytest.approx(math.exp((nll[1] - nll[0]) / count), rel=1e-12)


def test_blocks_give_the_sum_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(sample(0))
    monkeypatch.setattr("optc.parity.metrics._BLOCK", 3 * VOCAB)  # 3 rows at a time, of 10
    blocks = measure(sample(0))
    for key, value in whole.as_dict().items():
        assert blocks.as_dict()[key] == (pytest.approx(value) if value is not None else None)


def test_equal_outputs_are_at_distance_zero() -> None:
    expected, _, inputs = sample(0)
    found = measure((expected, expected, inputs))
    assert (found.max_abs, found.rel_l2, found.kl, found.top1, found.ppl_ratio) == (0, 0, 0, 1, 1)
    assert found.cosine == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_one_value_that_is_not_finite_poisons_everything(bad: float, order: list[int]) -> None:
    spoilt = sample(1)
    spoilt[1]["logits"][1, 2, 3] = bad
    both = [sample(0), spoilt]
    found = measure(*(both[i] for i in order))
    assert found.faults == ("the output 'logits' has values that are not finite",)
    for key in ("max_abs", "max_rel", "rel_l2", "cosine", "kl", "top1", "ppl_ratio"):
        assert math.isnan(getattr(found, key))


def test_a_value_that_is_not_finite_in_the_reference_only_is_a_fault() -> None:
    expected, actual, inputs = sample(0)
    expected["logits"][0, 0, 0] = -math.inf
    assert measure((expected, actual, inputs)).faults


def test_the_same_infinity_on_both_sides_is_no_difference() -> None:
    """Models that forbid tokens give -inf logits."""
    expected, actual, inputs = sample(0)
    plain = measure((expected, actual, inputs))
    for outputs in (expected, actual):
        outputs["logits"] = np.concatenate(
            [outputs["logits"], np.full((BATCH, TOKENS, 1), -np.inf, np.float32)], axis=-1
        )
    found = measure((expected, actual, inputs))
    assert found.faults == ()
    assert found.kl == pytest.approx(plain.kl)
    assert (found.max_abs, found.top1) == (plain.max_abs, plain.top1)


def test_a_missing_output_is_a_fault() -> None:
    expected, _, inputs = sample(0)
    assert measure((expected, {}, inputs)).faults == ("the output 'logits' is missing",)


def test_a_wrong_shape_is_a_fault() -> None:
    expected, actual, inputs = sample(0)
    actual["logits"] = actual["logits"][:, -1:]
    (fault,) = measure((expected, actual, inputs)).faults
    assert fault == "the output 'logits' has shape [2, 1, 11], the reference's is [2, 5, 11]"


def test_no_output_at_all_is_a_fault() -> None:
    assert Accumulator().metrics().faults == ("no output was compared",)


def test_padded_positions_do_not_count() -> None:
    expected, actual, inputs = sample(0)
    mask = np.ones((BATCH, TOKENS), np.int64)
    mask[1, 3:] = 0
    spoilt = {"logits": actual["logits"].copy()}
    spoilt["logits"][1, 3:] = np.nan
    masked = inputs | {"attention_mask": mask}
    found = measure((expected, spoilt, masked))
    assert not found.faults
    parts = [  # the same positions, as two samples without padding
        ({"logits": expected["logits"][r, :n]}, {"logits": actual["logits"][r, :n]}, ids)
        for r, n in ((slice(0, 1), 5), (slice(1, 2), 3))
        for ids in [{"input_ids": inputs["input_ids"][r, :n]}]
    ]
    wanted = measure(*parts).as_dict()
    assert found.as_dict() == {
        k: pytest.approx(v) if isinstance(v, float) else v for k, v in wanted.items()
    }


def test_a_pooled_output_is_compared_whole_whatever_the_mask() -> None:
    pooled = np.ones((2, 5), np.float32)
    moved = pooled.copy()
    moved[1, 4] = 3
    mask = {"attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])}
    assert measure(({"pooled": pooled}, {"pooled": moved}, mask)).max_abs == 2


def test_of_several_outputs_the_worst_counts() -> None:
    small, large = np.full(4, 1e-3), np.full(4, 1e3)
    expected = {"a": small, "b": large}
    found = measure((expected, {"a": small * 1.5, "b": large}, {}))
    assert found.rel_l2 == pytest.approx(0.5)
    assert found.max_rel == pytest.approx(0.5)
    assert found.kl is None


def test_outputs_without_tokens_have_no_token_metrics() -> None:
    expected, actual, _ = sample(0)
    found = measure((expected, actual, {"pixels": np.zeros((2, 3))}))
    assert (found.kl, found.top1, found.ppl_ratio) == (None, None, None)


def test_scores_of_labels_are_not_taken_for_tokens() -> None:
    expected, actual, inputs = sample(0)
    inputs["input_ids"][0, 0] = VOCAB  # a token id beyond the last axis of the logits
    assert measure((expected, actual, inputs)).kl is None


def test_logits_that_do_not_predict_the_next_token_have_no_perplexity() -> None:
    found = measure(sample(0), causal=False)
    assert found.kl is not None
    assert found.ppl_ratio is None


def test_half_precision_is_compared_in_double() -> None:
    expected = {"y": np.full(1 << 14, 60000, np.float16)}
    found = measure((expected, expected, {}))
    assert (found.rel_l2, found.cosine) == (0, pytest.approx(1))


@pytest.mark.parametrize(
    ("expected", "actual", "rel_l2", "cosine"),
    [([0, 0], [0, 0], 0, 1), ([0, 0], [0, 1], math.inf, 0), ([1, 0], [0, 0], 1, 0)],
)
def test_outputs_of_zeros(
    expected: list[int], actual: list[int], rel_l2: float, cosine: float
) -> None:
    found = measure(({"y": np.array(expected)}, {"y": np.array(actual)}, {}))
    assert (found.rel_l2, found.cosine) == (rel_l2, cosine)


def test_an_empty_output_is_equal_to_an_empty_output() -> None:
    empty = {"y": np.zeros((0, 3), np.float32)}
    assert measure((empty, empty, {})).rel_l2 == 0


def test_worst_takes_each_metric_from_the_worse_side_and_keeps_nan() -> None:
    one = Metrics(1, 0.1, 0.9, kl=0.3, top1=0.8, ppl_ratio=1.1, greedy_equal=3, greedy_total=4)
    two = Metrics(2, 0.05, 0.99, kl=0.1, top1=0.7, ppl_ratio=1.2)
    assert one.worst(two) == Metrics(2, 0.1, 0.9, 0.3, 0.7, 1.2, 3, 4)
    nan = Metrics(math.nan, math.nan, math.nan, faults=("broken",))
    for worst in (one.worst(nan), nan.worst(one)):
        assert math.isnan(worst.max_abs)
        assert math.isnan(worst.cosine)
        assert worst.faults == ("broken",)


def test_as_dict_is_strict_json() -> None:
    found = measure(({"y": np.zeros(2)}, {"y": np.ones(2)}, {}))
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["rel_l2"] is None


@pytest.mark.parametrize("name", ["attention_mask", "mask"])
def test_positions_of_padding_are_not_judged_whatever_the_mask_is_called(name: str) -> None:
    inputs = {"x": np.zeros((1, 3)), name: np.array([[1, 1, 0]])}
    assert valid_positions(inputs).tolist() == [[True, True, False]]
