"""The lock file pins everything that `pyproject.toml` asks for, at versions that it allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def pinned(lock: Path) -> dict[str, str]:
    """Version by name."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    found = [line.partition(" ;")[0] for line in lines if not line.startswith("#")]
    return dict(line.split("==") for line in found)


@pytest.fixture(scope="module")
def wanted(root: Path) -> list[Requirement]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    return pinned(root / "requirements.lock")


def test_every_requirement_is_pinned_to_a_version_it_allows(
    wanted: list[Requirement], pins: dict[str, str], root: Path
) -> None:
    script = (root / "tools" / "install_torch.py").read_text(encoding="utf-8")
    torch = re.search(r'^VERSION = "(.+)"$', script, re.MULTILINE)
    assert torch
    versions = {**pins, "torch": torch[1]}
    for requirement in wanted:
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} has {version}"


def test_pytorch_is_left_to_its_own_script(pins: dict[str, str]) -> None:
    assert "torch" not in pins
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-"))]


def test_what_exists_for_linux_only_is_asked_for_there_only(root: Path) -> None:
    lines = (root / "requirements.lock").read_text(encoding="utf-8").splitlines()
    marked = {line.partition("==")[0] for line in lines if 'platform_system == "Linux"' in line}
    assert marked == {
        "tensorrt-cu13-bindings",
        "tensorrt-rtx",
        "tensorrt-rtx-cu13",
        "tensorrt-rtx-cu13-bindings",
        "tensorrt-rtx-cu13-libs",
        "triton",
    }


def test_the_other_runtimes_are_pinned_too(root: Path) -> None:
    folder = root / "tests" / "ecosystem"
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = pinned(folder / "requirements.lock")
    assert wanted
    assert "torch" not in versions
    for requirement in wanted:
        assert requirement.specifier.contains(versions[requirement.name]), requirement


def test_names_are_written_one_way(pins: dict[str, str]) -> None:
    assert list(pins) == sorted(canonicalize_name(name) for name in pins)
