"""The kernels as TensorRT plugins: quick-deployable, ahead of time.

TensorRT embeds a kernel's PTX in the engine together with formulas for its grid; nothing else
ships, and no Python runs when the engine does. Three things follow. Attributes are not kept in the
engine, so they are compile-time constants of the kernel. One plugin is one launch, so decoding is
two plugins in a row, split and combine, with ordinary tensors between them. And kernels get their
inputs, then integers, then their outputs, in that order, and no scratch memory.

TensorRT is never imported here: whoever builds engines passes the modules in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Any, Final

from optc.core.errors import UnsupportedError
from optc.ir.flash_attention import AttentionSpec
from optc.plugins.flash_attention.compile import compile_kernel
from optc.plugins.flash_attention.op import (
    ATTRIBUTES,
    DOMAIN,
    FORMS,
    INPUTS,
    MASKS,
    Site,
    grid,
    output_shape,
    partial_shape,
    plugin_name,
    weight_shape,
)
from optc.plugins.flash_attention.tiles import tiles_for

__all__ = ["register"]

# TensorRT's words for what the kernels take; FP16|BF16 changes for all tensors of a node together.
_TYPES: Final = {
    "query": "FP16|BF16",
    "key": "FP16|BF16",
    "value": "FP16|BF16",
    "lengths": "INT64*INT32",
    "bool": "BOOL",
    "bias": "FP16|BF16",
    "partial": "FP32",
    "weight": "FP32",
    "output": "FP16|BF16",
}
_ATTRIBUTES: Final[dict[str, dict[str, type]]] = {
    "prefill": {**ATTRIBUTES},
    "split": {**ATTRIBUTES, "splits": int},
    "combine": {"dtype": str},
}


def register(trt: Any, plugin: Any, *, sm: int) -> tuple[str, ...]:
    """Register every plugin with TensorRT.

    Args:
        trt: The module `tensorrt`.
        plugin: The module `tensorrt.plugin`.
        sm: Compute capability of the GPU that the engine is for, such as 90.

    Returns:
        Their ids, `optc::FlashAttentionPrefill` and so on. `split` takes one attribute more than
        `op.ATTRIBUTES`: `splits`, the number of programs that share the keys of a row. `combine`
        takes only `dtype`, that of its output: `fp16` or `bf16`.
    """
    kinds = [(form, mask) for form in FORMS for mask in (MASKS if form != "combine" else [""])]
    return tuple(_Plugin(trt, plugin, sm, form, mask).register() for form, mask in kinds)


class _Plugin:
    """One plugin: what TensorRT asks of it, while an engine is built."""

    def __init__(self, trt: Any, plugin: Any, sm: int, form: str, mask: str):
        self.trt, self.plugin, self.sm = trt, plugin, sm
        self.form, self.mask = form, mask
        tensors = (*INPUTS, "mask") if mask else INPUTS
        between = ("partial", "weight")
        self.inputs = between if form == "combine" else tensors
        self.outputs = between if form == "split" else ("output",)
        self.attributes = _ATTRIBUTES[form]

    def register(self) -> str:
        plugin, id_ = self.plugin, f"{DOMAIN}::{plugin_name(self.form, self.mask)}"
        described = GenericAlias(tuple, (plugin.TensorDesc,) * len(self.outputs))
        launch = GenericAlias(tuple, (str, str, plugin.KernelLaunchParams, plugin.SymExprs))
        choices = GenericAlias(list, (plugin.AutoTuneCombination,))
        plugin.register(id_)(self._signed(self.describe, [], described))
        plugin.autotune(id_)(self._signed(self.tune, ["outputs"], choices))
        plugin.aot_impl(id_)(self._signed(self.implement, ["outputs", "tactic"], launch))
        return id_

    def _signed(
        self, method: Callable[..., Any], more: Sequence[str], returns: Any
    ) -> Callable[..., Any]:
        """A function whose signature TensorRT can read the plugin's inputs and attributes from."""

        def function(*arguments: Any, **named: Any) -> Any:
            return method(*arguments, **named)

        types = dict.fromkeys(self.inputs, self.plugin.TensorDesc) | self.attributes
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind, annotation=types[name]) for name in types]
        parameters += [inspect.Parameter(name, kind) for name in more]
        signature = inspect.Signature(parameters, return_annotation=returns)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    def describe(self, *tensors: Any, **attributes: Any) -> tuple[Any, ...]:
        """Shapes and types of the outputs; shapes are expressions."""
        query = tensors[0].shape_expr
        if self.form == "combine":
            dtype = {"fp16": self.trt.DataType.HALF, "bf16": self.trt.DataType.BF16}
            shape = (query[0], query[1], query[2], query[4])
            return (self._tensor(shape, dtype[attributes["dtype"]]),)
        value = tensors[2].shape_expr
        if self.form == "prefill":
            return (self._tensor(output_shape(query, value), tensors[0].dtype),)
        splits = attributes["splits"]
        shapes = [partial_shape(query, value, splits), weight_shape(query, splits)]
        return tuple(self._tensor(shape, self.trt.DataType.FLOAT) for shape in shapes)

    def _tensor(self, shape: tuple[Any, ...], dtype: Any) -> Any:
        return self.plugin.TensorDesc(self.plugin.ShapeExprs.from_tuple(shape), dtype)

    def tune(self, *arguments: Any) -> list[Any]:
        """Types that go together, and one tactic for each tile: TensorRT times them."""
        tensors = arguments[: len(self.inputs)]
        names = [self.mask if name == "mask" else name for name in (*self.inputs, *self.outputs)]
        types = ", ".join(_TYPES[name] for name in names)
        values = self._values(arguments)
        if self.form == "combine":
            types = types.replace("FP16|BF16", values["dtype"].upper())
        count = len(self._tiles(self._site(tensors, values), tensors))
        return [self.plugin.AutoTuneCombination(types, "LINEAR", list(range(1, count + 1)))]

    def implement(self, *arguments: Any) -> tuple[str, str, Any, Any]:
        """The compiled kernel, how to launch it, and its integers."""
        tensors, tactic = arguments[: len(self.inputs)], arguments[-1]
        values = self._values(arguments)
        site = self._site(tensors, values)
        splits = tensors[0].shape[3] if self.form == "combine" else values.get("splits", 1)
        # A tactic of 0 is TensorRT's word for none.
        tile = self._tiles(site, tensors)[max(tactic, 1) - 1]
        narrow = self.form != "combine" and tensors[3].dtype == self.trt.DataType.INT32
        lengths = "i32" if narrow else "i64"
        compiled = compile_kernel(self.form, site, tile, self.sm, splits=splits, lengths=lengths)
        return (
            compiled.name,
            compiled.ptx,
            self._launch(compiled, site, tile.block_m, splits, tensors[0].shape_expr),
            self._integers(tensors),
        )

    def _launch(self, compiled: Any, site: Site, block_m: int, splits: int, query: Any) -> Any:
        launch = self.plugin.KernelLaunchParams()
        sizes = (query[0], query[2])
        programs = grid(self.form, site, block_m, sizes, splits, self.plugin.cdiv)
        launch.grid_x, launch.grid_y, launch.grid_z = programs
        launch.block_x = compiled.threads
        launch.shared_mem = compiled.shared
        return launch

    def _integers(self, tensors: Sequence[Any]) -> Any:
        """S and T, where the kernel takes them."""
        if self.form == "combine":
            return self.plugin.SymIntExprs.from_tuple(())
        rows, keys = tensors[0].shape_expr[2], tensors[1].shape_expr[2]
        return self.plugin.SymIntExprs.from_tuple((rows, keys))

    def _tiles(self, site: Site, tensors: Sequence[Any]) -> tuple[Any, ...]:
        rows = tensors[0].shape[2]
        return tiles_for(self.form, site, self.sm, rows if rows > 0 else 1)

    def _values(self, arguments: Sequence[Any]) -> dict[str, Any]:
        """The attributes, which follow the inputs."""
        return dict(zip(self.attributes, arguments[len(self.inputs) :], strict=False))

    def _site(self, tensors: Sequence[Any], values: dict[str, Any]) -> Site:
        if self.form == "combine":
            return self._combined(tensors[0].shape, values["dtype"])
        query, key, value = (tensor.shape for tensor in tensors[:3])
        sizes = (query[1], key[1], query[3], value[3])
        self._check(sizes)
        spec = AttentionSpec(
            float(values["scale"]),
            causal=bool(values["causal"]),
            window=int(values["window"]),
            softcap=float(values["softcap"]),
            mask=self.mask,
            lengths=True,
        )
        mask = tensors[-1].shape if self.mask else (1, 1)
        return Site(spec, *sizes, self._dtype(tensors[0]), mask[0] != 1, mask[1] != 1)

    def _combined(self, partial: Sequence[int], dtype: str) -> Site:
        """As much of a site as matters once the keys have been read."""
        heads, dim = partial[1], partial[4]
        self._check((heads, partial[3], dim))
        return Site(AttentionSpec(1.0), heads, heads, dim, dim, dtype)

    def _check(self, sizes: Sequence[int]) -> None:
        if min(sizes) < 0:
            problem = (
                "the numbers of heads and the head sizes are not known when the engine is built"
            )
            raise UnsupportedError(problem, remedy="export the model with fixed ones")

    def _dtype(self, tensor: Any) -> str:
        types = self.trt.DataType
        names = {types.HALF: "fp16", types.BF16: "bf16", types.FLOAT: "fp32"}
        return names.get(tensor.dtype, str(tensor.dtype))
