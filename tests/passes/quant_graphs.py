"""Small graphs with weights, as text, and numbers to feed them, for the tests of `quant`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from optc.core.base import PassResult
from optc.core.context import Array, Context, Feeds
from optc.passes.quant import Quant
from optc.targets.evaluate import OrtEvaluator

K, C = 32, 16


def build(text: str, weights: Mapping[str, Array]) -> ir.Model:
    """A model from ONNX text whose inputs named in `weights` become initializers."""
    model = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["": 24]> {text}')
    for value in [v for v in model.graph.inputs if v.name in weights]:
        value.const_value = ir.tensor(weights[str(value.name)], name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def random(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def linear(rng: np.random.Generator) -> ir.Model:
    """y = x @ w."""
    text = f"""main (float[b, s, {K}] x, float[{K}, {C}] w) => (float[b, s, {C}] y)
    {{ y = MatMul(x, w) }}"""
    return build(text, {"w": random(rng, K, C)})


def samples(rng: np.random.Generator, count: int = 4, **fixed: Array) -> list[Feeds]:
    """Calibration inputs `x` [1,5,K], or the arrays given."""
    return [dict(fixed) or {"x": random(rng, 1, 5, K)} for _ in range(count)]


def quantise(model: ir.Model, calibration: list[Feeds], **options: Any) -> PassResult:
    """Run the pass as the pipeline does, with a limit that nothing here exceeds."""
    quant = Quant(**{"max_drift": 1e9, **options})
    ctx = Context(evaluate=OrtEvaluator(), calibration=calibration)
    quant.requires(model, ctx)
    result = quant.run(model, ctx)
    quant.ensures(model, result)
    return result


def ops(model: ir.Model) -> list[str]:
    return sorted(node.op_type for node in model.graph)


def reasons(result: PassResult) -> dict[str, str]:
    return {refusal.site: refusal.reason for refusal in result.refusals}
