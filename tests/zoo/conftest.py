"""Exports are made once per session."""

from __future__ import annotations

import pytest
from exported import Exports


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("zoo"))
