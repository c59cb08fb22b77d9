"""The options of `kv` on SmolLM2-135M-Instruct: last logits, int8 caches, full fixed caches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optc.core.context import Context
from optc.ir.interface import cache_ports
from optc.ir.load import load_canonical
from optc.ir.reference import Reference, load_reference
from optc.parity.compare import compare
from optc.parity.metrics import Metrics
from optc.parity.policy import Policy
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.targets.evaluate import OrtEvaluator, open_model
from optc.targets.ort import Ort

pytestmark = pytest.mark.e2e
LAYERS = 30
TOKENS = 8 * 64


@pytest.fixture(scope="module")
def reference(smollm2_18: Path) -> Reference:
    return load_reference(smollm2_18.with_name("reference.npz"))


def measured(path: Path, kv: KV, reference: Reference) -> tuple[Metrics, int]:
    """Against PyTorch, lowered; and bytes of a cache for one token of one row."""
    model = load_canonical(path)
    context = Context(OrtEvaluator(), reference.calibration)
    Flash().run(model, context)
    assert kv.run(model, context).rewrites == LAYERS
    with open_model(Ort().lower(model)) as session:
        caches = cache_ports(session.inputs)
        per_token = sum(c.empty(1).nbytes // (c.capacity or 1) for c in caches)
        return compare(session, reference), per_token


@pytest.mark.parametrize("size", [None, 512])
def test_last_logits_keep_the_exact_promise(smollm2: Path, reference: Reference, size: int | None):
    metrics, _ = measured(smollm2, KV(logits="last", max=size), reference)
    assert Policy.default(["exact"]).violations(metrics) == []
    assert metrics.greedy_equal == metrics.greedy_total == TOKENS
    assert metrics.ppl_ratio == pytest.approx(1, abs=1e-5)


def test_an_int8_cache_is_a_quarter_and_close(smollm2_18: Path, reference: Reference):
    """Measured: KL 0.004, top-1 agreement 0.94 on the worst sample, perplexity ratio 1.00."""
    metrics, per_token = measured(smollm2_18, KV(dtype="int8", max=512), reference)
    assert per_token == LAYERS * 2 * 3 * 64
    assert metrics.kl is not None
    assert 0 < metrics.kl < 0.01
    assert (metrics.top1 or 0) > 0.9
    assert metrics.ppl_ratio == pytest.approx(1, abs=0.03)
    assert metrics.greedy_total == TOKENS
    assert (metrics.greedy_equal or 0) > 0.95 * TOKENS


def test_build_verify_run_with_all_options(optc, smollm2_18: Path, tmp_path: Path):
    bundle = tmp_path / "smollm2.optc"
    passes = "flash,kv:dtype=int8:logits=last:max=64"
    built = optc("build", smollm2_18, "--passes", passes, "-o", bundle, "--json")
    assert built.returncode == 0, built.stderr
    rows = {row["pass"]: row for row in json.loads(built.stdout)["rows"]}
    assert [rows[name]["promise"] for name in ("flash", "kv")] == ["exact", "measured"]
    assert rows["kv"]["details"] == {"layout": "static", "logits": "last", "dtype": "int8"}

    assert optc("verify", bundle).returncode == 0
    made = optc("run", bundle, "--prompt", "The capital of France is", "--max-tokens", "8")
    assert "Paris" in made.stdout, made.stderr

    full = optc("run", bundle, "--prompt", "The capital of France is", "--max-tokens", "80")
    assert full.returncode == 3
    assert "the engine's cache holds 64" in full.stderr
    too_long = optc("bench", bundle, "--prompt-lengths", "60")
    assert too_long.returncode == 3
    assert "the engine's cache holds 64" in too_long.stderr
