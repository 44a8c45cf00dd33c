"""Sphinx configuration. The command reference and the man page are made from the commands before each build."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parent / "qmp"):
    sys.path.insert(0, str(folder))

from generate_cli import generate  # noqa: E402

from vmcoal import __version__  # noqa: E402

generate(HERE / "reference" / "cli")

project = "vmcoal"
author = "The vmcoal authors"
copyright = author
version = release = __version__

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "README.md"]
nitpicky = True

html_theme = "furo"
html_title = f"vmcoal {version}"

man_pages = [("reference/cli/man", "vmcoal", "grow a running VM with CPUs, memory and GPUs of nearby hosts", [], 1)]
man_show_urls = False
