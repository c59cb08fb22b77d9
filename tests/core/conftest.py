from __future__ import annotations

import pytest
import toy_passes

from optc.core.base import Pass
from optc.core.registry import Registry


@pytest.fixture(scope="session")
def registry() -> Registry[Pass]:
    return Registry("pass", "passes", Pass, toy_passes.TABLE, points=[])
