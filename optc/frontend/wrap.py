"""Any module as: positional tensors in, a tuple of named tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optc.core.context import Array, Feeds

__all__ = ["NamedModule", "named_tensors"]


def named_tensors(result: Any) -> dict[str, torch.Tensor]:
    """The tensors of a module's result, by name.

    A mapping (transformers' outputs are mappings) gives its keys, a single tensor `output`, a
    sequence `output_0`, `output_1` and so on; what is not a tensor is left out.
    """
    if isinstance(result, torch.Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        items = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, list | tuple):
        items = [(f"output_{i}", value) for i, value in enumerate(result)]
    else:
        items = []
    return {name: value for name, value in items if isinstance(value, torch.Tensor)}


class NamedModule(torch.nn.Module):
    """The form in which a model is exported and asked.

    Args:
        model: The model; shared, not copied.
        inputs: Names of its keyword arguments, in positional order.
        outputs: Names of the results wanted, as `named_tensors` gives them.
        fixed: Further keyword arguments of every call.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        fixed: Mapping[str, Any],
    ):
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.outputs = outputs
        self.fixed = dict(fixed)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the model."""
        given = dict(zip(self.inputs, tensors, strict=True))
        named = named_tensors(self.model(**given, **self.fixed))
        return tuple(named[name] for name in self.outputs)

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        """Run on numpy arrays; floating inputs and outputs are made float32."""
        tensors = [_as_float32(torch.from_numpy(feeds[name])) for name in self.inputs]
        with torch.inference_mode():
            results = self(*tensors)
        answers = [_as_float32(value).numpy() for value in results]
        return dict(zip(self.outputs, answers, strict=True))


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
