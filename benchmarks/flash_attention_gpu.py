"""FlashAttention on an NVIDIA GPU: are the numbers right, and how fast is it?

    python benchmarks/flash_attention_gpu.py [--dtype bf16] [--only prefill|decode] [--write]

First the kernels are compared with float64. Then they are timed against PyTorch's
`scaled_dot_product_attention`, each of its backends forced, in one run: all contenders take turns,
each time is a median, and next to it stands what the same run measured as the machine's own limit
(a large matrix product for prefill, a large copy for decoding). Caches are flushed before each
measurement. `--write` puts the table into `docs/performance.md`. Needs PyTorch and Triton.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flash_attention_table import Measurement, Shape, decode_bytes, prefill_flops, section, table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from optc.ir.flash_attention import AttentionSpec
from optc.plugins.flash_attention.launch import decode, prefill
from optc.plugins.flash_attention.op import Site, output_shape, partial_shape, weight_shape
from optc.plugins.flash_attention.reference import attend, round_off
from optc.plugins.flash_attention.tiles import Tile, split_count, tiles_for

Call = Callable[[], Any]

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
HEADS, KV_HEADS, DIM = 32, 8, 128
ROUNDS = 21
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CHECKED = (
    (AttentionSpec(0.1, causal=True, lengths=True), 200, 333),
    (AttentionSpec(0.1, causal=True, window=70, lengths=True), 200, 333),
    (AttentionSpec(0.1, causal=True, softcap=3.0, lengths=True), 200, 333),
    (AttentionSpec(0.1, lengths=True), 200, 333),
    (AttentionSpec(0.1, causal=True, lengths=True), 1, 3000),
    (AttentionSpec(0.1, causal=True, window=500, lengths=True), 3, 3000),
)


def chip() -> tuple[int, int]:
    """Compute capability and number of multiprocessors."""
    found = torch.cuda.get_device_properties(0)
    return 10 * found.major + found.minor, found.multi_processor_count


def tensors(shape: Shape, dtype: str, device: str) -> list[torch.Tensor]:
    """Random query, key, value, and full lengths."""
    torch.manual_seed(0)
    sizes = [
        (shape.batch, shape.heads, shape.rows, shape.dim),
        (shape.batch, shape.kv_heads, shape.keys, shape.dim),
        (shape.batch, shape.kv_heads, shape.keys, shape.dim),
    ]
    made = [torch.randn(size, dtype=TYPES[dtype], device=device) for size in sizes]
    return [*made, torch.full((shape.batch,), shape.keys, dtype=torch.int64, device=device)]


def ours(
    spec: AttentionSpec, given: list[torch.Tensor], tile: Tile, splits: int, dtype: str
) -> tuple[Call, torch.Tensor]:
    """A call of our kernel, decoding where `splits` is above 0, and where its output appears."""
    query, key, value, lengths = given
    site = Site(spec, query.shape[1], key.shape[1], query.shape[3], value.shape[3], dtype)
    output = torch.full_like(query, torch.nan)
    arguments: Any = (query, key, value, lengths, None)
    if not splits:
        return lambda: prefill(site, tile, arguments, output), output
    assert output.shape == output_shape(query.shape, value.shape)
    floats = {"dtype": torch.float32, "device": query.device}
    weight = torch.empty(weight_shape(query.shape, splits), **floats)
    partial = torch.empty(partial_shape(query.shape, value.shape, splits), **floats)
    partial = output if splits == 1 else partial
    return lambda: decode(site, tile, arguments, partial, weight, output), output


def check(dtype: str, device: str, tile: Tile | None = None, shrink: int = 1) -> list[str]:
    """Compare with float64; a line for each case.

    Args:
        dtype: Key of `TYPES`.
        device: Where to compute.
        tile: Tile to use; None: the one that is used on this chip.
        shrink: Divides the sizes.

    Raises:
        SystemExit: An error is larger than the arithmetic explains.
    """
    lines = []
    for spec, rows, keys in CHECKED:
        shape = Shape(2, 4, 2, max(1, rows // shrink), keys // shrink, DIM // shrink)
        given = tensors(shape, dtype, device)
        given[3][1] = keys // shrink // 2
        site = Site(spec, 4, 2, shape.dim, shape.dim, dtype)
        form = "prefill" if shape.rows > 8 else "split"
        used = tile or tiles_for(form, site, chip()[0], shape.rows)[0]
        call, output = ours(spec, given, used, 0 if form == "prefill" else 5, dtype)
        call()
        # float32 holds every half-precision number, and numpy knows no bfloat16.
        arrays = [tensor.cpu().float().numpy() for tensor in given[:3]]
        expected = attend(spec, *arrays, given[3].cpu().numpy())
        error = float(np.abs(output.cpu().double().numpy() - expected).max())
        names = dict(zip(("query", "key", "value"), arrays, strict=True))
        unit = torch.finfo(TYPES[dtype]).eps / 2
        largest = float(np.abs(arrays[2]).max())
        bound = round_off(spec, names) + 2 * unit * largest
        lines.append(f"{form} {spec.overload} S={shape.rows} T={shape.keys}: {error:.1e}")
        if not error <= bound:
            sys.exit(f"{lines[-1]} is more than the arithmetic explains, {bound:.1e}")
    return lines


def torch_call(backend: str, given: list[torch.Tensor], causal: bool) -> Call:
    """PyTorch's attention with one backend forced.

    The efficient backend shares no key heads, so it gets them repeated beforehand.
    """
    query, key, value, _ = given
    shared = backend != "efficient"
    if not shared:
        key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (key, value))

    def call() -> torch.Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return scaled_dot_product_attention(
                query, key, value, is_causal=causal, enable_gqa=shared
            )

    return call


def contenders(shape: Shape, dtype: str) -> dict[str, Call]:
    """Our kernel with each tile, and every backend of PyTorch that takes the shape."""
    sm, processors = chip()
    given = tensors(shape, dtype, "cuda")
    spec = AttentionSpec(DIM**-0.5, causal=True, lengths=True)
    site = Site(spec, HEADS, KV_HEADS, DIM, DIM, dtype)
    form = "prefill" if shape.rows > 1 else "split"
    calls: dict[str, Call] = {}
    for tile in tiles_for(form, site, sm, shape.rows):
        splits = 0
        if form == "split":
            splits = split_count(shape.batch * KV_HEADS, processors, shape.keys, tile)
        name = f"optc {tile.block_m}x{tile.block_n} w{tile.warps} s{tile.stages}"
        calls[name + (f" / {splits}" if splits else "")] = ours(spec, given, tile, splits, dtype)[0]
    for backend in BACKENDS:
        calls[f"PyTorch {backend}"] = torch_call(backend, given, causal=shape.rows > 1)
    return {name: call for name, call in calls.items() if runs(name, call)}


def runs(name: str, call: Call) -> bool:
    """Warm up; whether the backend takes the shape at all."""
    try:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
    except RuntimeError as e:
        print(f"  {name} left out: {str(e).splitlines()[0]}", file=sys.stderr)
        return False
    return True


def medians(calls: dict[str, Call]) -> dict[str, float]:
    """Milliseconds of each, taken in turns, with cold caches."""
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: float(np.median(found)) for name, found in times.items()}


def limit(form: str, dtype: str) -> tuple[Call, float]:
    """What the machine can do, and its work in floating-point operations or bytes."""
    if form == "prefill":
        square = torch.randn(8192, 8192, dtype=TYPES[dtype], device="cuda")
        return lambda: square @ square, 2.0 * 8192**3
    source = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2.0 * 2**30


def measure(form: str, shapes: list[Shape], dtype: str) -> list[Measurement]:
    """Every contender on every shape."""
    found = []
    call, work = limit(form, dtype)
    for shape in shapes:
        torch.cuda.empty_cache()
        times = medians({"limit": call, **contenders(shape, dtype)})
        ceiling = work / times.pop("limit")
        own = prefill_flops(shape) if form == "prefill" else decode_bytes(shape, itemsize=2)
        found += [Measurement(form, shape, n, ms, own / ms, ceiling) for n, ms in times.items()]
        print(table(found[-len(times) :]), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=TYPES, default="fp16")
    parser.add_argument("--only", choices=["prefill", "decode"])
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no NVIDIA GPU is at hand, and nothing was measured", file=sys.stderr)
        return 3
    print("\n".join(check(arguments.dtype, "cuda")))
    found = []
    if arguments.only != "decode":
        shapes = [Shape(4, HEADS, KV_HEADS, s, s, DIM) for s in (2048, 4096, 8192, 16384)]
        found += measure("prefill", shapes, arguments.dtype)
    if arguments.only != "prefill":
        sizes = [(b, t) for b in (1, 4, 16, 64) for t in (2048, 8192, 32768)]
        shapes = [Shape(b, HEADS, KV_HEADS, 1, t, DIM) for b, t in sizes]
        found += measure("decode", shapes, arguments.dtype)
    if arguments.write:
        machine = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(section(text, machine, arguments.dtype, table(found)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
