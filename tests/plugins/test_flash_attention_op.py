"""What the plugin says of a site: refusals, grids, tiles, splits."""

from __future__ import annotations

import dataclasses

import pytest

from optc.core.errors import UnsupportedError
from optc.ir.flash_attention import AttentionSpec
from optc.plugins.flash_attention.compile import ARCHITECTURES
from optc.plugins.flash_attention.op import Site, grid, plugin_name
from optc.plugins.flash_attention.tiles import Tile, split_count, tiles_for

SITE = Site(AttentionSpec(0.1, causal=True), 32, 8, 128, 128, "fp16")


def cdiv(size: int, by: int) -> int:
    return -(-size // by)


def test_a_plain_site_is_taken() -> None:
    assert SITE.refusal() is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "fp64"}, "the kernel computes in fp16, bf16, fp32, and this site is fp64"),
        ({"kv_heads": 5}, "32 query heads cannot share 5 key heads evenly"),
        ({"value_dim": 288}, "the kernel takes heads of at most 256, and these have 288"),
        (
            {"spec": AttentionSpec(0.1, cache="static")},
            "the kernel reads keys that are in place, and this site still updates its cache",
        ),
    ],
)
def test_a_site_that_is_not_taken_has_a_reason(change: dict[str, object], reason: str) -> None:
    assert dataclasses.replace(SITE, **change).refusal() == reason  # type: ignore[arg-type]


def test_decoding_packs_the_query_heads_of_a_key_head_into_one_tile() -> None:
    """32 heads of one token over 8 key heads: 8 programs a split, not 32."""
    assert grid("split", SITE, 16, (2, 1), 10, cdiv) == (10, 8, 2)
    assert grid("prefill", SITE, 128, (2, 300), 1, cdiv) == (3, 32, 2)
    assert grid("combine", SITE, 1, (2, 1), 10, cdiv) == (64, 1, 1)


def test_one_sequence_is_split_until_it_fills_the_chip() -> None:
    tile = Tile(16, 64, 4, 3)
    assert split_count(8, 132, 32768, tile) == 33
    assert split_count(8 * 64, 132, 32768, tile) == 1
    assert split_count(8, 132, 300, tile) == 3, "each split has two tiles of keys at least"


@pytest.mark.parametrize("sm", ARCHITECTURES)
@pytest.mark.parametrize("dim", [16, 32, 48, 64, 96, 128, 256])
@pytest.mark.parametrize("mask", ["", "bool", "bias"])
def test_there_are_tiles_for_every_head_size(mask: str, dim: int, sm: int) -> None:
    spec = dataclasses.replace(SITE.spec, mask=mask)
    site = dataclasses.replace(SITE, spec=spec, dim=dim, value_dim=dim)
    for form in ("prefill", "split"):
        tiles = tiles_for(form, site, sm)
        assert len(tiles) == len(set(tiles)) >= 2


def test_a_newer_chip_gets_the_tiles_of_the_next_lower_one() -> None:
    assert tiles_for("prefill", SITE, 121) == tiles_for("prefill", SITE, 120)
    assert tiles_for("prefill", SITE, 89) == tiles_for("prefill", SITE, 86)


def test_a_chip_that_is_too_old_is_refused() -> None:
    with pytest.raises(UnsupportedError) as caught:
        tiles_for("prefill", SITE, 75)
    assert str(caught.value) == (
        "the kernels need compute capability 8.0, and this chip has 7.5; "
        "let the function body compute it"
    )


def test_names_of_plugins() -> None:
    assert plugin_name("prefill", "bool") == "FlashAttentionPrefillBool"
    assert plugin_name("combine") == "FlashAttentionCombine"
