"""The main job on SmolLM2-135M-Instruct: fuse, cache, quantise, verify, generate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optc.core.context import Context
from optc.ir.flash_attention import flash_attention_nodes
from optc.ir.load import load_canonical
from optc.ir.reference import Reference, load_reference
from optc.parity.compare import compare
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.runtime.generate import generate
from optc.targets.evaluate import open_model

pytestmark = pytest.mark.e2e
LAYERS = 30


@pytest.fixture(scope="module")
def reference(smollm2_18: Path) -> Reference:
    return load_reference(smollm2_18.with_name("reference.npz"))


def fused(path: Path) -> ir.Model:
    model = load_canonical(path)
    result = Flash().run(model, Context())
    assert (result.rewrites, result.refusals) == (LAYERS, ())
    return model


def test_flash_fuses_every_layer_and_moves_nothing(smollm2: Path, reference: Reference):
    model = fused(smollm2)
    assert len(list(flash_attention_nodes(model))) == LAYERS
    assert "Softmax" not in {node.op_type for node in model.graph}
    with open_model(model) as session:
        metrics = compare(session, reference)
    assert metrics.rel_l2 < 1e-5
    assert metrics.top1 == 1.0
    assert metrics.greedy_equal == metrics.greedy_total == 8 * 64


def test_kv_writes_the_text_that_pytorch_writes(smollm2: Path, reference: Reference):
    model = fused(smollm2)
    assert KV().run(model, Context()).rewrites == LAYERS
    assert len(reference.prompts) == 8
    with open_model(model) as session:
        for prompt, expected in zip(reference.prompts, reference.continuations, strict=True):
            made = generate(session, [prompt.tolist()], max_new_tokens=len(expected))
            assert len(expected) == 64
            np.testing.assert_array_equal(made.tokens[0], expected)


def test_build_verify_run(optc, smollm2_18: Path, tmp_path: Path):
    bundle = tmp_path / "smollm2.optc"
    built = optc("build", smollm2_18, "--passes", "quant,flash,kv", "-o", bundle, "--json")
    assert built.returncode == 0, built.stderr
    document = json.loads(built.stdout)
    rows = {row["pass"]: row for row in document["rows"]}
    assert list(rows) == ["input", "flash", "kv", "quant", "engine"]
    assert document["evidence"]["source"] == "pytorch"
    assert [rows[name]["rewrites"] for name in ("flash", "kv")] == [LAYERS, LAYERS]
    for exact in ("input", "flash", "kv"):
        assert rows[exact]["metrics"]["greedy_equal"] == 8 * 64
    assert rows["kv"]["weight_bytes"] >= 3.5 * rows["quant"]["weight_bytes"]
    assert rows["quant"]["metrics"]["kl"] > rows["kv"]["metrics"]["kl"]
    assert document["passed"]

    verified = optc("verify", bundle, "--json")
    assert verified.returncode == 0, verified.stderr

    made = optc("run", bundle, "--prompt", "The capital of France is", "--max-tokens", "8")
    assert made.returncode == 0, made.stderr
    assert "Paris" in made.stdout

    damaged = tmp_path / "damaged.optc"
    shutil.copytree(bundle, damaged)
    data = damaged / "engine.onnx.data"
    with data.open("r+b") as file:
        file.seek(data.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    refused = optc("verify", damaged)
    assert refused.returncode == 2
    assert "engine.onnx.data" in refused.stderr
    assert "Traceback" not in refused.stderr
