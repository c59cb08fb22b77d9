from __future__ import annotations

import pytest
from ecosystem_runs import greedy
from tiny_models import NEW, PROMPTS, Packaged, built


@pytest.fixture(scope="session", params=["llama", "odd", "gpt2"])
def packaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    """Each model in turn, with a cache that grows, as a bundle."""
    bundle = built(tmp_path_factory.mktemp(request.param), request.param, "flash,kv")
    return Packaged(bundle, greedy(bundle, PROMPTS, NEW))
