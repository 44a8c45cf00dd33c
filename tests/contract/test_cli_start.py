"""How long the command line takes to start, and what it imports."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.command import ROOT, spawn_vmcoal, vmcoal

pytestmark = pytest.mark.contract

TIMES = 9


def seconds(*argv: str) -> float:
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - began


def test_help_costs_at_most_five_times_an_empty_python() -> None:
    run = "from vmcoal.cli.main import main; main(['--help'])"
    pairs = [(seconds(sys.executable, "-c", "pass"), seconds(sys.executable, "-c", run)) for _ in range(TIMES)]
    nothing, helped = min(first for first, _ in pairs), min(second for _, second in pairs)
    assert helped <= 5 * nothing, f"vmcoal --help takes {helped * 1e3:.0f} ms, python -c pass {nothing * 1e3:.0f} ms"


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["--help"], ("click", "msgspec", "asyncio", "rich", "asyncssh")),
        (["--version"], ("click", "msgspec", "asyncio", "rich", "asyncssh")),
        (["attach", "--help"], ("asyncio", "rich", "asyncssh", "prometheus_client")),
        (["status"], ("asyncio", "rich", "asyncssh", "prometheus_client")),
        (["lend", "status"], ("asyncio", "rich", "asyncssh", "prometheus_client")),
        (["boot", "--help"], ("asyncio", "rich", "asyncssh", "prometheus_client")),
    ],
)
def test_only_what_is_needed_is_imported(arguments: list[str], forbidden: tuple[str, ...]) -> None:
    program = (
        f"import sys; from vmcoal.cli.main import main; main({arguments!r}); "
        f"print([name for name in {forbidden!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    done = vmcoal("completion", shell)
    assert done.code == 0
    assert "_VMCOAL_COMPLETE" in done.out
    assert not done.err


def test_bash_takes_the_completion_script() -> None:
    script = vmcoal("completion", "bash").out
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    loaded = subprocess.run(
        ["bash", "-c", 'eval "$(cat)"; complete -p vmcoal'], input=script.encode(), check=True, capture_output=True
    )
    assert b"_vmcoal_completion" in loaded.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vmcoal stat", {"status"}),
        ("vmcoal lend co", {"cordon"}),
        ("vmcoal attach --gran", {"--granular"}),
        ("vmcoal attach w", {"web", "wiki"}),
        ("vmcoal attach --from a", {"attic"}),
        ("vmcoal lend status --name b", {"barn"}),
        ("vmcoal lend forget l", {"laptop"}),
        ("vmcoal lab shell h", {"host1"}),
        ("vmcoal lab link host1 host2 wifi", {"wifi", "wifi6e"}),
    ],
)
def test_completion_completes(words: str, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from vmcoal import layout

    for name in ("web", "wiki"):
        folders = layout.vm_folders(name)
        folders.make()
        folders.spec.write_text("{}")
    barn = layout.lender_folders("barn")
    barn.make()
    barn.borrowers.write_text('{"version":1,"records":[{"name":"laptop"},{"name":"web"}]}')
    host = layout.lab_host_folders("host1")
    host.state.mkdir(parents=True)
    host.spec.write_text("{}")
    layout.known_lenders().write_text('{"version":1,"records":[{"name":"attic"},{"name":"zoo"}]}')
    monkeypatch.setenv("_VMCOAL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    process = spawn_vmcoal()
    out, err = process.communicate(timeout=30)
    assert {line.partition(",")[2] for line in out.decode().splitlines()} == expected, err


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = spawn_vmcoal("--help")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) in (0, 141)


@pytest.mark.parametrize("command", ["version", "--help"])
def test_a_full_disk_is_said(command: str) -> None:
    with Path("/dev/full").open("wb") as full:
        process = spawn_vmcoal(command, stdout=full)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 9
    assert err.startswith(b"vmcoal: error: cannot write stdout: No space left on device\n  hint: ")
