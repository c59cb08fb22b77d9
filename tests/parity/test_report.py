"""The same rows for the terminal, for programs, for browsers and for CI systems."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console

from optc.core.base import Refusal
from optc.core.errors import OutputError
from optc.parity.junit import junit_xml, write_junit
from optc.parity.metrics import Metrics
from optc.parity.policy import Policy
from optc.parity.report import Row, evidence, render_html, render_table, rows_as_json

GOOD = Metrics(8.7e-5, 1.2e-6, 1.0, 1e-11, 1.0, 1.0, 512, 512, max_rel=2e-6)
INT8 = Metrics(
    4.2, 0.03, 0.9995, 0.021, 0.927, 1.017, 450, 512, max_rel=0.1, notes=("one left out",)
)
ROWS = (
    Row("input", "input", "exact", GOOD, size=538_000_000, peak_rss=1 << 30),
    Row("flash", "flash", "exact", GOOD, rewrites=30, size=538_000_000, seconds=1.25),
    Row(
        "quant",
        "quant:scheme=int8",
        "measured",
        INT8,
        rewrites=2,
        size=163_000_000,
        seconds=91.5,
        refusals=(Refusal("down_proj", "error <0.2> & more"),),
        notes=("calibrated on 8 samples",),
        details={"kept": ["head"], "scheme": "int8"},
    ),
)
POLICY = Policy.default(["exact", "measured"])


def page(rows: tuple[Row, ...] = ROWS, **changes: object) -> str:
    arguments: dict = {
        "title": "smollm2",
        "pipeline": "flash,quant:scheme=int8",
        "source": "pytorch",
        "policy": POLICY,
    }
    return render_html(rows, **(arguments | changes))


def table_text(rows: tuple[Row, ...], width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render_table(rows))
    return out.getvalue()


def test_the_table_shows_every_column_of_the_contract() -> None:
    lines = table_text(ROWS).splitlines()
    for column in ("pass", "rewrites", "seconds", "size MB", "max abs", "rel L2", "cosine"):
        assert column in lines[0]
    for column in ("KL", "top-1", "ppl ratio", "greedy"):
        assert column in lines[0]
    quant = "quant:scheme=int8 2 91.5 163.0 4.2e+00 3.0e-02 0.999500 2.1e-02 92.7 % 1.0170 450/512"
    assert lines[3].split() == quant.split()


def test_the_input_row_has_no_rewrites_and_no_seconds() -> None:
    cells = table_text(ROWS).splitlines()[1].split()
    assert cells[:3] == ["input", "538.0", "8.7e-05"]


def test_what_was_not_measured_is_a_dash_and_nan_is_nan() -> None:
    nan = math.nan
    rows = (
        Row("a", "a", "exact", Metrics(0.0, 0.0, 1.0)),
        Row("b", "b", "exact", Metrics(nan, nan, nan, faults=("NaN",))),
    )
    lines = table_text(rows).splitlines()
    assert lines[1].split()[-4:] == ["-"] * 4
    assert lines[2].split()[4:7] == ["nan"] * 3


def test_json_has_the_documented_keys() -> None:
    (_, _, row) = rows_as_json(ROWS)
    assert set(row) == {
        "pass",
        "text",
        "promise",
        "rewrites",
        "weight_bytes",
        "metrics",
        "change",
        "refusals",
        "notes",
        "details",
        "violations",
        "seconds",
        "peak_rss_bytes",
    }
    assert set(row["metrics"]) == {field.name for field in dataclasses.fields(Metrics)}
    assert row["refusals"] == [{"site": "down_proj", "reason": "error <0.2> & more"}]
    assert rows_as_json.__doc__ is not None
    for key in (*row, *row["metrics"]):
        assert f"`{key}`" in rows_as_json.__doc__


def test_json_is_strict_and_reads_back() -> None:
    nan = math.nan
    broken = Row("b", "b", "exact", Metrics(nan, math.inf, nan, faults=("NaN",)), change=GOOD)
    document = rows_as_json((*ROWS, broken))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document[-1]["metrics"]["rel_l2"] is None
    assert document[-1]["change"]["kl"] == 1e-11


def test_json_without_timings_is_the_same_for_a_slower_machine() -> None:
    slower = tuple(dataclasses.replace(r, seconds=r.seconds * 3, peak_rss=7) for r in ROWS)
    assert rows_as_json(slower, timings=False) == rows_as_json(ROWS, timings=False)
    assert rows_as_json(slower) != rows_as_json(ROWS)


def test_the_page_is_the_same_for_a_slower_machine() -> None:
    slower = tuple(dataclasses.replace(r, seconds=r.seconds * 3, peak_rss=7) for r in ROWS)
    assert page(slower) == page()


class Elements(html.parser.HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not match."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_well_formed_and_holds_nothing_from_elsewhere() -> None:
    elements = Elements(page())
    assert not {"script", "link", "img", "iframe", "object"} & set(elements.tags)
    names = {name for name, _ in elements.attributes}
    assert not {"src", "href", "style"} & names
    assert not any(name.startswith("on") for name in names)
    assert "url(" not in page()


def test_the_page_says_what_was_compared_and_how_it_ended() -> None:
    text = Elements(page(note="8 texts, 64 tokens each.")).text
    assert "flash,quant:scheme=int8" in text
    assert "within its policy" in text
    assert "Compared against PyTorch" in text
    assert "8 texts, 64 tokens each." in text
    assert "calibrated on 8 samples" in text
    assert "one left out" in text
    assert "error <0.2> & more" in text


def test_the_page_is_escaped() -> None:
    text = page(title="<script>alert(1)</script>", note="<b>", facts={"<i>": "<u>"})
    assert "script" not in Elements(text).tags
    assert "&lt;script&gt;" in text
    assert not {"b", "i", "u"} & set(Elements(text).tags)


def test_a_missed_policy_is_told_once() -> None:
    bad = dataclasses.replace(INT8, kl=0.4)
    rows = (ROWS[0], dataclasses.replace(ROWS[2], metrics=bad))
    text = Elements(page(rows)).text
    assert "misses its policy" in text
    forced = Elements(page(rows, violations=["pass 'quant': the KL is too large"])).text
    assert "misses its policy" in forced
    assert "pass 'quant': the KL is too large" in forced


def test_a_page_without_policy_judges_nothing() -> None:
    text = Elements(page(policy=None)).text
    assert "measured, not judged" in text
    assert "Policy" not in text


def test_an_encoder_gets_a_chart_of_its_own_metric() -> None:
    rows = (Row("input", "input", "exact", Metrics(1e-6, 1e-7, 1.0, max_rel=1e-7)),)
    text = Elements(page(rows)).text
    assert "Relative L2 error" in text
    assert "KL divergence" not in text


def test_the_level_of_evidence_is_a_sentence() -> None:
    assert evidence("pytorch").startswith("Compared against PyTorch")
    assert evidence("graph").startswith("Compared against the input graph")
    assert "error of the export itself would not show" in evidence("graph")


def test_junit_has_one_case_per_rule() -> None:
    metrics = dataclasses.replace(INT8, kl=0.4, greedy_equal=None, greedy_total=None)
    policy = dataclasses.replace(
        POLICY, measured=dataclasses.replace(POLICY.measured, greedy_equal=0.5)
    )
    suite = ET.fromstring(junit_xml("smollm2", policy.checks(metrics))).find("testsuite")
    assert suite is not None
    assert dict(suite.attrib) == {
        "name": "smollm2",
        "tests": "4",
        "failures": "1",
        "skipped": "1",
        "errors": "0",
    }
    cases = {case.get("name"): case for case in suite}
    assert set(cases) == {"kl", "top1_min", "ppl_ratio", "greedy_equal"}
    failure = cases["kl"].find("failure")
    assert failure is not None
    assert "0.4, the policy allows at most 0.15" in str(failure.get("message"))
    assert cases["greedy_equal"].find("skipped") is not None
    assert cases["top1_min"].find("failure") is None


def test_junit_names_faults() -> None:
    nan = math.nan
    checks = POLICY.checks(Metrics(nan, nan, nan, faults=("the output 'y' is missing",)))
    case = ET.fromstring(junit_xml("m", checks)).find(".//testcase[@name='faults']/failure")
    assert case is not None
    assert case.get("message") == "the output 'y' is missing"


def test_junit_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = write_junit(tmp_path / "junit.xml", "m", POLICY.checks(INT8))
    assert path.read_text(encoding="utf-8").startswith("<?xml")
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        write_junit(tmp_path / "none" / "junit.xml", "m", [])
