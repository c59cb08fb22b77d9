"""Build an engine of one plugin with full TensorRT, run it, compare with float64.

A script of its own: it needs TensorRT, PyTorch and a GPU, and ends with an assertion.
"""

from __future__ import annotations

import numpy as np
import tensorrt as trt
import tensorrt.plugin as plugin
import torch

from optc.ir.flash_attention import AttentionSpec
from optc.plugins.flash_attention.reference import attend, round_off
from optc.plugins.flash_attention.tensorrt import register

SPLITS = 8


def attributes(spec: AttentionSpec) -> dict[str, float | int]:
    return {
        "scale": spec.scale,
        "causal": int(spec.causal),
        "window": spec.window,
        "softcap": spec.softcap,
    }


def engine(spec: AttentionSpec, inputs: dict[str, torch.Tensor], form: str) -> bytes:
    """Serialised, with only ahead-of-time kernels allowed."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
    network = builder.create_network(flags)
    types = {torch.float16: trt.float16, torch.int64: trt.int64}
    tensors = [network.add_input(n, types[t.dtype], tuple(t.shape)) for n, t in inputs.items()]
    values, ops = attributes(spec), plugin.op.optc
    if form == "prefill":
        layer = network.add_plugin(ops.FlashAttentionPrefill(*tensors, **values), aot=True)
    else:
        split = ops.FlashAttentionSplit(*tensors, **values, splits=SPLITS)
        parts = network.add_plugin(split, aot=True)
        between = [parts.get_output(0), parts.get_output(1)]
        layer = network.add_plugin(ops.FlashAttentionCombine(*between, dtype="fp16"), aot=True)
    layer.get_output(0).name = "output"
    network.mark_output(layer.get_output(0))
    return bytes(builder.build_serialized_network(network, builder.create_builder_config()))


def run(data: bytes, inputs: dict[str, torch.Tensor], shape: tuple[int, ...]) -> np.ndarray:
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    context = runtime.deserialize_cuda_engine(data).create_execution_context()
    output = torch.full(shape, torch.nan, dtype=torch.float16, device="cuda")
    for name, tensor in {**inputs, "output": output}.items():
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()
    context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return output.cpu().double().numpy()


def main() -> None:
    major, minor = torch.cuda.get_device_capability()
    register(trt, plugin, sm=10 * major + minor)
    spec = AttentionSpec(128**-0.5, causal=True, lengths=True)
    for form, rows in (("prefill", 300), ("split", 1)):
        rng = np.random.default_rng(0)
        shapes = {"query": (2, 8, rows, 128), "key": (2, 2, 500, 128), "value": (2, 2, 500, 128)}
        arrays = {n: rng.standard_normal(s).astype(np.float16) for n, s in shapes.items()}
        arrays["lengths"] = np.array([500, 333])
        inputs = {n: torch.from_numpy(a).cuda() for n, a in arrays.items()}
        given = run(engine(spec, inputs, form), inputs, shapes["query"])
        expected = attend(spec, *(arrays[n] for n in ("query", "key", "value", "lengths")))
        error = np.abs(given - expected).max()
        print(form, error)
        assert error <= round_off(spec, arrays, scores="float32")


if __name__ == "__main__":
    main()
