"""The conformance suite of `optc::FlashAttention`: one list of cases for every realisation.

A realisation is a function `run(spec, inputs) -> outputs` by the op's names. To hold one to the
suite:

    @pytest.mark.parametrize("case", cases("float32", "float16"), ids=str)
    def test_conformance(case: Case) -> None:
        check(case, run)

Every output is compared with float64 (`plugins/flash_attention/reference.py`), with a bound that
follows from the arithmetic of the realisation; rows that see nothing must be zeros, exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np

from optc.core.context import Array
from optc.ir.flash_attention import AttentionSpec
from optc.plugins.flash_attention.reference import flash_attention, round_off

Run = Callable[[AttentionSpec, dict[str, Array]], Mapping[str, Array]]
Bound = Callable[[AttentionSpec, dict[str, Array]], float]
Change = Callable[[dict[str, Array]], None]

OUTPUTS = ("output", "present_key", "present_value")
DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}

PLAIN = AttentionSpec(0.2)
CAUSAL = AttentionSpec(0.2, causal=True)
GROWING = AttentionSpec(0.2, causal=True, cache="concat", lengths=True)
STATIC = AttentionSpec(0.2, causal=True, cache="static", lengths=True)
LAYOUTS = (CAUSAL, GROWING, STATIC)
INTEGERS = tuple(dataclasses.replace(spec, int8=True) for spec in (GROWING, STATIC))

EVERY_SPEC = [
    AttentionSpec(0.2, causal, window, softcap, mask, cache, lengths)
    for mask, cache, lengths, causal, window, softcap in product(
        ["", "bool", "bias"],
        ["", "concat", "static"],
        [False, True],
        [False, True],
        [0, 2],
        [0.0, 3.0],
    )
    if lengths or cache != "static"
]


@dataclasses.dataclass(frozen=True)
class Case:
    """One computation that every realisation must get right.

    Attributes:
        what: The rule it is about.
        spec: Attributes and parts of the site.
        sizes: Arguments of `make_inputs`.
        dtype: Key of `DTYPES`.
        change: What is done to the random inputs.
        tolerance: Bound of the error where the arithmetic alone would allow far too much.
    """

    what: str
    spec: AttentionSpec
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    change: Change | None = None
    tolerance: float | None = None

    def __str__(self) -> str:
        parts = [self.what, label(self.spec)]
        parts += [f"{name}={size}" for name, size in self.sizes.items()]
        return "-".join([*parts, self.dtype]).replace(" ", "_")

    def inputs(self) -> dict[str, Array]:
        """Random inputs, the same every time."""
        inputs = make_inputs(self.spec, dtype=DTYPES[self.dtype], **self.sizes)
        if self.change:
            self.change(inputs)
        return inputs


def label(spec: AttentionSpec) -> str:
    return f"{spec.overload or 'plain'}{'_softcap' if spec.softcap else ''}"


def check(case: Case, run: Run, bound: Bound = round_off) -> None:
    """Run a case and compare with float64.

    Args:
        case: What to compute.
        run: The realisation.
        bound: Largest error that its arithmetic explains.
    """
    inputs = case.inputs()
    given, expected = run(case.spec, inputs), flash_attention(case.spec, inputs)
    output, wanted = given["output"].astype(float), expected["output"]
    assert output.shape == wanted.shape
    error = np.abs(output - wanted).max()
    assert error <= (case.tolerance or bound(case.spec, inputs))
    blind = (wanted == 0).all(axis=-1)
    np.testing.assert_array_equal(output[blind], 0)
    for name in ("present_key", "present_value"):
        if name in expected and name in given:
            _check_cache(given[name], expected[name], inputs, name)


def _check_cache(given: Array, expected: Array, inputs: dict[str, Array], name: str) -> None:
    """Behind a row's length a cache may hold anything."""
    assert given.shape == expected.shape
    full = np.full(given.shape[0], given.shape[2])
    for row, length in enumerate(inputs.get("lengths", full)):
        np.testing.assert_array_equal(given[row, :, :length], expected[row, :, :length], name)


def cases(*dtypes: str) -> list[Case]:
    """The whole list for a realisation that computes in these types."""
    found = [*_parts(), *_shapes(), *_visibility(), *_lengths(), *_numbers(), *_integers()]
    return [case for case in found if case.dtype in dtypes]


def _parts() -> list[Case]:
    return [Case("every combination of parts", spec, {"heads": (2, 1)}) for spec in EVERY_SPEC]


