"""How many attention sites are fused, and whether the fused file still answers like PyTorch.

    python benchmarks/fusion_coverage.py --families 'gpt2,llama*' --spellings 'sdpa-18,*traced*'

Every family of `tests/zoo` in every spelling goes through `optc`'s pass `flash`, through
onnxscript's `optimize_for_ort`, and through `onnxruntime.transformers.optimizer`. Each file is
exported once; all get the same file, the same inputs and the same judge, ONNX Runtime on the CPU.
Of several settings that a user could try, each tool is credited with the one that does best
(`fusion_contenders`).

A site counts as fused when it has become one attention op and the file answers at batches 1, 2
and 3 to within rounding. Names may be shell patterns. The machine's speed does not matter.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import importlib.metadata
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "zoo"))

from exported import Exports
from families import FAMILIES
from fusion_contenders import CONTENDERS, Outcome, attempted, judged
from spellings import ALL, Spelling, applies

PACKAGES = ("optc", "onnxscript", "onnxruntime", "torch", "transformers", "onnxslim", "onnxsim")


@dataclasses.dataclass
class Row:
    """What became of one file.

    Attributes:
        family: Name of the family.
        spelling: Name of the spelling.
        sites: Attention layers of the model.
        outcomes: By contender; empty when PyTorch could not export.
        problem: Why there is no file.
    """

    family: str
    spelling: str
    sites: int
    outcomes: dict[str, Outcome]
    problem: str = ""


def measure(families: str, spellings: str) -> Iterator[Row]:
    """One row per file, as they come; the files of one family lie on the disk at a time."""
    for name in FAMILIES:
        with tempfile.TemporaryDirectory(prefix="optc-") as folder:
            exports = Exports(Path(folder))
            for spelling in chosen(name, families, spellings):
                yield _row(exports, name, spelling)


def chosen(name: str, families: str, spellings: str) -> Iterator[Spelling]:
    """Spellings of a family that match the comma-separated patterns."""
    for spelling in ALL:
        wanted = _matches(name, families) and _matches(str(spelling), spellings)
        if wanted and applies(name, FAMILIES[name], spelling):
            yield spelling


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split(","))


def _row(exports: Exports, name: str, spelling: Spelling) -> Row:
    family = FAMILIES[name]
    row = Row(name, str(spelling), len(family.sites) + family.refused, {})
    case = attempted(lambda: exports.case(name, spelling))
    if isinstance(case, BaseException):
        return dataclasses.replace(row, problem=f"no file: {type(case).__name__}")
    row.outcomes.update({c: judged(contender, case) for c, contender in CONTENDERS.items()})
    return row


def line(row: Row) -> str:
    """A row of the table."""
    cells = [f"{row.family:22} {row.spelling:28} {row.sites:5}"]
    cells += [f"{_cell(outcome, row.sites):28}" for outcome in row.outcomes.values()]
    return "  ".join(cells) + row.problem


def _cell(outcome: Outcome, sites: int) -> str:
    if outcome.problem:
        return f"{outcome.fused}/{sites} {outcome.problem}"
    return f"{outcome.fused}/{sites} {outcome.error:.1e}"


def totals(rows: list[Row]) -> dict[str, dict[str, dict[str, int]]]:
    """Per spelling, and for all together, what each contender fused and broke."""
    counted = [row for row in rows if row.outcomes]
    names = dict.fromkeys(row.spelling for row in counted)
    groups = {name: [row for row in counted if row.spelling == name] for name in names}
    groups["all"] = counted
    return {
        name: {contender: _total(group, contender) for contender in CONTENDERS}
        for name, group in groups.items()
    }


def _total(rows: list[Row], contender: str) -> dict[str, int]:
    outcomes = [(row.sites, row.outcomes[contender]) for row in rows]
    return {
        "files": len(outcomes),
        "files_whole": sum(outcome.is_whole(sites) for sites, outcome in outcomes),
        "files_broken": sum(bool(outcome.problem) for _, outcome in outcomes),
        "sites": sum(sites for sites, _ in outcomes),
        "sites_fused": sum(outcome.credited(sites) for sites, outcome in outcomes),
    }


def summary(rows: list[Row]) -> Iterator[str]:
    """Lines of a table in Markdown."""
    yield "| spelling | files | sites | " + " | ".join(CONTENDERS) + " |"
    yield "|---|---|---|" + "---|" * len(CONTENDERS)
    for name, group in totals(rows).items():
        first = next(iter(group.values()))
        cells = [name, str(first["files"]), str(first["sites"]), *map(_share, group.values())]
        yield "| " + " | ".join(cells) + " |"


def _share(total: dict[str, int]) -> str:
    broken = f", {total['files_broken']} files broken" if total["files_broken"] else ""
    return f"{total['sites_fused']}{broken}"


def main() -> None:
    """Measure, print as it goes, and the totals."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", default="*", help="patterns, separated by commas")
    parser.add_argument("--spellings", default="*", help="patterns, separated by commas")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rows = []
    for row in measure(given.families, given.spellings):
        rows.append(row)
        print(line(row), file=sys.stderr if given.json else sys.stdout, flush=True)
    if not rows:
        parser.error("no family in such a spelling")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    if given.json:
        document = {"versions": versions, "totals": totals(rows)}
        print(json.dumps(document | {"rows": [dataclasses.asdict(row) for row in rows]}, indent=1))
        return
    print(*summary(rows), sep="\n")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))


if __name__ == "__main__":
    main()
