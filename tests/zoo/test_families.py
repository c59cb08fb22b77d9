"""Every family, as exporters and other tools write it down: fused, exact, understood."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from exported import Case, on_words
from families import FAMILIES
from family import Site
from spellings import in_tests

from optc.core.base import PassResult
from optc.core.context import Context
from optc.ir.flash_attention import flash_attention_nodes, read_spec
from optc.ir.load import load_canonical
from optc.passes.flash import Flash
from optc.targets.evaluate import open_model

# An answer moves by about one rounding per operation in a row, of numbers that are about one.
_ROUNDINGS = 64
_WIDEST = {np.dtype(np.float32): 2e-5, np.dtype(np.float16): 2e-2}


@dataclasses.dataclass(frozen=True)
class Fused:
    """A file after `flash`, and what it and PyTorch answer to the samples."""

    case: Case
    model: ir.Model
    result: PassResult
    answers: tuple[tuple[np.ndarray, np.ndarray], ...]


def _params() -> list[object]:
    return [
        pytest.param((name, spelling), id=f"{name}-{spelling}")
        for name, spelling in in_tests(FAMILIES)
    ]


@pytest.fixture(scope="module", params=_params())
def fused(request, exports) -> Fused:
    case = exports.case(*request.param)
    model = load_canonical(case.path)
    result = Flash().run(model, Context())
    with open_model(model) as session:
        got = [next(iter(session.run(feeds).values())) for feeds, _ in case.samples]
    pairs = [(on_words(g, f), on_words(e, f)) for g, (f, e) in zip(got, case.samples, strict=True)]
    return Fused(case, model, result, tuple(pairs))


def sites(model: ir.Model, expected: list[Site]) -> list[Site]:
    """What was found.

    A padding mask that fills with a finite number may well be kept as a bias: where no bias is
    expected, that is called a mask too.
    """
    names = {site.mask for site in expected}
    return [
        Site(
            spec.causal,
            spec.window,
            spec.softcap,
            "bool" if spec.mask == "bias" and "bias" not in names else spec.mask,
            node.inputs[1].shape[1],
        )
        for node in flash_attention_nodes(model)
        for spec in [read_spec(node)]
    ]


def test_every_attention_is_fused_or_refused_with_a_reason(fused):
    """Refused are only those for which there is no op."""
    refused = [refusal.reason for refusal in fused.result.refusals]
    assert (fused.result.rewrites, len(refused)) == (
        len(fused.case.family.sites),
        fused.case.family.refused,
    )
    assert all(refused)


def test_answers_are_those_of_pytorch(fused):
    """At batches 1, 2 and 3, and several lengths; greedy tokens too, where there are any."""
    for got, expected in fused.answers:
        rounding = np.finfo(expected.dtype).eps * max(1.0, np.abs(expected).max())
        limit = min(_ROUNDINGS * rounding, _WIDEST[expected.dtype])
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=0, atol=limit)
        if fused.case.family.is_language_model:
            assert (got.argmax(-1) == expected.argmax(-1)).all()


def test_what_each_attention_means_is_recovered(fused):
    """In any order: tools sort graphs anew."""
    expected = sorted(fused.case.family.sites)
    found = sorted(sites(fused.model, expected))
    assert [dataclasses.replace(s, softcap=0.0) for s in found] == [
        dataclasses.replace(s, softcap=0.0) for s in expected
    ]
    assert [s.softcap for s in found] == pytest.approx([s.softcap for s in expected])


def test_rotary_embeddings_and_norms_are_the_standard_ops(fused):
    ops = [node.op_type for node in fused.model.graph]
    family = fused.case.family
    assert family.rotary in (None, ops.count("RotaryEmbedding"))
    assert family.rms_norms in (None, ops.count("RMSNormalization"))


def test_nothing_of_the_masks_is_left(fused):
    """What is left of them belongs to what stays an operand."""
    ops = {node.op_type for node in fused.model.graph}
    assert len(_softmaxes_before_products(fused.model)) <= fused.case.family.refused
    assert "IsNaN" not in ops
    if not fused.case.family.refused and not any(s.mask for s in fused.case.family.sites):
        assert not ops & {"Trilu", "LessOrEqual", "GreaterOrEqual", "And"}


def _softmaxes_before_products(model: ir.Model) -> list[str | None]:
    """Routers of experts have a Softmax too."""
    return [
        node.outputs[0].name
        for node in model.graph
        if node.op_type == "Softmax"
        and any(use.node.op_type in {"MatMul", "Einsum"} for use in node.outputs[0].uses())
    ]
