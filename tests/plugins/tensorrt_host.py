"""A process in which `tensorrt.plugin` runs without TensorRT's library.

`tensorrt.plugin` is Python; it comes with TensorRT's bindings (`tensorrt-cu13-bindings`), whose
compiled half does not load without the library. TensorRT-RTX shares that half except for the
classes of ahead-of-time plugins. So here TensorRT-RTX takes the place of `tensorrt`, with stand-ins
for what it lacks, and with expressions that are numbers, so that grids can be read. As a script
it registers the plugins and asks them, as TensorRT would, for one engine; the last line of its
output is the answers as JSON.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import importlib.util
import json
import sys
import types
import warnings
from typing import Any

Dims = tuple[int, ...]


@dataclasses.dataclass
class Number:
    """Stands in for `IDimensionExpr`: an expression whose value is known."""

    value: int

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


class Numbers:
    """Stands in for `IExprBuilder`."""

    def __init__(self, operations: Any):
        self.by = {
            operations.SUM: lambda a, b: a + b,
            operations.SUB: lambda a, b: a - b,
            operations.PROD: lambda a, b: a * b,
            operations.FLOOR_DIV: lambda a, b: a // b,
            operations.CEIL_DIV: lambda a, b: -(-a // b),
        }

    def constant(self, value: int) -> Number:
        return Number(value)

    def operation(self, operation: Any, first: Number, second: Number) -> Number:
        return Number(self.by[operation](first.value, second.value))


class SymExprs(list[Any]):
    """Stands in for `ISymExprs`: where the integers of a launch are put."""

    def __setattr__(self, name: str, value: int) -> None:
        self[:] = [None] * value


class Plain:
    """Base of interfaces that TensorRT-RTX does not have."""


class Request(enum.Enum):
    STRICT_AOT = enum.auto()


def host() -> tuple[types.ModuleType, types.ModuleType]:
    """The modules `tensorrt` and `tensorrt.plugin` of this process."""
    import tensorrt_rtx

    trt = types.ModuleType("tensorrt")
    trt.__dict__.update({k: v for k, v in vars(tensorrt_rtx).items() if not k.startswith("__")})
    trt.__dict__.update(
        ISymExpr=Plain,
        IPluginV3QuickAOTBuild=Plain,
        QuickPluginCreationRequest=Request,
        IDimensionExpr=Number,
        DimsExprs=lambda rank: [None] * rank,
    )
    sys.modules["tensorrt"] = trt
    found = importlib.util.find_spec("tensorrt_bindings")
    assert found is not None
    folder = list(found.submodule_search_locations or [])
    package = types.ModuleType("tensorrt_bindings")
    package.__path__ = folder
    sys.modules["tensorrt_bindings"] = package
    plugin = importlib.import_module("tensorrt_bindings.plugin")
    return trt, plugin


@dataclasses.dataclass
class Tensor:
    """A tensor of the network: its type, and its sizes when the engine runs (`now`)."""

    dtype: Any
    built: Dims
    now: Dims


def ask(
    trt: Any, plugin: Any, id_: str, attributes: dict[str, Any], inputs: list[Tensor], tactic: int
) -> dict[str, Any]:
    """Take a plugin through the calls of an engine build, in TensorRT's order."""
    namespace, name = id_.split("::")
    creator = plugin._lib._TemplatePluginCreator(name, namespace, {})
    fields = [_field(trt, key, value) for key, value in attributes.items()]
    collection = trt.PluginFieldCollection(fields)
    made = creator.create_plugin(
        name, namespace, collection, trt.TensorRTPhase.BUILD, Request.STRICT_AOT
    )
    types_ = made.get_output_data_types([t.dtype for t in inputs], [len(t.built) for t in inputs])
    numbers = Numbers(trt.DimensionOperation)
    exprs = [[Number(size) for size in t.now] for t in inputs]
    shapes = [[e.value for e in s] for s in made.get_output_shapes(exprs, [], numbers)]
    built = [*inputs, *(Tensor(t, tuple(s), ()) for t, s in zip(types_, shapes, strict=True))]
    descriptions = [_description(trt, tensor) for tensor in built]
    combinations = made.get_supported_format_combinations(descriptions, len(inputs))
    made.configure_plugin(descriptions[: len(inputs)], descriptions[len(inputs) :])
    tactics = made.get_valid_tactics()
    made.set_tactic(tactic)
    launch, integers = types.SimpleNamespace(), SymExprs()
    made.get_launch_params(None, descriptions, len(inputs), launch, integers, numbers)
    kernel, ptx = made.get_kernel(
        [d.desc for d in descriptions[: len(inputs)]], [d.desc for d in descriptions[len(inputs) :]]
    )
    size = {name: int(found.expr.value) for name, found in vars(launch).items()}
    return {
        "types": [str(t) for t in types_],
        "shapes": shapes,
        "combinations": [str(c.type) for c in combinations],
        "tactics": tactics,
        "grid": [size["grid_x"], size["grid_y"], size["grid_z"]],
        "block": size["block_x"],
        "shared": size["shared_mem"],
        "integers": [integer.expr.value for integer in integers],
        "kernel": kernel,
        "ptx": ptx.decode(),
    }