def _shapes() -> list[Case]:
    found = []
    for spec in LAYOUTS:
        for dim in (32, 64, 80, 128, 256):
            scaled = dataclasses.replace(spec, scale=dim**-0.5)
            found.append(Case("head size", scaled, {"dims": (dim, dim)}))
        found.append(Case("values of another size", spec, {"dims": (32, 48)}))
        found += [Case("heads", spec, {"heads": heads}) for heads in ((4, 4), (8, 2), (4, 1))]
        found += [Case("one new token", spec, {"rows": 1, "batch": batch}) for batch in (1, 2, 5)]
    for spec in (PLAIN, CAUSAL, dataclasses.replace(CAUSAL, window=40)):
        for rows, keys in ((37, 37), (33, 70), (70, 133)):
            sizes = {"rows": rows, "keys": keys, "batch": 1, "heads": (2, 1)}
            found.append(Case("no multiple of a tile", spec, sizes))
    for spec in (dataclasses.replace(CAUSAL, mask=mask) for mask in ("bool", "bias")):
        sizes = {"rows": 33, "keys": 70, "batch": 2, "heads": (2, 1)}
        found.append(Case("a mask over several tiles", spec, sizes))
    return found


def _visibility() -> list[Case]:
    found = []
    for spec in LAYOUTS:
        for window in (1, 2, 5, 100):
            found.append(Case(f"window {window}", dataclasses.replace(spec, window=window)))
    for mask, window in product(("bool", "bias"), (0, 2)):
        spec = AttentionSpec(0.2, window=window, mask=mask)
        found.append(Case("a row that sees nothing", spec, change=_hide_second_query))
    found.append(Case("queries before the first key", CAUSAL, {"keys": 1}))
    found.append(Case("queries before the first key", CAUSAL, {"rows": 40, "keys": 20}))
    found.append(Case("the last query sees the last key", CAUSAL, change=_only_last_value))
    bias = AttentionSpec(0.2, mask="bias")
    found.append(Case("the lowest float hides", bias, change=_lowest_float))
    return found


def _lengths() -> list[Case]:
    found = []
    for window, lengths in product((0, 2), (None, [3, 3])):
        spec = AttentionSpec(0.2, True, window, cache="concat", lengths=bool(lengths))
        found.append(Case("an empty cache", spec, {"past": 0, "lengths": lengths}))
    for spec in (GROWING, STATIC):
        for lengths in ([3, 3], [7, 3], [5, 7], [4, 6]):
            found.append(Case("rows of different length", spec, {"lengths": lengths}))
        for lengths in ([3, 3], [3, 11], [20, 9]):
            sizes = {"lengths": lengths, "past": 24, "capacity": 24}
            found.append(Case("a past with room to spare", spec, sizes))
    for causal in (False, True):
        spec = AttentionSpec(0.2, causal=causal, lengths=True)
        found.append(Case("a row of length zero", spec, {"lengths": [0, 7]}))
        sizes = {"rows": 2, "keys": 90, "lengths": [17, 65, 90], "batch": 3}
        found.append(Case("lengths over several tiles", spec, sizes))
    ragged = AttentionSpec(0.2, causal=True, lengths=True)
    # Without what lies behind the ends, the arithmetic explains 8e-6.
    sizes = {"lengths": [4, 6]}
    behind = Case("behind a row's end", ragged, sizes, change=_stale_behind, tolerance=1e-5)
    return [*found, behind]


def _numbers() -> list[Case]:
    found = []
    for spec, sign in product((PLAIN, *LAYOUTS), (1, -1)):
        # exp(89) is already infinite in float32; these scores reach 10^5, so one key takes it all.
        change = _times(sign * 1e5)
        found.append(Case(f"large scores {sign}", spec, change=change, tolerance=1e-5))
    tiled = {"batch": 1, "heads": (2, 1), "rows": 33, "keys": 70, "dims": (64, 64)}
    for spec, dtype in product((PLAIN, *LAYOUTS), ("float16", "bfloat16")):
        found.append(Case("half precision", spec, dtype=dtype))
        found.append(Case("large scores", spec, dtype=dtype, change=_times(1e3)))
    for spec, dtype in product(EVERY_SPEC, ("float16", "bfloat16")):
        if spec.causal and not spec.cache and not spec.lengths:
            found.append(Case("half precision over several tiles", spec, tiled, dtype))
    return found


