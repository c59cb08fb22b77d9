from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from optc.bundle.manifest import Manifest
from optc.bundle.read import read_bundle
from optc.bundle.write import check_writable, write_bundle
from optc.core.errors import BundleError, OutputError, ParityError

Fill = Callable[[Path], Manifest]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_it_writes_the_files_and_their_hashes(bundle: Path) -> None:
    found = contents(bundle)
    listed = read_bundle(bundle).manifest.files
    assert set(found) == {*listed, "manifest.json"}
    for name, entry in listed.items():
        assert entry.size == len(found[name])
        assert entry.sha256 == hashlib.sha256(found[name]).hexdigest()


def test_nothing_else_is_left_beside_it(bundle: Path) -> None:
    assert [path.name for path in bundle.parent.iterdir()] == ["model.optc"]


def test_two_bundles_are_byte_identical(bundle: Path, filler: Fill, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "deep" / "other.optc", filler)
    assert contents(other) == contents(bundle)


def test_it_is_readable_by_others_as_any_new_folder(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    assert bundle.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_relative_path_is_relative_to_here(
    filler: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_bundle("out.optc", filler) == tmp_path / "out.optc"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ParityError("no"), OSError(28, "No space left on device")]
)
def test_an_interrupted_write_leaves_nothing(
    error: BaseException, filler: Fill, tmp_path: Path
) -> None:
    def stop(folder: Path) -> Manifest:
        filler(folder)
        raise error

    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_bundle(tmp_path / "new" / "deep" / "model.optc", stop)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def stop(folder: Path) -> Manifest:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError) as caught:
        write_bundle(tmp_path / "model.optc", stop)
    assert str(caught.value).endswith("model.optc: cannot be written: No space left on device")


def test_an_interrupted_write_keeps_the_old_bundle(
    bundle: Path, filler: Fill, tmp_path: Path
) -> None:
    before = contents(bundle)

    def stop(folder: Path) -> Manifest:
        (folder / "engine.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle, stop)
    assert contents(bundle) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.optc"]


def test_a_failed_exchange_puts_the_old_bundle_back(
    bundle: Path, filler: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(bundle)
    rename = Path.rename

    def flaky(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(5, "Input/output error", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", flaky)
    with pytest.raises(OutputError, match="Input/output error"):
        write_bundle(bundle, filler)
    assert contents(bundle) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.optc"]


def test_a_bundle_is_replaced_whole(bundle: Path, manifest: Manifest) -> None:
    def smaller(folder: Path) -> Manifest:
        assert (bundle / "reference.npz").exists()
        (folder / "engine.onnx").write_bytes(b"new")
        return manifest

    write_bundle(bundle, smaller)
    assert set(contents(bundle)) == {"engine.onnx", "manifest.json"}
    assert (bundle / "engine.onnx").read_bytes() == b"new"


def test_a_damaged_bundle_can_be_replaced(bundle: Path, filler: Fill) -> None:
    (bundle / "engine.onnx").write_bytes(b"damaged")
    write_bundle(bundle, filler)
    read_bundle(bundle)


def occupy_file(out: Path) -> None:
    out.write_text("mine")


def occupy_folder(out: Path) -> None:
    out.mkdir()


def occupy_web_page(out: Path) -> None:
    out.mkdir()
    (out / "manifest.json").write_text('{"name": "my web page"}')


def occupy_link(out: Path) -> None:
    out.symlink_to(out.parent)


def occupy_dead_link(out: Path) -> None:
    out.symlink_to(out.parent / "nowhere")


@pytest.mark.parametrize(
    "occupy", [occupy_file, occupy_folder, occupy_web_page, occupy_link, occupy_dead_link]
)
def test_what_is_no_bundle_is_not_replaced(
    occupy: Callable[[Path], None], filler: Fill, tmp_path: Path
) -> None:
    out = tmp_path / "taken"
    occupy(out)
    for refuse in (lambda: check_writable(out), lambda: write_bundle(out, filler)):
        with pytest.raises(OutputError, match="is there already; choose another path"):
            refuse()
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_what_appeared_meanwhile_is_not_replaced(filler: Fill, tmp_path: Path) -> None:
    out = tmp_path / "model.optc"

    def slow(folder: Path) -> Manifest:
        occupy_folder(out)
        return filler(folder)

    with pytest.raises(OutputError, match="is there already"):
        write_bundle(out, slow)
    assert [path.name for path in tmp_path.iterdir()] == ["model.optc"]


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        check_writable(tmp_path / "file" / "deep" / "model.optc")


def test_a_folder_without_permission_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(OutputError, match=r"model\.optc: cannot be written: Permission denied"):
        check_writable(tmp_path / "model.optc")


@pytest.mark.parametrize("out", ["/", "a/.."])
def test_a_path_without_a_name_is_no_place(out: str) -> None:
    with pytest.raises(OutputError, match="not a place for a bundle"):
        check_writable(out)


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "model.optc")
    assert list(tmp_path.iterdir()) == []


def test_a_fill_that_leaves_links_is_refused(filler: Fill, tmp_path: Path) -> None:
    def linked(folder: Path) -> Manifest:
        (folder / "notes").symlink_to("/etc/passwd")
        return filler(folder)

    with pytest.raises(BundleError, match="'notes': it is a symbolic link"):
        write_bundle(tmp_path / "model.optc", linked)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_names_files_that_are_not_there_is_refused(
    filler: Fill, tmp_path: Path
) -> None:
    def wrong(folder: Path) -> Manifest:
        found = filler(folder)
        engine = dataclasses.replace(found.engine, files=("engine.onnx", "engine.onnx.data"))
        return dataclasses.replace(found, engine=engine)

    with pytest.raises(BundleError, match=r"'engine.onnx.data' is not among the bundle's files"):
        write_bundle(tmp_path / "model.optc", wrong)
