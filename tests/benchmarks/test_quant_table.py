"""The contenders, the rows and the tables of the quantisation benchmarks."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
import quant_embeddings
import quant_quality
from quant_contenders import CLASSES, CONTENDERS, DYNAMIC_8, OURS, PEERS, WEIGHTS_8, Contender
from quant_metrics import TEXTS, Score
from quant_table import Row, section, table
from quant_watch import watch


def row(name: str, ratio: float, group: str = WEIGHTS_8) -> Row:
    scores = {"docs": Score(ratio, 0.01, 0.9, 1000, 10), "prose": Score(1.001, 0.02, 0.8, 900, 20)}
    return Row(name, group, "tool 1", 12.4, 8.6, 2 * 10**9, 145_400_000, scores)


def test_the_best_comes_first_and_classes_are_apart() -> None:
    found = table([row("a", 1.2), row("optc w8", 1.01), row("b", 1.5, DYNAMIC_8)]).splitlines()
    assert found[0] == "8-bit weights:"
    assert found[4] == (
        "| **optc w8** | 145 | 1.010 | 0.010 | 0.900 | 1.001 | 0.020 | 0.800 | 12 | 9 | 2000 |"
    )
    assert found[5].startswith("| a | 145 | 1.200 |")
    assert found[7].startswith("8-bit weights and activations, grids")
    assert found[-1].startswith("| b |")


def test_what_failed_says_why_and_comes_last() -> None:
    failed = Row("a", WEIGHTS_8, "tool 1", reason="no | such file")
    lines = table([failed, row("b", 3.0)]).splitlines()
    assert lines[-1].startswith("| a | failed | no / such file |")
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_the_worse_text_decides() -> None:
    assert row("a", 1.2).worst == 1.2
    assert row("a", 0.9).worst == 1.001


def test_the_section_says_how_much_was_judged() -> None:
    text = section([row("a", 1.2)], "a processor")
    assert "900 tokens" in text
    assert "at most 0.013" in text  # sqrt(.8 * .2 / 900)


def test_a_row_survives_being_kept() -> None:
    document = json.loads(json.dumps(dataclasses.asdict(row("a", 1.2))))
    assert Row.from_json(document) == row("a", 1.2)


def test_every_contender_has_its_script_its_environment_and_its_own_name() -> None:
    for contender in CONTENDERS:
        assert contender.group in CLASSES
        scripts = [word for word in contender.recipe if word.endswith(".py")]
        assert all(Path(script).is_file() for script in scripts)
        if contender.environment != OURS:
            assert (PEERS / f"requirements-{contender.environment}.txt").is_file()
    assert len({contender.slug for contender in CONTENDERS}) == len(CONTENDERS)


def test_optional_contenders_must_be_named() -> None:
    optional = [contender for contender in CONTENDERS if contender.optional]
    assert optional
    assert not set(optional) & set(quant_quality.chosen("*"))
    assert quant_quality.chosen(optional[0].name) == [optional[0]]


PROGRAM = """
import subprocess, sys, time
block = bytearray(60_000_000)
child = "block = bytearray(80_000_000); import time; time.sleep(0.5)"
subprocess.run([sys.executable, "-c", child], check=True)
print("done")
sys.exit(3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_children_counts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    found = watch([sys.executable, "-c", PROGRAM], log, os.environ)
    assert found.code == 3
    assert log.read_text() == "done\n"
    assert 140e6 < found.rss < 400e6
    assert found.seconds >= 0.5
    assert found.cpu > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(RuntimeError, match="longer than 0 s"):
        watch(command, tmp_path / "log", os.environ, limit=0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for name in ("docs.npy", "prose.npy", "calibration.npz"):
        (tmp_path / "texts" / name).write_bytes(b"x")
    return tmp_path


def failing(words: str) -> Contender:
    code = f"import sys; sys.exit({words!r})"
    return Contender("a tool", WEIGHTS_8, (sys.executable, "-c", code))


def test_a_contender_that_fails_gets_a_row_with_its_last_words(folder: Path) -> None:
    found = quant_quality.row_of(failing("no such thing"), folder, 4)
    assert found.reason == "no such thing"
    assert not found.scores


def test_a_kept_row_is_used_until_something_it_depends_on_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def new_row(contender: Contender, folder: Path, sequences: int, *, keep: bool) -> Row:
        made.append(contender)
        return row(contender.name, 1.0 + len(made))

    monkeypatch.setattr(quant_quality, "_new_row", new_row)
    (folder / "rows").mkdir()

    def ask(contender: Contender, sequences: int = 4, *, fresh: bool = False) -> float:
        return quant_quality.row_of(contender, folder, sequences, fresh=fresh).worst

    assert ask(failing("a")) == ask(failing("a")) == 2.0
    assert ask(failing("another option")) == 3.0
    (folder / "texts" / "prose.npy").write_bytes(b"another text")
    assert ask(failing("another option")) == 4.0
    assert ask(failing("another option"), fresh=True) == 5.0
    assert ask(failing("another option"), sequences=5) == 6.0


def test_embeddings_are_sorted_by_their_mean_cosine() -> None:
    rows = [
        quant_embeddings.Row("a", reason="no | such"),
        quant_embeddings.Row("b", 23_400_000, 0.9931, 0.97, 5.0),
        quant_embeddings.Row("optc int8", 24_000_000, 0.9971, 0.99, 9.6),
    ]
    *_, first, second, last = quant_embeddings.section(rows, "a processor").splitlines()
    assert first == "| **optc int8** | 24.0 | 0.9971 | 0.9900 | 10 |"
    assert second == "| b | 23.4 | 0.9931 | 0.9700 | 5 |"
    assert last == "| a | failed | no / such |  |  |"


def test_texts_have_names_that_tables_know() -> None:
    assert set(row("a", 1.0).scores) == set(TEXTS)
