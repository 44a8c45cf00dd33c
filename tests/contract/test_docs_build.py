"""Sphinx builds the documentation without a warning, as HTML and as a man page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from framework.command import ROOT
from vmcoal.cli.catalog import COMMANDS

pytestmark = pytest.mark.contract

DOCS = ROOT / "docs"


@pytest.mark.parametrize("builder", ["html", "man"])
def test_the_documentation_builds(builder: str, tmp_path: Path) -> None:
    pytest.importorskip("furo", reason="the docs dependencies are not installed: pip install --group docs")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", builder, "-d", tmp_path / "trees", DOCS, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    if builder == "man":
        page = (tmp_path / "out" / "vmcoal.1").read_text()
        for name in COMMANDS:
            assert f"vmcoal {name}" in page
        assert ".SH EXIT STATUS" in page
