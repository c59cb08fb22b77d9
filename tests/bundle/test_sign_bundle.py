from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from optc.bundle.manifest import Manifest
from optc.bundle.read import read_bundle
from optc.bundle.sign import check_private_key, sign_bundle, verify_signature
from optc.bundle.write import write_bundle
from optc.core.errors import BundleError, MissingDependencyError, UsageError

pytest.importorskip("model_signing")

from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


def write_keys(folder: Path, curve: ec.EllipticCurve) -> tuple[Path, Path]:
    folder.mkdir()
    key = ec.generate_private_key(curve)
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(
        key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path / "keys", ec.SECP256R1())


@pytest.fixture
def signed(bundle: Path, keys: tuple[Path, Path]) -> Path:
    assert sign_bundle(bundle, keys[0]) == bundle / "model.sig"
    return bundle


def test_a_signed_bundle_verifies_and_reads_as_before(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    verify_signature(signed, keys[1])
    assert read_bundle(signed).signature == signed / "model.sig"


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_the_larger_curves_do_too(bundle: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private, public = write_keys(tmp_path / "larger", curve)
    sign_bundle(bundle, private)
    verify_signature(bundle, public)


def test_a_bundle_may_move_and_be_signed_again(signed: Path, keys: tuple[Path, Path]) -> None:
    moved = signed.rename(signed.parent / "moved.optc")
    verify_signature(moved, keys[1])
    sign_bundle(moved, keys[0])
    verify_signature(moved, keys[1])
    assert not list(moved.glob(".model.sig*"))


def test_it_covers_the_manifest(signed: Path, keys: tuple[Path, Path]) -> None:
    text = (signed / "manifest.json").read_text()
    (signed / "manifest.json").write_text(text.replace('"passed": true', '"passed": false'))
    read_bundle(signed)
    with pytest.raises(BundleError, match="its signature does not hold"):
        verify_signature(signed, keys[1])


def test_replaced_contents_with_a_matching_manifest_do_not_verify(
    signed: Path, keys: tuple[Path, Path], manifest: Manifest
) -> None:
    def other(folder: Path) -> Manifest:
        (folder / "engine.onnx").write_bytes(b"another engine")
        return manifest

    signature = (signed / "model.sig").read_bytes()
    write_bundle(signed, other)
    (signed / "model.sig").write_bytes(signature)
    read_bundle(signed)
    with pytest.raises(BundleError, match="its signature does not hold"):
        verify_signature(signed, keys[1])


def test_a_file_that_git_would_hide_is_covered(
    keys: tuple[Path, Path], tmp_path: Path, manifest: Manifest, filler: Callable[[Path], Manifest]
) -> None:
    def hidden(folder: Path) -> Manifest:
        (folder / ".gitignore").write_text("first")
        return filler(folder)

    path = write_bundle(tmp_path / "hidden.optc", hidden)
    sign_bundle(path, keys[0])
    (path / ".gitignore").write_text("other")
    entry = json.loads((path / "manifest.json").read_text())["files"][".gitignore"]
    assert entry["size"] == len("other")
    with pytest.raises(BundleError):
        verify_signature(path, keys[1])


def test_another_key_does_not_verify(signed: Path, tmp_path: Path) -> None:
    _, other = write_keys(tmp_path / "other", ec.SECP256R1())
    with pytest.raises(BundleError, match="another key signed it"):
        verify_signature(signed, other)


def hostile_signatures() -> list[str]:
    head = '{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", '
    key = '"verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []}'
    empty = '"dsseEnvelope": {"payload": "", "payloadType": "x", "signatures": []}'
    return ["", "{}", "[]", "\x00", f"{head}{key}}}", f"{head}{key}, {empty}}}"]


@pytest.mark.parametrize("text", hostile_signatures())
def test_nonsense_for_a_signature_is_one_sentence(
    signed: Path, keys: tuple[Path, Path], text: str
) -> None:
    (signed / "model.sig").write_text(text)
    with pytest.raises(BundleError, match="its signature does not hold"):
        verify_signature(signed, keys[1])


def test_a_signature_with_one_letter_changed(signed: Path, keys: tuple[Path, Path]) -> None:
    document = json.loads((signed / "model.sig").read_text())
    entry = document["dsseEnvelope"]["signatures"][0]
    letter = "B" if entry["sig"][20] != "B" else "C"
    entry["sig"] = entry["sig"][:20] + letter + entry["sig"][21:]
    (signed / "model.sig").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="its signature does not hold"):
        verify_signature(signed, keys[1])


def test_an_unsigned_bundle_does_not_verify(bundle: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(BundleError, match="it is not signed"):
        verify_signature(bundle, keys[1])


def test_a_damaged_bundle_is_neither_signed_nor_verified(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    (signed / "reference.npz").write_bytes(b"sampleZ")
    for refuse in (lambda: sign_bundle(signed, keys[0]), lambda: verify_signature(signed, keys[1])):
        with pytest.raises(BundleError, match=r"'reference.npz' is damaged"):
            refuse()


def test_keys_that_cannot_be_used(bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    other = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "ed25519.pem").write_bytes(
        other.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    )
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"secret")
    )
    (tmp_path / "locked.pem").write_bytes(locked)
    for wrong in (public, tmp_path / "none.pem", tmp_path / "ed25519.pem", tmp_path / "locked.pem"):
        with pytest.raises(UsageError, match="cannot be used as an elliptic-curve private key"):
            sign_bundle(bundle, wrong)
        with pytest.raises(UsageError, match="cannot be used as an elliptic-curve private key"):
            check_private_key(wrong)
    check_private_key(private)
    sign_bundle(bundle, private)
    for wrong in (private, tmp_path / "none.pem"):
        with pytest.raises(UsageError, match="cannot be used as an elliptic-curve public key"):
            verify_signature(bundle, wrong)


def test_without_the_package_it_says_what_to_install(
    bundle: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'optc\[sign\]'"):
        sign_bundle(bundle, keys[0])
