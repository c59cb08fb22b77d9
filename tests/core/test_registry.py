"""Names to classes: loaded on first use, extended by other distributions, never overwritten."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from toy_passes import TABLE, Plain

from optc.core.base import Pass
from optc.core.errors import NotYetError, OptcError, UsageError
from optc.core.pipeline import Pipeline
from optc.core.registry import GROUP, Registry, suggestion

EXAMPLE = Path(__file__).parent.parent / "extension_example"


def make(table: dict[str, str], **more: object) -> Registry[Pass]:
    arguments: dict[str, object] = {"points": [], **more}
    return Registry("pass", "passes", Pass, table, **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example distribution, installed by pip into a folder of its own."""
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "extension")
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def test_a_class_is_imported_when_it_is_asked_for() -> None:
    registry = make({"plain": "toy_passes:Plain", "ghost": "no_such_module:Ghost"})
    assert registry.names() == ["plain", "ghost"]
    assert registry.load("plain") is Plain


@pytest.mark.parametrize("path", ["no_such_module:Ghost", "toy_passes:Ghost"])
def test_a_table_line_that_leads_nowhere_says_where_it_points(path: str) -> None:
    with pytest.raises(OptcError) as caught:
        make({"ghost": path}).load("ghost")
    assert str(caught.value).startswith(f"the pass 'ghost' cannot be imported from '{path}': ")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("path", ["toy_passes:NotAPass", "toy_passes:TABLE"])
def test_a_table_line_must_lead_to_a_pass(path: str) -> None:
    with pytest.raises(OptcError, match=f"ghost: '{path}' is not a Pass"):
        make({"ghost": path}).load("ghost")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        make(TABLE).load("plane")
    assert str(caught.value) == "there is no pass 'plane'; did you mean 'plain'?"
    assert caught.value.exit_code == 2


def test_an_unknown_name_without_a_neighbour_is_answered_with_the_list() -> None:
    assert suggestion("zzz", ["kv", "flash"]) == "known: flash, kv"


def test_a_planned_name_says_that_it_is_not_there_yet() -> None:
    registry = make(TABLE, planned={"spec": "speculative decoding"})
    with pytest.raises(NotYetError) as caught:
        registry.load("spec")
    assert str(caught.value) == "the pass 'spec' (speculative decoding) is not there yet"
    assert caught.value.exit_code == 3
    assert "spec" not in registry.names()


def test_an_extension_may_supply_what_is_planned(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    planned = {"example-tag": "tags"}
    loaded = make(TABLE, planned=planned, points=None).load("example-tag")
    assert loaded.name == "example-tag"


def test_an_installed_distribution_adds_a_pass_with_nothing_edited_here(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "example-tag" not in make(TABLE, points=None).names()
    monkeypatch.syspath_prepend(installed)
    registry = make(TABLE, points=None)
    assert registry.names() == [*TABLE, "example-tag"]
    assert registry.owner("example-tag") == "optc-example-extension"
    assert registry.owner("plain") == "optc"
    pipeline = Pipeline.parse("example-tag:text=hello,plain", registry)
    assert str(pipeline) == "plain,example-tag:text=hello"


def test_a_section_that_an_extension_leaves_out_is_empty(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    targets = Registry("target", "targets", object, {"ort": "builtins:object"})
    assert targets.names() == ["ort"]


def test_a_name_that_two_distributions_define_is_an_error_naming_both(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(UsageError) as caught:
        make({"example-tag": "toy_passes:Plain"}, points=None)
    assert str(caught.value) == (
        "the pass 'example-tag' is defined by both 'optc' and 'optc-example-extension'; "
        "uninstall one of them"
    )


@pytest.mark.parametrize("value", ["no_such_module:TABLE", "toy_passes:NotAPass"])
def test_an_extension_that_cannot_be_loaded_is_named(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(TABLE, points=[EntryPoint("hurt", value, GROUP)])
    assert str(caught.value).startswith(f"the extension 'hurt' of '{value}' cannot be loaded: ")
    assert str(caught.value).endswith("; repair or uninstall that package")
