"""Policy checks as JUnit XML, which every CI system shows."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from optc.core.errors import OutputError
from optc.parity.policy import Check

__all__ = ["junit_xml", "write_junit"]


def junit_xml(suite: str, checks: Sequence[Check]) -> str:
    """One test suite with one test case per check; rules that could not be judged are skipped.

    Args:
        suite: Name of the suite: the bundle or model.
        checks: What `Policy.checks` returned.
    """
    counts = {
        "tests": len(checks),
        "failures": sum(check.holds is False for check in checks),
        "skipped": sum(check.holds is None for check in checks),
        "errors": 0,
    }
    attributes = {key: str(count) for key, count in counts.items()}
    root = ET.Element("testsuites", attributes)
    parent = ET.SubElement(root, "testsuite", {"name": suite} | attributes)
    for check in checks:
        case = ET.SubElement(parent, "testcase", {"classname": f"optc.{suite}", "name": check.key})
        if check.holds is None:
            ET.SubElement(case, "skipped", {"message": check.sentence})
        elif not check.holds:
            ET.SubElement(case, "failure", {"message": check.sentence, "type": "policy"})
        else:
            ET.SubElement(case, "system-out").text = check.sentence
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(path: str | Path, suite: str, checks: Sequence[Check]) -> Path:
    """Write `junit_xml` to a file.

    Raises:
        OutputError: The file cannot be written.
    """
    path = Path(path)
    try:
        path.write_text(junit_xml(suite, checks), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    return path
