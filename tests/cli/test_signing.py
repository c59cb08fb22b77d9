"""Signing at build time, checking at verification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("model_signing")

from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec

Optc = Callable[..., Any]
BUILD = ["build", "tiny/model.onnx", "--passes", "flash"]


def write_keys(folder: Path, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)


def test_a_signed_bundle_is_valid_for_its_key_only(here: Path, optc: Optc) -> None:
    write_keys(here, "ours")
    write_keys(here, "theirs")
    outcome = optc(*BUILD, "--sign-key", "ours.pem", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["signed"] is True
    assert optc("verify", "tiny.optc", "--json").json["signature"] == "not checked"
    valid = optc("verify", "tiny.optc", "--public-key", "ours.pub", "--json")
    assert (valid.code, valid.json["signature"]) == (0, "valid")
    foreign = optc("verify", "tiny.optc", "--public-key", "theirs.pub")
    assert foreign.code == 2
    assert "its signature does not hold" in foreign.err


def test_a_key_asked_for_must_have_signed(here: Path, optc: Optc) -> None:
    write_keys(here, "ours")
    assert optc(*BUILD).code == 0
    outcome = optc("verify", "tiny.optc", "--public-key", "ours.pub")
    assert outcome.code == 2
    assert "it is not signed; build it with --sign-key" in outcome.err


def test_a_bad_key_stops_the_build_at_once(here: Path, optc: Optc) -> None:
    (here / "key.pem").write_text("not a key")
    outcome = optc(*BUILD, "--sign-key", "key.pem")
    assert outcome.code == 2
    assert outcome.err.startswith("error: key.pem: ")
    assert len(outcome.err.splitlines()) == 1
    assert not (here / "tiny.optc").exists()
