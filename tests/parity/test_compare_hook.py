"""Evidence after every pass, and who is blamed for what."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_lm import OrtModel, open_model, plain_lm
from weight_passes import Cut, Scale, Shake

from optc.core.context import Context
from optc.core.errors import ParityError, UnsupportedError
from optc.core.hooks import TimeHook
from optc.core.pipeline import Pipeline
from optc.ir.reference import Reference
from optc.parity.baseline import Baseline
from optc.parity.compare import compare
from optc.parity.hook import CompareHook, weight_bytes
from optc.parity.policy import Limits, Policy

LOOSE = Policy.default(["measured"])
EXACT = Policy.default(["exact"])


def run(reference: Reference, *passes, policy: Policy | None, force: bool = False) -> CompareHook:
    hook = CompareHook(open_model, reference, policy, force=force)
    Pipeline(passes).run(plain_lm(), Context(), [TimeHook(), hook])
    return hook


def test_the_first_row_is_the_input_graph(reference: Reference) -> None:
    hook = run(reference, policy=EXACT)
    (row,) = hook.rows
    assert row.name == "input"
    assert row.metrics.max_abs == 0
    assert row.size == weight_bytes(plain_lm())


def test_each_pass_gets_a_row_with_what_it_did(reference: Reference) -> None:
    hook = run(reference, Scale(), policy=EXACT)
    row = hook.rows[1]
    assert (row.name, row.text, row.promise, row.rewrites) == ("scale", "scale", "exact", 1)
    assert row.refusals[0].reason == "it is shared"
    assert row.notes == ("one weight scaled",)
    assert row.details == {"factor": 1.0}
    assert row.seconds > 0
    assert row.peak_rss > 1 << 20
    assert hook.violations == []


def test_an_exact_pass_that_moves_the_outputs_stops_the_build_by_name(
    reference: Reference,
) -> None:
    with pytest.raises(ParityError, match=r"pass 'scale'.*relative L2 error is 0.01") as error:
        run(reference, Scale(), Scale(factor=1.01), policy=EXACT)
    assert error.value.exit_code == 1


def test_a_measured_pass_may_move_the_outputs_within_its_limits(reference: Reference) -> None:
    hook = run(reference, Shake(factor=1.01), policy=LOOSE)
    assert hook.rows[1].metrics.rel_l2 == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ParityError, match="pass 'shake': the KL divergence"):
        run(reference, Shake(factor=0.1), policy=LOOSE)


def test_force_collects_the_violations(reference: Reference) -> None:
    hook = run(reference, Scale(factor=1.01), policy=EXACT, force=True)
    assert len(hook.violations) == 2
    assert all(sentence.startswith("pass 'scale': the ") for sentence in hook.violations)
    assert len(hook.rows[1].violations) == 2


def test_without_a_policy_nothing_is_judged(reference: Reference) -> None:
    hook = run(reference, Scale(factor=3.0), policy=None)
    assert hook.rows[1].violations == ()
    assert hook.rows[1].metrics.rel_l2 == pytest.approx(2)


def test_an_exact_pass_after_a_measured_one_is_held_against_the_graph_before_it(
    reference: Reference,
) -> None:
    hook = run(reference, Shake(factor=1.01), Scale(), policy=LOOSE)
    row = hook.rows[2]
    assert row.change is not None
    assert row.change.rel_l2 == 0
    assert row.change.greedy_equal == row.change.greedy_total == 36
    assert row.metrics.rel_l2 == pytest.approx(0.01, rel=1e-3)


def test_an_exact_pass_after_a_measured_one_cannot_hide_behind_the_wider_limits(
    reference: Reference,
) -> None:
    within_measured = Scale(factor=1.005)
    hook = run(reference, Shake(factor=1.005), policy=LOOSE)
    assert LOOSE.violations(hook.rows[1].metrics) == []
    with pytest.raises(ParityError, match="pass 'scale': against the graph before it, the"):
        run(reference, Shake(factor=1.005), within_measured, policy=LOOSE)


def test_the_graph_before_is_the_last_one_and_not_the_measured_one(reference: Reference) -> None:
    hook = run(reference, Shake(factor=1.01), Scale(factor=1.01), Scale(), policy=LOOSE, force=True)
    assert len(hook.rows[2].violations) == 2
    assert hook.rows[3].violations == ()


def test_an_input_graph_that_is_not_the_references_is_refused(reference: Reference) -> None:
    hook = CompareHook(open_model, reference, EXACT)
    with pytest.raises(ParityError, match=r"the input graph: .*check that the reference is of"):
        hook.start(plain_lm(seed=5))


def test_a_wrong_export_is_not_hidden_by_the_loose_limits_of_a_later_pass(
    reference: Reference,
) -> None:
    off_by_a_thousandth = plain_lm()
    Scale(factor=1.001).run(off_by_a_thousandth, Context())
    policy = dataclasses.replace(LOOSE, measured=Limits(rel_l2=0.01))
    hook = CompareHook(open_model, reference, policy)
    with pytest.raises(ParityError, match=r"the input graph: .*check that the reference"):
        hook.start(off_by_a_thousandth)


def test_an_input_graph_let_through_is_not_blamed_on_the_first_exact_pass(
    reference: Reference,
) -> None:
    off_by_a_thousandth = plain_lm()
    Scale(factor=1.001).run(off_by_a_thousandth, Context())
    hook = CompareHook(open_model, reference, LOOSE, force=True)
    Pipeline((Scale(),)).run(off_by_a_thousandth, Context(), [hook])
    assert hook.rows[1].change is not None
    assert hook.rows[1].violations == ()


def test_a_graph_that_does_not_run_any_more_is_a_parity_error(reference: Reference) -> None:
    @contextlib.contextmanager
    def refusing(model: ir.Model) -> Iterator[OrtModel]:
        try:
            yield OrtModel(model)
        except Exception as error:
            raise UnsupportedError("onnxruntime: shapes do not fit") from error

    hook = CompareHook(refusing, reference, EXACT, force=True)
    with pytest.raises(ParityError, match="pass 'cut': the graph does not run any more: onnx"):
        Pipeline((Cut(),)).run(plain_lm(), Context(), [hook])


def test_weights_are_counted_once_and_without_loading_them() -> None:
    def explode() -> ir.TensorProtocol:
        raise AssertionError("a weight was loaded")

    model = plain_lm()
    lazy = ir.LazyTensor(explode, dtype=ir.DataType.FLOAT, shape=ir.Shape([100, 10]), name="lazy")
    before = weight_bytes(model)
    for name in ("one_use", "another_use"):
        value = ir.Value(name=name, const_value=lazy)
        model.graph.register_initializer(value)
    assert weight_bytes(model) == before + 4000


def test_a_baseline_lies_on_disk_and_goes_away(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    baseline = Baseline(reference)
    compare(OrtModel(plain_lm()), reference, tap=baseline)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == len(reference.samples)
    metrics = baseline.compare(OrtModel(plain_lm()))
    assert metrics.max_abs == 0
    assert metrics.greedy_total == 36
    del baseline
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_compares_predictions_and_not_the_references_text(
    reference: Reference,
) -> None:
    """Two graphs that are wrong in the same way are equal to each other."""
    other = OrtModel(plain_lm(seed=5))
    baseline = Baseline(reference)
    against_reference = compare(other, reference, tap=baseline)
    assert against_reference.greedy_equal is not None
    assert against_reference.greedy_equal < 36
    assert baseline.compare(other).greedy_equal == 36
    assert baseline.compare(OrtModel(plain_lm())).greedy_equal == against_reference.greedy_equal


def test_bfloat16_outputs_survive_the_disk(reference: Reference) -> None:
    outputs = {"y": np.arange(4).astype(ir.DataType.BFLOAT16.numpy())}
    baseline = Baseline(reference)
    baseline.outputs(0, outputs)
    np.testing.assert_array_equal(baseline._sample(0).outputs["y"], np.arange(4))