def _field(trt: Any, name: str, value: Any) -> Any:
    import numpy as np

    if isinstance(value, str):
        return trt.PluginField(name, value.encode(), trt.PluginFieldType.CHAR)
    kind = trt.PluginFieldType.INT64 if isinstance(value, int) else trt.PluginFieldType.FLOAT64
    return trt.PluginField(name, np.array([value]), kind)


def _description(trt: Any, tensor: Tensor) -> Any:
    description = trt.DynamicPluginTensorDesc()
    desc = trt.PluginTensorDesc()
    desc.dims, desc.type, desc.format = tensor.built, tensor.dtype, trt.TensorFormat.LINEAR
    description.desc = desc
    return description


def main() -> None:
    from optc.plugins.flash_attention.tensorrt import register

    warnings.simplefilter("ignore", SyntaxWarning)  # in TensorRT's own docstrings
    trt, plugin = host()
    ids = register(trt, plugin, sm=90)
    registry = [c.name for c in trt.get_plugin_registry().all_creators if "Flash" in c.name]
    half, long, single = trt.DataType.HALF, trt.DataType.INT64, trt.DataType.FLOAT
    query = Tensor(half, (-1, 32, -1, 128), (4, 32, 300, 128))
    token = Tensor(half, (-1, 32, 1, 128), (4, 32, 1, 128))
    key = Tensor(half, (-1, 8, 4096, 128), (4, 8, 4096, 128))
    lengths = Tensor(long, (-1,), (4,))
    mask = Tensor(trt.DataType.BOOL, (-1, 1, -1, 4096), (4, 1, 300, 4096))
    spec = {"scale": 0.125, "causal": 1, "window": 0, "softcap": 0.0}
    partial = Tensor(single, (-1, 32, 1, 16, 128), (4, 32, 1, 16, 128))
    weight = Tensor(single, (-1, 32, 1, 16), (4, 32, 1, 16))
    calls = {
        "Prefill": (spec, [query, key, key, lengths]),
        "PrefillBool": (spec, [query, key, key, lengths, mask]),
        "Split": ({**spec, "splits": 16}, [token, key, key, lengths]),
        "Combine": ({"dtype": "fp16"}, [partial, weight]),
    }
    answers = {
        name: ask(trt, plugin, f"optc::FlashAttention{name}", attributes, inputs, 1)
        for name, (attributes, inputs) in calls.items()
    }
    print()  # TensorRT writes its warnings to the same place
    print(json.dumps({"ids": ids, "registry": registry, "answers": answers}))


if __name__ == "__main__":
    main()
