"""What the documents name is there: files, links, make targets, commands, options, symbols, and what vmcoal prints."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from framework.command import ROOT
from vmcoal.cli.app import app

pytestmark = pytest.mark.unit

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/internals").glob("*.md")])
TREES = ("vmcoal", "qmp", "guest-agent", "dataplane", "configs", "docs", "tests", "tools")
FILE = re.compile(r"(?<![\w$~./-])[\w*-][\w*./-]*\.(?:py|c|h|md|toml|rules|yml|patch|service)(?![\w/])")
GENERATED = "reference"

page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Every file of the project, relative to its root."""
    folders = [ROOT / tree for tree in TREES]
    found = [path.relative_to(ROOT) for folder in folders for path in folder.rglob("*") if path.is_file()]
    return found + [path.relative_to(ROOT) for path in ROOT.iterdir() if path.is_file()]


def code(page: Path) -> Iterator[str]:
    """Yield what a page has between backticks, on lines of their own included."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    for block in fenced:
        yield from block.splitlines()
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from (line.strip() for line in text.splitlines() if line.startswith("    "))
    yield from re.findall(r"`([^`\n]+)`", text)


@page
def test_files_exist(page: Path, files: list[Path]) -> None:
    for text in code(page):
        for name in FILE.findall(text):
            # A document may leave out the folders that its reader is in already: any file of that name will do.
            assert any(path.match(name) for path in files), f"{name} in {text!r}"


@page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert GENERATED in target or (page.parent / target).exists(), target


@page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for text in code(page):
        if match := re.match(r"make ([a-z-]+)", text):
            assert match[1] in targets, text


@page
def test_commands_and_options_exist(page: Path) -> None:
    for text in code(page):
        match = re.match(r"(?:\$ |host\d# )?(vmcoal(?: .*|$))", text)
        if match is None or "…" in text:
            continue
        try:
            words = shlex.split(match[1], comments=True)[1:]
        except ValueError:
            pytest.fail(f"no shell command: {text}")
        command: click.Command = app
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(click.Context(command), words[0])
            assert found is not None or words[0].isupper(), text
            if found is None:
                break
            command = found
            words.pop(0)
        known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
        if "--" in words:
            words = words[: words.index("--")]
        assert {word for word in words if word.startswith("-")} <= known, text


@page
def test_symbols_exist(page: Path) -> None:
    for name in re.findall(r"`(vmcoal(?:_qmp)?\.[\w.]+)`", page.read_text(encoding="utf-8")):
        module, *rest = parts = name.split(".")
        for at in range(len(parts), 0, -1):
            try:
                found: object = importlib.import_module(".".join(parts[:at]))
            except ModuleNotFoundError:
                continue
            module, rest = ".".join(parts[:at]), parts[at:]
            break
        else:
            pytest.fail(f"no module of {name}")
        for part in rest:
            assert hasattr(found, part), f"{module} has no {part} of {name}"
            found = getattr(found, part)


def spoken() -> str:
    """Return every text of vmcoal's source; what an f-string puts in is a line break."""
    found = []
    for path in (ROOT / "vmcoal").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "\n" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_what_troubleshooting_quotes_is_what_vmcoal_prints() -> None:
    text, quotes = spoken(), 0
    for line in (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").splitlines():
        seen = line.removeprefix("| ").partition(" | ")[0] if line.startswith("| ") else ""
        for quote in re.findall(r"`([^`]+)`", seen):
            if " " not in quote or quote.startswith(("vmcoal ", "--")):
                continue
            # names, sizes and what is left out stand for what an f-string puts in
            for part in re.split(r"…|\b(?:attic|web|slow|gpu|VM|[0-9.]+)\b", quote):
                if len(part.strip(" :(),")) > 4:
                    assert part.strip(" :()") in text, quote
                    quotes += 1
    assert quotes > 20


PROSE = frozenset(["again", "does", "from", "in", "on", "to"])
"""What may follow the name in a hint, beside a command."""


def hints() -> Iterator[tuple[Path, str]]:
    """Give every text of vmcoal's source that tells people what to do; what an f-string puts in is a line break."""
    for path in sorted((ROOT / "vmcoal").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in ("hint", "left", "remedy", "look", "log"):
                for part in ast.walk(node.value):
                    if isinstance(part, ast.JoinedStr):
                        pieces = (str(p.value) if isinstance(p, ast.Constant) else "\n" for p in part.values)
                        yield path, "".join(pieces)
                    elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield path, part.value


def test_every_command_in_a_hint_is_one() -> None:
    context, found = click.Context(app), 0
    for path, text in hints():
        for word, option in re.findall(r"\bvmcoal ([a-z][a-z-]*)\b(?:[^;\n]*? (--[a-z-]+))?", text):
            if word in PROSE:
                continue
            command = app.get_command(context, word)
            assert command is not None, f"{path}: {text}"
            if option and not isinstance(command, click.Group):
                assert option in {name for parameter in command.params for name in parameter.opts}, f"{path}: {text}"
            found += 1
    assert found > 100
