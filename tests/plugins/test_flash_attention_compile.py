"""Every kernel compiles for every architecture, without a GPU, and fits it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from optc.core.errors import PassContractError, UnsupportedError
from optc.ir.flash_attention import AttentionSpec
from optc.plugins.flash_attention import compile as kernels
from optc.plugins.flash_attention.compile import ARCHITECTURES, Compiled, compile_kernel
from optc.plugins.flash_attention.op import Site
from optc.plugins.flash_attention.resources import Resources, resources
from optc.plugins.flash_attention.tiles import SHARED_DEFAULT, SHARED_LIMITS, tiles_for


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled here is compiled from this source, and leaves nothing behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def site(dtype: str = "fp16", dim: int = 128, **parts: object) -> Site:
    spec = AttentionSpec(dim**-0.5, causal=True, **parts)  # type: ignore[arg-type]
    return Site(spec, heads=32, kv_heads=8, dim=dim, value_dim=dim, dtype=dtype)


def best(form: str, where: Site, sm: int) -> Compiled:
    return compile_kernel(form, where, tiles_for(form, where, sm)[0], sm, splits=16)


def assert_fits(taken: Resources, sm: int) -> None:
    """A spill outside of loops costs a few cycles once per program; it stays small."""
    assert taken.loop_spills == 0
    assert taken.stack <= 128
    assert taken.registers <= 255
    assert taken.shared <= SHARED_LIMITS[sm]


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("form", ["prefill", "split"])
@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_half_precision_fits(sm: int, form: str, dim: int) -> None:
    taken = resources(best(form, site(dim=dim), sm))
    assert_fits(taken, sm)
    assert taken.matrix > 0, "products are to be made by tensor cores"


@pytest.mark.parametrize("form", ["prefill", "split"])
@pytest.mark.parametrize("sm", [80, 90, 120])
def test_bfloat16_fits(sm: int, form: str) -> None:
    assert_fits(resources(best(form, site("bf16"), sm)), sm)


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_combining_fits(sm: int) -> None:
    assert_fits(resources(best("combine", site(), sm)), sm)


@pytest.mark.parametrize("parts", [{"window": 1024}, {"softcap": 50.0}, {"mask": "bool"}], ids=str)
@pytest.mark.parametrize("sm", [80, 90])
def test_the_other_parts_fit(sm: int, parts: dict[str, object]) -> None:
    assert_fits(resources(best("prefill", site(**parts), sm)), sm)


@pytest.mark.parametrize("dim", [32, 96, 256])
def test_other_head_sizes_fit(dim: int) -> None:
    assert_fits(resources(best("prefill", site(dim=dim), 90)), 90)


@pytest.mark.parametrize("form", ["prefill", "split"])
def test_the_last_tile_needs_no_leave_of_the_driver(form: str) -> None:
    for dim in (64, 128, 256):
        where = site(dim=dim)
        tile = tiles_for(form, where, 90)[-1]
        assert compile_kernel(form, where, tile, 90, splits=16).shared <= SHARED_DEFAULT


@pytest.mark.parametrize("sm", [87, 121])
def test_chips_between_the_known_ones_are_compiled_for_too(sm: int) -> None:
    compiled = best("split", site(), sm)
    assert f".target sm_{sm}" in compiled.ptx
    assert_fits(resources(compiled), max(known for known in ARCHITECTURES if known <= sm))


def test_hopper_uses_its_warp_group_instructions() -> None:
    ptx = best("prefill", site(), 90).ptx
    assert "wgmma.mma_async" in ptx
    assert "cp.async" in ptx


def test_a_site_that_the_kernel_does_not_take_is_refused() -> None:
    with pytest.raises(UnsupportedError) as caught:
        best("prefill", site(dim=512), 90)
    assert str(caught.value) == (
        "the kernel takes heads of at most 256, and these have 512; "
        "let the function body compute it"
    )


def test_a_scratch_pointer_that_is_read_is_no_parameter_to_drop() -> None:
    head = ".visible .entry f(\n\t.param .u64 f_param_0,\n\t.param .u64 f_param_1\n)\n"
    ptx = head + "{ ld.param.b64 [f_param_1]; }"
    with pytest.raises(PassContractError, match="reads the scratch pointer f_param_1"):
        kernels._without_scratch(ptx, 1)
