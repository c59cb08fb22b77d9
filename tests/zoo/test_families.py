"""Every family, in the spellings that PyTorch's exporter writes: fused, exact, cached."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from families import FAMILIES, LAYERS, VOCABULARY, Family, export, make

from optc.core.context import Context
from optc.ir.flash_attention import AttentionSpec, flash_attention_nodes, read_spec
from optc.ir.interface import cache_ports, complete_feeds
from optc.ir.load import load_canonical
from optc.passes.flash import Flash
from optc.passes.kv import KV
from optc.targets.evaluate import open_model

SPELLINGS = [("sdpa", 18), ("eager", 18), ("sdpa", 23)]
NOT_EXPORTED = {
    "gemma2": ("sdpa",),  # transformers falls back to eager: scores are bounded
    "bloom": ("sdpa",),  # has no sdpa implementation
}
# PyTorch's exporter gives up on this one, before optc sees anything
FAILS_TO_EXPORT = {("falcon", "sdpa", 23)}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    family: Family
    path: object
    tokens: np.ndarray
    expected: np.ndarray


def _cases():
    for name in FAMILIES:
        for attention, opset in SPELLINGS:
            skipped = attention in NOT_EXPORTED.get(name, ())
            if not skipped and (name, attention, opset) not in FAILS_TO_EXPORT:
                yield pytest.param((name, attention, opset), id=f"{name}-{attention}-{opset}")


@pytest.fixture(scope="module", params=_cases())
def case(request, tmp_path_factory) -> Case:
    name, attention, opset = request.param
    family = FAMILIES[name]
    module = make(family, attention)
    path = export(module, tmp_path_factory.mktemp("zoo") / "model.onnx", opset)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 19))
    with torch.no_grad():
        expected = module(torch.from_numpy(tokens)).numpy()
    return Case(name, family, path, tokens, expected)


def fused(case: Case):
    model = load_canonical(case.path)
    result = Flash().run(model, Context())
    assert (result.rewrites, result.refusals) == (LAYERS, ())
    return model


def specs(model) -> list[AttentionSpec]:
    return [read_spec(node) for node in flash_attention_nodes(model)]


def test_flash_fuses_every_layer_exactly(case):
    model = fused(case)
    with open_model(model) as session:
        got = session.run({"input_ids": case.tokens})["logits"]
    np.testing.assert_allclose(got, case.expected, atol=2e-5)


def test_flash_recovers_what_the_attention_means(case):
    model = fused(case)
    found = specs(model)
    assert [s.causal for s in found] == [case.family.causal] * LAYERS
    assert tuple(s.window for s in found) == case.family.window
    assert [s.softcap for s in found] == pytest.approx([case.family.softcap] * LAYERS)
    assert {s.mask for s in found} == {case.family.mask}
    assert {n.inputs[1].shape[1] for n in flash_attention_nodes(model)} == {case.family.key_heads}


def test_flash_leaves_no_parts_behind(case):
    left = {node.op_type for node in fused(case).graph}
    assert not left & {"Softmax", "Trilu", "LessOrEqual", "IsNaN"} or case.family.mask


def test_kv_gives_the_same_logits_piece_by_piece(case):
    model = fused(case)
    KV().requires(model, Context())
    result = KV().run(model, Context())
    if not case.family.causal or case.family.mask:
        assert result.rewrites == 0
        assert len(result.refusals) >= LAYERS
        return
    assert result.rewrites == LAYERS
    caches, parts, done = {}, [], 0
    with open_model(model) as session:
        for count in (6, 1, 4, 1, 7):
            new = case.tokens[:, done : done + count]
            feeds = {"input_ids": new, "cache_lengths": np.full(2, done)} | caches
            out = session.run(complete_feeds(session.inputs, feeds))
            caches = {c.past: out[c.present] for c in cache_ports(session.inputs)}
            parts.append(out["logits"])
            done += count
    np.testing.assert_allclose(np.concatenate(parts, 1), case.expected, atol=2e-5)