def _integers() -> list[Case]:
    """A cache of int8: what is read is what is stored, new keys too."""
    parts = [dataclasses.replace(spec, int8=True) for spec in EVERY_SPEC if spec.cache]
    found = [Case("every combination of parts", spec, {"heads": (2, 1)}) for spec in parts]
    for spec in INTEGERS:
        for lengths in ([3, 3], [7, 3], [4, 6]):
            found.append(Case("rows of different length", spec, {"lengths": lengths}))
        room = {"lengths": [3, 11], "past": 24, "capacity": 24}
        found.append(Case("a past with room to spare", spec, room))
        found += [Case("one new token", spec, {"rows": 1, "batch": batch}) for batch in (1, 3)]
        found += [Case("heads", spec, {"heads": heads}) for heads in ((4, 4), (8, 2), (4, 1))]
        found.append(Case("values of another size", spec, {"dims": (32, 48)}))
        found.append(Case("keys beyond the range are cut off", spec, change=_beyond_the_range))
        found.append(Case("half precision", spec, dtype="float16"))
    return found


def _beyond_the_range(inputs: dict[str, Array]) -> None:
    inputs["key"][:, :, :, ::3] *= 100
    inputs["value"][:, :, 1] *= -100


def _hide_second_query(inputs: dict[str, Array]) -> None:
    mask = np.ones((2, 1, 3, 7), bool)
    mask[0, 0, 1] = False
    boolean = inputs["mask"].dtype == bool
    inputs["mask"] = mask if boolean else np.where(mask, 0, -np.inf).astype(np.float32)


def _only_last_value(inputs: dict[str, Array]) -> None:
    inputs["value"][:] = 0
    inputs["value"][:, :, -1] = 1


def _lowest_float(inputs: dict[str, Array]) -> None:
    visible = np.random.default_rng(1).random(inputs["mask"].shape) > 0.3
    inputs["mask"] = np.where(visible, 0, np.finfo(np.float32).min).astype(np.float32)


def _stale_behind(inputs: dict[str, Array]) -> None:
    for row, length in enumerate(inputs["lengths"]):
        inputs["key"][row, :, length:] = 1e4
        inputs["value"][row, :, length:] = 1e4


def _times(factor: float) -> Change:
    def change(inputs: dict[str, Array]) -> None:
        inputs["query"] = (inputs["query"] * factor).astype(inputs["query"].dtype)

    return change


def make_inputs(
    spec: AttentionSpec,
    *,
    batch: int = 2,
    heads: tuple[int, int] = (4, 2),
    rows: int = 3,
    keys: int = 7,
    dims: tuple[int, int] = (32, 32),
    past: int = 4,
    capacity: int = 9,
    lengths: list[int] | None = None,
    dtype: Any = np.float32,
    seed: int = 0,
) -> dict[str, Array]:
    """Random inputs by the op's names.

    Args:
        spec: Which inputs there are.
        batch: B.
        heads: Hq and Hkv.
        rows: S; also the number of new keys when there is a cache.
        keys: Number of keys where there is no cache.
        dims: D and Dv.
        past: Keys already in a growing cache.
        capacity: Size of a static cache.
        lengths: Valid keys of each row; ragged ones when None.
        dtype: Element type.
        seed: Seed of all of it.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(dtype)

    new = rows if spec.cache else keys
    held = {"": 0, "concat": past, "static": capacity}[spec.cache]
    total = {"": keys, "concat": past + rows, "static": capacity}[spec.cache]
    inputs = {
        "query": normal(batch, heads[0], rows, dims[0]),
        "key": normal(batch, heads[1], new, dims[0]),
        "value": normal(batch, heads[1], new, dims[1]),
    }
    if spec.lengths:
        full = past + rows if spec.cache else keys
        ragged = [full - 2 * (row % 2) for row in range(batch)]
        inputs["lengths"] = np.array(lengths or ragged, np.int64)
        total = max(past, int(inputs["lengths"].max())) if spec.cache == "concat" else total
    if spec.cache:
        inputs["past_key"] = normal(batch, heads[1], held, dims[0])
        inputs["past_value"] = normal(batch, heads[1], held, dims[1])
    if spec.int8:
        for part in ("key", "value"):
            steps = rng.uniform(0.01, 0.04, heads[1]).astype(np.float32)
            past = inputs[f"past_{part}"].astype(np.float32) / steps[:, None, None]
            inputs[f"past_{part}"] = past.round().clip(-128, 127).astype(np.int8)
            inputs[f"{part}_scale"] = steps
    if spec.mask == "bool":
        inputs["mask"] = rng.random((batch, 1, rows, total)) > 0.3
    if spec.mask == "bias":
        inputs["mask"] = normal(1, heads[0], rows, total)
    return inputs
