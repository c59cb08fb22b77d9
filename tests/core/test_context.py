"""What a pass is given: nothing random that is not seeded, nothing it could change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from optc.core.context import Context


def test_the_same_seed_gives_the_same_numbers_each_time() -> None:
    ctx = Context(seed=7)
    np.testing.assert_array_equal(ctx.rng().random(4), ctx.rng().random(4))
    assert not np.array_equal(ctx.rng().random(4), Context(seed=8).rng().random(4))


def test_every_site_is_wanted_unless_someone_narrows_it() -> None:
    assert Context().wants("layer0")
    narrowed = Context(wants=lambda site: site != "layer0")
    assert [site for site in ("layer0", "layer1") if narrowed.wants(site)] == ["layer1"]


def test_a_pass_cannot_change_its_surroundings() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Context().seed = 1  # type: ignore[misc]
