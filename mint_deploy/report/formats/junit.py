"""JUnit XML: a test case a check, for the test tabs of Jenkins, GitLab, Azure and GitHub's reporters.

A broken limit is a ``failure``; what is inconclusive is ``skipped`` with its reason, or a failure where
``strict``. The file keeps to what the two schemas in use agree on (Jenkins' xunit ``junit-10.xsd`` and Ant's
``JUnit.xsd``), and to what GitLab reads: the reason is the element's text as well as its ``message``, the
suite of a case is its ``classname``, and no two cases have one name.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from xml.etree import ElementTree as ET

from mint_deploy._version import __version__
from mint_deploy.compare import Check
from mint_deploy.report import words
from mint_deploy.report.formats import Judged
from mint_deploy.report.formats._text import baseline, now

__all__ = ["text"]

_SUITE = "mint-deploy compare"
_WHOLE = "the whole run"


def text(judged: Judged) -> str:
    """Return the document; it depends on what was measured alone, not on when it is written."""
    verdict = judged.verdict
    outcomes = [judged.outcome(check) for check in verdict.checks]
    last = verdict.pairs[-1].now if verdict.pairs else None
    root = ET.Element("testsuites")
    suite = ET.SubElement(
        root,
        "testsuite",
        name=_SUITE,
        package="mint-deploy",
        id="0",
        timestamp=_moment(last.started if last else ""),
        hostname=_token(last.machine.hostname if last else "") or "localhost",
        tests=str(len(outcomes)),
        failures=str(outcomes.count("fail")),
        errors="0",
        skipped=str(outcomes.count("inconclusive")),
        time="0",
    )
    properties = ET.SubElement(suite, "properties")
    said = {"written_by": f"mint-deploy {__version__}", "state": verdict.state,
            "baseline": judged.baseline, "now": judged.now}  # fmt: skip
    for name, value in said.items():
        ET.SubElement(properties, "property", name=name, value=_legal(value))
    for check in verdict.checks:
        _case(suite, check, judged)
    ET.SubElement(suite, "system-out").text = "\n".join(map(_legal, verdict.notes))
    ET.SubElement(suite, "system-err").text = "\n".join(map(_legal, verdict.doubts))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _case(suite: ET.Element, check: Check, judged: Judged) -> None:
    about = _token(check.subject) or _WHOLE
    case = ET.SubElement(
        suite, "testcase", classname=about, name=f"{check.name} ({about})", time="0"
    )
    outcome = judged.outcome(check)
    if outcome == "pass":
        return
    reason = _legal(check.reason)
    if outcome == "fail":
        found = ET.SubElement(case, "failure", message=reason, type=check.state)
        found.text = f"{reason}\nbaseline {baseline(check)}, now {now(check)}, limit {check.limit}"
    else:
        ET.SubElement(case, "skipped", message=reason).text = reason


def _legal(value: object) -> str:
    """Text of characters that XML 1.0 has."""
    return re.sub("[\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", words.plain(value))


def _token(value: str) -> str:
    """``xs:token``: no blanks at the ends, none doubled."""
    return re.sub(r"\s+", " ", _legal(value)).strip()


def _moment(started: str) -> str:
    """A time of day as Ant's schema wants it: UTC without its zone; the epoch where it is not one."""
    try:
        found = datetime.fromisoformat(started)
    except ValueError:
        found = datetime.fromtimestamp(0, timezone.utc)
    if found.tzinfo is not None:
        found = found.astimezone(timezone.utc)
    return found.strftime("%Y-%m-%dT%H:%M:%S")
