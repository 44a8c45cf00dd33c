"""The documentation against the code: the reference is built from the commands, the tables are compared."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
import pytest

from framework.command import ROOT
from vmcoal import errors, layout
from vmcoal.cli.app import app
from vmcoal.cli.catalog import COMMANDS
from vmcoal.cli.outcome import BROKEN_PIPE, INTERRUPTED

pytestmark = pytest.mark.unit

DOCS = ROOT / "docs"


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(DOCS))
    (tmp_path / "old.md").write_text("x")
    importlib.import_module("generate_cli").generate(tmp_path)
    return tmp_path


def test_the_reference_has_every_command_and_option(generated: Path) -> None:
    assert {path.stem for path in generated.glob("*.md")} == {*COMMANDS, "index", "man"}
    man = (generated / "man.md").read_text()
    for name in COMMANDS:
        page = (generated / f"{name}.md").read_text()
        command = app.get_command(click.Context(app), name)
        assert command is not None
        found = [command, *(command.commands.values() if isinstance(command, click.Group) else [])]
        for one in found:
            assert page.count("```console\n$ ") == len(found)
            for param in one.params:
                if isinstance(param, click.Option):
                    assert max(param.opts, key=len) in page
                    assert max(param.opts, key=len) in man
        assert f"### vmcoal {name}\n" in man


def tables(page: str) -> dict[str, dict[str, str]]:
    """Return the first two columns of each table of a page, by heading."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif match := re.match(r"\| (?!-)([^|]+) \| ([^|]*)\|", line):
            found.setdefault(heading, {})[match[1].strip("`")] = match[2].strip("` ")
    return found


def test_exit_codes_are_those_of_the_errors() -> None:
    (rows,) = tables("exit-codes.md").values()
    told = {code: kind for code, kind in rows.items() if code != "code"}
    classes = {str(kind.exit_code): name for name, kind in errors._KINDS.items()}
    assert told == classes | {"0": "", str(INTERRUPTED): "", str(BROKEN_PIPE): ""}


def names(folders: layout.Folders, below: Path) -> set[str]:
    """Return the names of everything ``folders`` has in the folder ``below``."""
    properties = [name for name in dir(type(folders)) if isinstance(getattr(type(folders), name), property)]
    paths = [getattr(folders, name) for name in properties]
    return {path.name for path in paths if path.parent == below}


def test_the_layout_page_is_the_layout() -> None:
    page = tables("layout.md")
    vm, lender = layout.vm_folders("name"), layout.lender_folders("name")
    state = {layout.identity_key(), layout.known_lenders(), layout.crash_home()}
    assert all(path.parent == layout.state_home() for path in state)
    assert set(page["State"]) == {path.name for path in state} | {*("path", "vm/NAME", "lend/NAME", "lab/NAME")}
    assert set(page["State of a VM"]) == names(vm, vm.state) | {
        "path",
        "known_hosts",
        "controller.lock",
        vm.local_copy("REGION").name,
    }
    assert set(page["State of a lender"]) == names(lender, lender.state) | {"path", "lender.lock"}
    mount = vm.mount("LEASE")
    assert mount.parent == vm.runtime
    assert set(page["Runtime of a VM"]) == names(vm, vm.runtime) | {"path", mount.name, vm.gpu_socket("LEASE").name}
    assert set(page["Runtime of a lender"]) == names(lender, lender.runtime) | {"path"}
    host = layout.lab_host_folders("host1", "name")
    told = {Path(path).name for path in page["State of a lab"]} - {"path", "lab.json"}
    assert told == names(host, host.state) - {"journal.sqlite"}
    assert set(page["Runtime of a lab"]) == {"path"} | {
        f"HOST/{path.name}" for path in (host.holder_socket, *map(host.socket, ("qmp", "console", "agentN")))
    }
    assert vm.pages == layout.shm_home() / "vm-name"
    assert set(page["Lent and borrowed bytes"]) == {"path", "LENDER-LEASE-GENERATION.mem", "vm-NAME"}
    lent = layout.LenderFolders(Path("/r/LENDER"), Path("/s/LENDER")).memory("LEASE", "GENERATION")
    assert lent == layout.shm_home() / "LENDER-LEASE-GENERATION.mem"
    assert layout.config_file().name in page["Cache and configuration"]


def test_the_folders_are_where_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    page = tables("layout.md")["Files"]
    for variable, home in (
        ("XDG_STATE_HOME", layout.state_home),
        ("XDG_CACHE_HOME", layout.cache_home),
        ("XDG_CONFIG_HOME", layout.config_home),
        ("XDG_RUNTIME_DIR", layout.runtime_home),
    ):
        monkeypatch.setenv(variable, "/elsewhere")
        assert home() == Path("/elsewhere/vmcoal")
        monkeypatch.setenv(variable, "relative")
        default = page[f"${variable}/vmcoal"]
        if default.startswith("~"):
            assert home() == Path(default).expanduser()
