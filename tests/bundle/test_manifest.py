from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from optc.bundle.manifest import Engine, FileEntry, Manifest, installed_versions
from optc.core.errors import BundleError
from optc.core.session import Port

ENTRY = {"engine.onnx": FileEntry(64, "0" * 64)}


@pytest.fixture
def document(manifest: Manifest) -> dict[str, Any]:
    found = json.loads(dataclasses.replace(manifest, files=ENTRY).to_json())
    assert isinstance(found, dict)
    return found


def refusal(document: Any) -> str:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps(document))
    return str(caught.value)


def test_it_survives_a_round_trip(manifest: Manifest) -> None:
    complete = dataclasses.replace(manifest, files=ENTRY)
    assert Manifest.from_json(complete.to_json()) == complete
    assert Manifest.from_json(complete.to_json()).to_json() == complete.to_json()


def test_the_text_does_not_depend_on_the_order_of_keys(manifest: Manifest) -> None:
    backwards = dataclasses.replace(
        manifest,
        versions=dict(reversed(manifest.versions.items())),
        extra={"b": 1, "a": {"d": 2, "c": 3}},
    )
    forwards = dataclasses.replace(manifest, extra={"a": {"c": 3, "d": 2}, "b": 1})
    assert backwards.to_json() == forwards.to_json()


def test_numbers_that_json_lacks_become_words(manifest: Manifest) -> None:
    metrics = {"max_abs": math.nan, "kl": math.inf, "low": -math.inf}
    evidence = dataclasses.replace(manifest.evidence, metrics=metrics)
    text = dataclasses.replace(manifest, evidence=evidence, files=ENTRY).to_json()
    expected = {"max_abs": "NaN", "kl": "Infinity", "low": "-Infinity"}
    assert Manifest.from_json(text).evidence.metrics == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        (b"\xff\xfe\x00", "it is not JSON"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "a key is given twice"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "not the manifest of an optc bundle"),
        ('{"name": "a web page"}', "not the manifest of an optc bundle"),
    ],
)
def test_text_that_is_no_manifest(text: str | bytes, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        Manifest.from_json(text)


@pytest.mark.parametrize("number", [0, 2, "1", 1.0, True, None])
def test_another_schema_version_is_refused(document: dict[str, Any], number: Any) -> None:
    document["schema_version"] = number
    assert refusal(document) == (
        f"manifest.json: schema version {number!r} is not 1, which this optc reads; "
        "install the optc that wrote it, or build again"
    )


def change(document: dict[str, Any], path: str, value: Any) -> None:
    *folders, last = path.split(".")
    for folder in folders:
        document = document[folder]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("pipeline", 7, "manifest.json.pipeline: must be text, not a whole number"),
        ("order", "flash", "manifest.json.order: must be a list, not text"),
        ("order", ["flash", None], "manifest.json.order[1]: must be text, not null"),
        ("options", {"flash": 3}, "manifest.json.options.flash: must be an object, not a"),
        ("evidence.passed", 1, "manifest.json.evidence.passed: must be true or false, not a"),
        ("engine.inputs", [{}], "manifest.json.engine.inputs[0]: the field 'dtype' is missing"),
        ("engine.roles", [], "manifest.json.engine.roles: must be an object, not a list"),
        ("target", "a\u001b[2Jb", "manifest.json.target: has control characters in it"),
        ("color", "red", "manifest.json: the field 'color' is unknown"),
        ("evidence.level", "wish", "manifest.json: evidence must have a level of"),
        ("evidence.source", "wish", "manifest.json: evidence must have a level of"),
        ("engine.files", ["x"], "the engine's file 'x' is not among the bundle's files"),
        ("engine.roles.decode", "x", "the engine's file 'x' is not among the bundle's files"),
    ],
)
def test_a_wrong_field_is_named(
    document: dict[str, Any], path: str, value: Any, sentence: str
) -> None:
    change(document, path, value)
    assert sentence in refusal(document)


def test_each_field_must_be_there(document: dict[str, Any]) -> None:
    for name in set(document) - {"format", "schema_version"}:
        rest = {key: value for key, value in document.items() if key != name}
        assert refusal(rest) == f"manifest.json: the field '{name}' is missing"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../secret", "points outside the bundle"),
        ("a/../../secret", "points outside the bundle"),
        ("a\\..\\secret", "points outside the bundle"),
        ("/etc/passwd", "is an absolute path"),
        ("C:/secret", "is an absolute path"),
        ("C:secret", "is an absolute path"),
        ("\\\\host\\share", "is an absolute path"),
        ("a//b", "is not a plain relative path"),
        ("./a", "is not a plain relative path"),
        ("a/", "is not a plain relative path"),
        ("a\\b", "is not a plain relative path"),
        (".", "is not a plain relative path"),
        ("", "is empty"),
        ("a\nb", "control characters"),
        ("a\0b", "control characters"),
        ("manifest.json", "cannot be listed"),
        ("model.sig", "cannot be listed"),
    ],
)
def test_paths_that_leave_the_bundle_are_refused(
    document: dict[str, Any], name: str, words: str
) -> None:
    document["files"][name] = {"size": 1, "sha256": "0" * 64}
    assert words in refusal(document)


@pytest.mark.parametrize(
    "entry",
    [
        {"size": -1, "sha256": "0" * 64},
        {"size": 1, "sha256": "0" * 63},
        {"size": 1, "sha256": "G" * 64},
    ],
)
def test_an_impossible_size_or_hash(document: dict[str, Any], entry: dict[str, Any]) -> None:
    document["files"]["engine.onnx"] = entry
    assert refusal(document) == (
        "manifest.json: the file 'engine.onnx' has an impossible size or hash"
    )


def test_what_a_target_reports_becomes_an_engine() -> None:
    facts = {
        "files": ["engine.onnx"],
        "roles": {"decode": "engine.onnx"},
        "runtime": "onnxruntime",
        "runtime_version": "1.32.0",
        "hardware": "any CPU",
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 16]}],
        "outputs": [],
    }
    engine = Engine.from_facts(facts)
    assert engine.inputs == (Port("x", "float32", ("batch", 16)),)
    assert engine.details == {}
    with pytest.raises(BundleError, match="engine: the field 'runtime' is missing"):
        Engine.from_facts({key: value for key, value in facts.items() if key != "runtime"})


def test_versions_of_what_is_installed() -> None:
    found = installed_versions(["onnx", "no-such-package-here"])
    assert list(found) == ["onnx"]
    assert found["onnx"][0].isdigit()
