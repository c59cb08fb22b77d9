from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from optc.bundle.manifest import Manifest
from optc.bundle.read import read_bundle
from optc.bundle.write import write_bundle
from optc.core.errors import BundleError


def test_a_good_bundle_gives_its_contents(bundle: Path, manifest: Manifest) -> None:
    found = read_bundle(bundle)
    assert found.folder == bundle
    assert found.manifest.engine == manifest.engine
    assert found.manifest.extra == {"eos": [2, 0]}
    assert found.reference == bundle / "reference.npz"
    assert found.tokenizer == bundle / "tokenizer"
    assert found.signature is None


def test_a_bundle_without_samples_or_tokenizer(tmp_path: Path, manifest: Manifest) -> None:
    def bare(folder: Path) -> Manifest:
        (folder / "engine.onnx").write_bytes(b"engine")
        return manifest

    found = read_bundle(write_bundle(tmp_path / "bare.optc", bare))
    assert found.reference is None
    assert found.tokenizer is None


def test_it_says_how_far_hashing_is(bundle: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    read_bundle(bundle, progress=lambda *call: calls.append(call))
    total = 64 + len(b"samples") + len("{}")
    assert calls[-1] == ("bytes checked", total, total)
    assert len(calls) == 3


def flip_one_bit(bundle: Path) -> None:
    data = bytearray((bundle / "engine.onnx").read_bytes())
    data[17] ^= 1
    (bundle / "engine.onnx").write_bytes(data)


def truncate(bundle: Path) -> None:
    (bundle / "engine.onnx").write_bytes(bytes(range(63)))


def grow(bundle: Path) -> None:
    (bundle / "engine.onnx").write_bytes(bytes(range(65)))


def remove(bundle: Path) -> None:
    (bundle / "tokenizer" / "tokenizer.json").unlink()


def extra(bundle: Path) -> None:
    (bundle / "tokenizer" / "run_me.py").write_text("print('hello')")


def link_out(bundle: Path) -> None:
    (bundle.parent / "outside").write_bytes(bytes(range(64)))
    (bundle / "engine.onnx").unlink()
    (bundle / "engine.onnx").symlink_to("../outside")


def link_inside(bundle: Path) -> None:
    (bundle / "copy").symlink_to("engine.onnx")


def link_folder(bundle: Path) -> None:
    (bundle / "tokenizer").rename(bundle.parent / "elsewhere")
    (bundle / "tokenizer").symlink_to("../elsewhere")


def pipe(bundle: Path) -> None:
    (bundle / "reference.npz").unlink()
    os.mkfifo(bundle / "reference.npz")


def deep_folders(bundle: Path) -> None:
    (bundle / "/".join("d" * 40)).mkdir(parents=True)


def folder_for_file(bundle: Path) -> None:
    (bundle / "reference.npz").unlink()
    (bundle / "reference.npz").mkdir()


def no_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


def huge_manifest(bundle: Path) -> None:
    with (bundle / "manifest.json").open("ab") as file:
        file.truncate((16 << 20) + 1)


def linked_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").rename(bundle.parent / "manifest.json")
    (bundle / "manifest.json").symlink_to("../manifest.json")


def broken_manifest(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text[: len(text) // 2])


def edit(bundle: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))


def path_upwards(bundle: Path) -> None:
    edit(bundle, lambda d: d["files"].update({"../outside": d["files"]["engine.onnx"]}))


def newer_schema(bundle: Path) -> None:
    edit(bundle, lambda d: d.update(schema_version=2))


def wrong_size_listed(bundle: Path) -> None:
    edit(bundle, lambda d: d["files"]["engine.onnx"].update(size=1 << 60))


CASES = [
    (flip_one_bit, "the file 'engine.onnx' is damaged: its SHA-256 is not the manifest's"),
    (truncate, "the file 'engine.onnx' has 63 bytes, its manifest says 64"),
    (grow, "the file 'engine.onnx' has 65 bytes, its manifest says 64"),
    (remove, "the file 'tokenizer/tokenizer.json' is missing"),
    (extra, "the file 'tokenizer/run_me.py' is not in its manifest"),
    (link_out, "'engine.onnx': it is a symbolic link, and bundles have none"),
    (link_inside, "'copy': it is a symbolic link, and bundles have none"),
    (link_folder, "'tokenizer': it is a symbolic link, and bundles have none"),
    (pipe, "'reference.npz': it is neither a file nor a folder"),
    (deep_folders, "folders in it are nested too deep"),
    (folder_for_file, "the file 'reference.npz' is missing"),
    (no_manifest, "it has no manifest.json, so it is not an optc bundle"),
    (huge_manifest, "manifest.json: it has 16777217 bytes, more than any manifest needs"),
    (linked_manifest, "manifest.json: it is not a plain file"),
    (broken_manifest, "manifest.json: it is not JSON"),
    (path_upwards, "manifest.json: the file '../outside' points outside the bundle"),
    (newer_schema, "manifest.json: schema version 2 is not 1, which this optc reads"),
    (wrong_size_listed, f"has 64 bytes, its manifest says {1 << 60}"),
]


@pytest.mark.parametrize(("damage", "sentence"), CASES)
def test_a_damaged_bundle_is_refused_in_one_sentence(
    bundle: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(bundle)
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_hashes_everything_else_is_still_checked(bundle: Path) -> None:
    flip_one_bit(bundle)
    read_bundle(bundle, verify_hashes=False)
    truncate(bundle)
    with pytest.raises(BundleError, match="has 63 bytes"):
        read_bundle(bundle, verify_hashes=False)


def test_what_is_not_a_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        read_bundle(tmp_path / "none.optc")
    (tmp_path / "file").write_text("hello")
    with pytest.raises(BundleError, match="it is a file, not a bundle's folder"):
        read_bundle(tmp_path / "file")


def test_a_file_that_may_not_be_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(BundleError, match=r"manifest.json' cannot be read: Permission denied"):
        read_bundle(bundle)


def test_names_in_messages_cannot_command_a_terminal(bundle: Path) -> None:
    (bundle / "\x1b[2J").write_text("")
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    assert str(caught.value).isprintable()
