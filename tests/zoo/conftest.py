"""Exports are made once per session."""

from __future__ import annotations

import pytest
from exported import Exports
from families import FAMILIES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of a family run on the same worker, which exports its files once."""
    for item in items:
        name = item.callspec.id.split("-")[0] if hasattr(item, "callspec") else ""
        if name in FAMILIES:
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("zoo"))
