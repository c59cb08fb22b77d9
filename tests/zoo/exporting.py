"""From a family to its model, inputs, PyTorch's answer, and the file that an exporter writes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from family import INPUTS, VOCABULARY, Family

SIZES = {"batch": 2, "length": 19, "target": 11}
Feeds = dict[str, np.ndarray]


class OneAnswer(torch.nn.Module):
    """Inputs by position, one output, no cache."""

    def __init__(self, model: torch.nn.Module, family: Family):
        super().__init__()
        self.model = model
        self.family = family

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.family.module is not None:
            return self.model(*inputs)
        feeds = dict(zip(self.family.inputs, inputs, strict=True))
        more = {"use_cache": False} if self.family.output == "logits" else {}
        return getattr(self.model(**feeds, **more), self.family.output)


def make(family: Family, attention: str, dtype: torch.dtype = torch.float32) -> OneAnswer:
    """The model with seeded weights, in evaluation mode."""
    torch.manual_seed(0)
    model = family.module() if family.module is not None else _from_config(family, attention)
    _perturb(model)
    return OneAnswer(model.eval().to(dtype), family).eval()


def _from_config(family: Family, attention: str) -> torch.nn.Module:
    config = getattr(transformers, family.config)(**family.options)
    config._attn_implementation = attention
    config._experts_implementation = "batched_mm"  # of those there are, the one that is exported
    cls = _class(family.model)
    if hasattr(cls, "from_config"):
        return cls.from_config(config, attn_implementation=attention)
    return cls(config)


def _perturb(model: torch.nn.Module) -> None:
    """Weights that start as all zeros or all ones would hide what is done to them."""
    for weight in model.parameters():
        if weight.numel() > 1 and (weight == weight.flatten()[0]).all():
            weight.data += 0.1 * torch.randn_like(weight)


def _class(name: str) -> type:
    if hasattr(transformers, name):
        return getattr(transformers, name)
    return getattr(transformers.models.whisper.modeling_whisper, name)


def feeds_for(
    family: Family, dtype: torch.dtype = torch.float32, *, left: bool = False, **sizes: int
) -> Feeds:
    """Seeded inputs; the last row has three words less, missing at its end or on its left."""
    sizes = SIZES | sizes
    rng = np.random.default_rng(0)
    feeds = {}
    for name in family.inputs:
        shape = [sizes[s] if isinstance(s, str) else s for s in INPUTS[name].shape]
        if INPUTS[name].kind == "tokens":
            feeds[name] = rng.integers(4, VOCABULARY, shape)
        elif INPUTS[name].kind == "padding":
            feeds[name] = np.ones(shape, np.int64)
            feeds[name][-1, slice(3) if left else slice(-3, None)] = 0
        else:
            real = rng.standard_normal(shape).astype(np.float32)
            feeds[name] = real.astype(np.float16) if dtype == torch.float16 else real
    return feeds


def answer(module: torch.nn.Module, feeds: Feeds) -> np.ndarray:
    """What PyTorch says."""
    with torch.no_grad():
        return module(*(torch.from_numpy(x) for x in feeds.values())).numpy()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on the console, and no records of the exporter's own tracing, which take longer."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def export(
    module: OneAnswer, feeds: Feeds, path: Path, opset: int, *, static: bool = False
) -> Path:
    """Write the module as ONNX with the exporter that captures the program, axes dynamic."""
    names = list(feeds)
    axes = tuple({} if static else _dynamic(name) for name in names)
    with quiet():
        program = torch.onnx.export(
            module,
            tuple(torch.from_numpy(x) for x in feeds.values()),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=(axes,),
            input_names=names,
            output_names=[module.family.output],
            verbose=False,
        )
        program.save(path)
    return path


def _dynamic(name: str) -> dict[int, object]:
    free = torch.export.Dim.DYNAMIC
    return {i: free for i, size in enumerate(INPUTS[name].shape) if isinstance(size, str)}


def export_by_tracing(module: OneAnswer, feeds: Feeds, path: Path, opset: int = 17) -> Path:
    """Write the module as ONNX with the older exporter, which traces it (TorchScript)."""
    axes = {
        name: {i: size for i, size in enumerate(INPUTS[name].shape) if isinstance(size, str)}
        for name in feeds
    }
    torch.onnx.register_custom_op_symbolic("aten::diff", _difference, opset)
    torch.onnx.register_custom_op_symbolic("aten::cumsum", _running_sum, opset)
    with quiet():
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(x) for x in feeds.values()),
            str(path),
            dynamo=False,
            opset_version=opset,
            dynamic_axes=axes,
            input_names=list(feeds),
            output_names=[module.family.output],
        )
    module.eval()  # that exporter leaves it in training mode
    return path


def _difference(g, x, n, dim, prepend, append):
    """`torch.diff` along the last axis, which that exporter lacks and causal masks now need."""
    if not prepend.node().mustBeNone():
        x = g.op("Concat", prepend, x, axis_i=-1)
    ends = [g.op("Constant", value_t=torch.tensor([i])) for i in (0, 1, -1, 2**63 - 1)]
    first, second, last, end = ends
    later = g.op("Slice", x, second, end, last)
    return g.op("Sub", later, g.op("Slice", x, first, last, last))


def _running_sum(g, x, dim, dtype):
    """`torch.cumsum` of truth values too, which that exporter writes as an invalid graph."""
    from torch.onnx.symbolic_helper import _get_const  # the only way to read it

    axis = g.op("Constant", value_t=torch.tensor(_get_const(dim, "i", "dim")))
    is_truth = x.type().scalarType() == "Bool"
    return g.op("CumSum", g.op("Cast", x, to_i=7) if is_truth else x, axis)
