"""The Triton kernels on the CPU, as realisations of the op.

Triton decides when a kernel is defined whether it will be interpreted, by an environment variable.
So the kernels run in a process of their own, and nothing of it reaches the other tests.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

from optc.core.context import Array
from optc.ir.flash_attention import AttentionSpec
from optc.plugins.flash_attention.reference import round_off, update_cache

Run = Callable[[AttentionSpec, dict[str, Array]], Mapping[str, Array]]


@contextmanager
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton interprets."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_interpret) as pool:
        yield pool


def realisation(pool: ProcessPoolExecutor, splits: int) -> Run:
    """The prefill kernel (`splits` 0) or the decode kernels, as a function of the op's inputs."""

    def run(spec: AttentionSpec, inputs: dict[str, Array]) -> Mapping[str, Array]:
        return {"output": pool.submit(run_kernel, spec, inputs, splits).result()}

    return run


def bound(spec: AttentionSpec, inputs: dict[str, Array]) -> float:
    """The kernels keep scores and sums in float32, whatever the inputs are."""
    return round_off(spec, inputs, scores="float32")


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime.interpreter import InterpreterBuilder

    InterpreterBuilder.create_dot = _widened(InterpreterBuilder.create_dot)


def _widened(create_dot: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter keeps bfloat16 as bits and multiplies these bits as integers.

    Products of bfloat16 are exact in float32, so computing there is what the hardware does.
    """
    import triton.language as tl

    def in_float32(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = [self.create_fp_ext(x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (a, b)]
        return create_dot(self, *wide, *rest)

    return in_float32


def run_kernel(spec: AttentionSpec, inputs: dict[str, Array], splits: int) -> Array:
    """Update the cache as a target would, then run the kernel; outputs start as NaN."""
    import torch

    from optc.plugins.flash_attention.launch import decode, prefill
    from optc.plugins.flash_attention.op import output_shape, partial_shape, weight_shape
    from optc.plugins.flash_attention.tiles import Tile

    arrays = _in_place(spec, inputs)
    tensors = {name: _to_torch(array) for name, array in arrays.items()}
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    mask = tensors.get("mask")
    site = _site(spec, arrays)
    output = torch.full(output_shape(query.shape, value.shape), torch.nan, dtype=query.dtype)
    bound = (query, key, value, tensors["lengths"], mask)
    tile = Tile(32, 32, 4, 1)
    if splits:
        partial = torch.full(partial_shape(query.shape, value.shape, splits), torch.nan)
        weight = torch.full(weight_shape(query.shape, splits), torch.nan)
        partial = output if splits == 1 else partial
        decode(site, tile, bound, partial, weight, output)
    else:
        prefill(site, tile, bound, output)
    return _from_torch(output)


def _site(spec: AttentionSpec, arrays: dict[str, Array]) -> Any:
    import dataclasses

    from optc.plugins.flash_attention.op import Site

    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    mask = arrays.get("mask")
    return Site(
        dataclasses.replace(spec, cache=""),
        heads=arrays["query"].shape[1],
        kv_heads=arrays["key"].shape[1],
        dim=arrays["query"].shape[3],
        value_dim=arrays["value"].shape[3],
        dtype=names[arrays["query"].dtype.name],
        mask_batch=mask is not None and mask.shape[0] > 1,
        mask_heads=mask is not None and mask.shape[1] > 1,
    )


def _in_place(spec: AttentionSpec, inputs: dict[str, Array]) -> dict[str, Array]:
    arrays = dict(inputs)
    if not spec.cache:
        keys = inputs["key"].shape[2]
        return {"lengths": np.full(inputs["query"].shape[0], keys), **arrays}
    new = inputs["key"].shape[2]
    grown = np.full(inputs["query"].shape[0], inputs["past_key"].shape[2] + new)
    lengths = inputs.get("lengths", grown)
    for name in ("key", "value"):
        past = arrays.pop(f"past_{name}")
        arrays[name] = update_cache(spec.cache, past, inputs[name], lengths).astype(past.dtype)
    return arrays | {"lengths": lengths}


def _to_torch(array: Array) -> Any:
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _from_torch(tensor: Any) -> Array:
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
