"""The table of what was run where is made of pytest's reports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from framework.command import ROOT

pytestmark = pytest.mark.unit

REPORT = """<testsuites><testsuite>
<testcase classname="tests.lab.test_memory" name="test_a_dimm_over_each_link[wifi]">
<properties><property name="where" value="Debian 12"/></properties>{outcome}</testcase>
<testcase classname="tests.lab.test_memory" name="test_a_lender_s_end"><properties>
<property name="where" value="Debian 13"/></properties></testcase>
<testcase classname="tests.lab.test_hosts" name="test_more"><skipped/></testcase>
<testcase classname="tests.unit.test_lab" name="test_x"/>
</testsuite></testsuites>"""

TABLE = """| | Debian 12 | Debian 13 | this machine |
|---|---|---|---|
| a dimm over each link: wifi | {outcome} |  |  |
| a lender's end |  | passed |  |
| more |  |  | skipped |
"""


def report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/lab-report"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_table(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.xml", tmp_path / "bad.xml"
    good.write_text(REPORT.format(outcome=""))
    bad.write_text(REPORT.format(outcome="<failure/>"))
    assert report(good).stdout == TABLE.format(outcome="passed")
    assert report(good, bad).stdout == TABLE.format(outcome="**failed**")
    page = tmp_path / "page.md"
    page.write_text("# Lab\n<!-- runs -->\nold\n<!-- end of runs -->\nmore\n")
    assert report("--write", page, bad, good).returncode == 0
    table = TABLE.format(outcome="passed")
    assert page.read_text() == f"# Lab\n<!-- runs -->\n{table}<!-- end of runs -->\nmore\n"


def test_what_it_cannot_do(tmp_path: Path) -> None:
    assert "Usage" in report().stderr
    good, page = tmp_path / "good.xml", tmp_path / "page.md"
    good.write_text(REPORT.format(outcome=""))
    page.write_text("no place for it")
    assert "has no lines" in report("--write", page, good).stderr
