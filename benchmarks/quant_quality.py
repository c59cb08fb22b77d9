"""Quality of quantised models, ours beside other tools': one model, one text, one runtime.

    python benchmarks/quant_quality.py [--only 'optc*;Olive*'] [--json FILE] [--write] [--fresh]

Every contender quantises the same model (`quant_model.py`), calibrates on the same sequences
(`quant_texts.py`) and is measured end to end on ONNX Runtime (`quant_metrics.py`). Rows are kept in
`build/quant`, by versions and options, and measured again with `--fresh`. A contender that fails
gets a row that says why. The first run makes the environments of others, and takes an hour or more.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import quant_metrics
from page import PAGE, machine, replace_section
from peer_environments import ROOT, run
from quant_contenders import CONTENDERS, PEERS, Contender
from quant_metrics import FOLDER, TEXTS, Score
from quant_table import TITLE, Row, section, table
from quant_watch import watch

_LAST_WORDS = 160


def prepare(folder: Path) -> None:
    """The model, its texts, PyTorch's answers, and the file that other tools start from."""
    quant_metrics.prepare(folder)
    prepare_peers(folder)


def prepare_peers(folder: Path) -> None:
    """The file that other tools start from: onnxruntime's own preprocessing of ours."""
    prepared = folder / "prepared" / "model.onnx"
    if not prepared.is_file():
        script = str(PEERS / "run_onnxruntime.py")
        model = str(folder / "onnx" / "model.onnx")
        run([sys.executable, script, "prepare", model, "-", str(prepared)])


def row_of(
    contender: Contender, folder: Path, sequences: int, *, fresh: bool = False, keep: bool = False
) -> Row:
    """Its row: the one that was kept, if it was made of the same, or a new one."""
    print(f"{contender.name}:", file=sys.stderr, end=" ", flush=True)
    kept = folder / "rows" / f"{contender.slug}.json"
    key = key_of(contender, folder, sequences)
    if not fresh and kept.is_file():
        document = json.loads(kept.read_text(encoding="utf-8"))
        if document.pop("key") == key:
            print("kept", file=sys.stderr)
            return Row.from_json(document)
    row = _new_row(contender, folder, sequences, keep=keep)
    kept.parent.mkdir(exist_ok=True)
    document = {**dataclasses.asdict(row), "key": key}
    kept.write_text(json.dumps(document, indent=1), encoding="utf-8")
    said = row.reason or f"perplexity x{row.worst:.3f}, {row.size / 1e6:.0f} MB"
    print(f"{said}, {row.seconds:.0f} s", file=sys.stderr)
    return row


def key_of(contender: Contender, folder: Path, sequences: int) -> str:
    """What its row depends on: versions, options, texts, and our own code if it is ours."""
    digest = hashlib.sha256()
    recipe = [word.replace(str(ROOT), "") for word in contender.recipe]
    digest.update(json.dumps([recipe, _version(contender), sequences]).encode())
    for text in TEXTS:
        digest.update((folder / "texts" / f"{text}.npy").read_bytes())
    digest.update((folder / "texts" / "calibration.npz").read_bytes())
    if contender.ours:
        for path in sorted(p for top in ("optc", "passes") for p in (ROOT / top).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(contender: Contender) -> str:
    # Of ours, the files themselves say more than the last commit does.
    return "" if contender.ours else contender.version()


def _new_row(contender: Contender, folder: Path, sequences: int, *, keep: bool) -> Row:
    out = folder / "made" / contender.slug / contender.made
    log = folder / "logs" / f"{contender.slug}.log"
    log.parent.mkdir(exist_ok=True)
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir(parents=True)
    row = Row(contender.name, contender.group, contender.version())
    try:
        taken = watch(contender.command(folder, out), log, environment())
        row = dataclasses.replace(row, seconds=taken.seconds, cpu=taken.cpu, rss=taken.rss)
        if taken.code or not out.exists():
            raise RuntimeError(log.read_text(encoding="utf-8", errors="replace"))
        row = _measured(row, folder, out, sequences)
    except (RuntimeError, OSError) as error:
        row = dataclasses.replace(row, reason=last_words(str(error)))
    if not keep:
        shutil.rmtree(out.parent, ignore_errors=True)
    return row


def _measured(row: Row, folder: Path, out: Path, sequences: int) -> Row:
    """The row with its scores.

    Measured in a process of its own: a runtime that crashes on a bad file is a reason like others.
    """
    script = str(Path(__file__).with_name("quant_metrics.py"))
    command = [sys.executable, script, str(out), "--folder", str(folder), "--json"]
    command += ["--sequences", str(sequences)]
    document = json.loads(run(command, environment()).strip().splitlines()[-1])
    scores = {text: Score(**document[text]) for text in TEXTS}
    return dataclasses.replace(row, size=document["bytes"], scores=scores)


def environment() -> dict[str, str]:
    """This checkout's optc, whichever is installed; nothing is asked of the network."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def last_words(text: str) -> str:
    """The end of what a program said, on one line."""
    lines = [line for line in text.splitlines() if line.strip()]
    words = " ".join(" ".join(lines[-1:]).split())
    return words[:_LAST_WORDS] or "it ended without a word"


def chosen(patterns: str) -> list[Contender]:
    """Contenders by patterns of their names, by semicolons, as names hold commas.

    Optional ones must be named.
    """
    wanted = [pattern.strip() for pattern in patterns.split(";")]
    return [
        contender
        for contender in CONTENDERS
        if any(fnmatch.fnmatch(contender.name, pattern) for pattern in wanted)
        and not (contender.optional and patterns == "*")
    ]


def write(rows: Sequence[Row]) -> None:
    """Put the tables into the documentation."""
    text = section(rows, machine())
    PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), TITLE, text), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="patterns of names, by semicolons")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the model is kept")
    parser.add_argument("--sequences", type=int, default=16, help="of each text; 0: all")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--write", action="store_true", help="put the tables into the docs")
    parser.add_argument("--fresh", action="store_true", help="measure what was measured before")
    parser.add_argument("--keep", action="store_true", help="keep the models that were made")
    options = parser.parse_args()
    found = chosen(options.only)
    if not found:
        parser.error(f"no contender is called {options.only}")
    prepare(options.folder)
    how = {"fresh": options.fresh, "keep": options.keep}
    rows = [row_of(c, options.folder, options.sequences, **how) for c in found]
    if options.json is not None:
        document = [dataclasses.asdict(row) for row in rows]
        options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(table(rows))
    if options.write:
        write(rows)


if __name__ == "__main__":
    main()
