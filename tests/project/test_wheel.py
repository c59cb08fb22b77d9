"""The wheel holds the whole of `optc`, passes and plugins included, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

PACKED = {".py", ".txt", ".html", ".toml", ".typed"}


@pytest.fixture(scope="module")
def wheel(root: Path, sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a clean copy: setuptools packs whatever an earlier build has left behind."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in sources:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, tree / name, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(tree)], check=True, capture_output=True)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_only_optc_is_at_the_top(names: set[str]) -> None:
    tops = {PurePosixPath(name).parts[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"optc"}


def test_every_file_of_the_package_is_packed(names: set[str], sources: list[str]) -> None:
    """`passes/x.py` in the repository is `optc/passes/x.py` for whoever installs it."""
    expected = set()
    for source in map(PurePosixPath, sources):
        if source.suffix in PACKED and source.parts[0] in {"optc", "passes", "plugins"}:
            expected.add(str(source if source.parts[0] == "optc" else "optc" / source))
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == expected
    assert "optc/passes/flash.py" in packed
    assert "optc/plugins/flash_attention/reference.py" in packed


def test_the_licence_and_the_command_are_there(wheel: Path, names: set[str]) -> None:
    (licence,) = [name for name in names if name.endswith("/LICENSE")]
    (commands,) = [name for name in names if name.endswith("/entry_points.txt")]
    with zipfile.ZipFile(wheel) as archive:
        assert b"Apache License" in archive.read(licence)
        assert b"optc = optc.cli.main:main" in archive.read(commands)


def test_what_was_packed_works_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "import optc.cli.main, optc.passes.flash as flash; print(flash.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(site / "optc" / "passes" / "flash.py")
