"""A bundle whose cache has a fixed size, on genai; optimum cannot have one."""

from __future__ import annotations

from pathlib import Path

import pytest
from ecosystem_runs import greedy, needs_environment
from tiny_models import NEW, PROMPTS, Packaged, built

pytestmark = [pytest.mark.ecosystem, needs_environment]


def test_genai_writes_the_same_with_a_fixed_cache(tmp_path: Path) -> None:
    bundle = built(tmp_path, "llama", "flash,kv:max=64")
    wanted = greedy(bundle, PROMPTS, NEW)
    answer = Packaged(bundle, wanted).ask("genai")
    assert answer["alone"] == wanted
    assert answer["batch"] == wanted
