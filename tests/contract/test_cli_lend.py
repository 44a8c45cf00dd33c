"""A real lender through the command line: start, pair, look, drain, stop; nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from framework.command import spawn_vmcoal
from vmcoal import layout
from vmcoal.controller.api import LenderView, PingResult
from vmcoal.errors import VmcoalError
from vmcoal.holding.binaries import find_binary
from vmcoal.lending.api import BorrowerView, LenderStatus
from vmcoal.model.lease import ResourceKind

pytestmark = pytest.mark.contract

PATIENCE = 40.0


def run(*arguments: str, stdin: bytes = b"", code: int = 0) -> bytes:
    process = spawn_vmcoal(*arguments, stdin=subprocess.PIPE)
    out, err = process.communicate(stdin, timeout=PATIENCE)
    assert process.returncode == code, err.decode()
    assert b"Traceback" not in err
    return out if code == 0 else err


@pytest.fixture
def barn() -> Iterator[str]:
    try:
        find_binary("vmcoal-holder")
    except VmcoalError as error:
        pytest.skip(f"{error}: {error.hint}")
    run("lend", "--cpus", "1", "--memory", "64M", "--name", "barn", "--listen", "127.0.0.1:0")
    yield "barn"
    if layout.lender_folders("barn").control_socket.exists():
        run("lend", "stop", "--name", "barn", "--deadline", "5s")


def status() -> LenderStatus:
    (found,) = msgspec.json.decode(run("lend", "status", "-o", "json"), type=list[LenderStatus])
    return found


def open_window(*arguments: str) -> tuple[subprocess.Popen[bytes], bytes]:
    """Open a pairing window and return its process and the code it shows."""
    window = spawn_vmcoal("lend", "pair", "-o", "json", *arguments)
    assert window.stderr is not None
    while b"code: " not in (line := window.stderr.readline()):
        assert line, "the window ended without a code"
    return window, line.split()[1]


def test_a_lenders_life(barn: str, tmp_path: Path) -> None:
    before = status()
    assert (before.name, before.offer.cpus_total, before.offer.memory_total) == ("barn", 1, 64 << 20)
    (address,) = before.addresses
    assert b"runs already" in run("lend", "--cpus", "1", "--name", "barn", code=5)

    window, code = open_window("--borrower", "laptop")
    assert b"code is wrong" in run("pair", address, "--code-file", "-", stdin=b"000-000-000\n", code=6)
    code_file = tmp_path / "code"
    code_file.write_bytes(code)
    run("pair", address, "--code-file", str(code_file), "--name", "attic", "--want", "memory")
    out, _ = window.communicate(timeout=PATIENCE)
    assert msgspec.json.decode(out, type=BorrowerView).grants == (ResourceKind.MEMORY,)
    assert window.returncode == 0

    (view,) = msgspec.json.decode(run("lenders", "-o", "json"), type=list[LenderView])
    assert (view.name, view.address, view.reachable) == ("attic", address, True)
    assert view.offer is not None
    assert view.offer.same_host
    measured = msgspec.json.decode(run("ping", "attic", "-c", "3", "-o", "json"), type=PingResult)
    assert measured.link.samples == 3
    assert 10 < measured.distance < 255
    (borrower,) = msgspec.json.decode(run("lend", "borrowers", "-o", "json"), type=list[BorrowerView])
    assert (borrower.name, borrower.leases) == ("laptop", ())

    run("cordon")
    assert status().offer.cordoned
    run("uncordon")
    assert not status().offer.cordoned
    assert b"vmcoal_" in run("lend", "metrics")
    run("lend", "forget", "laptop", "--yes")
    (view,) = msgspec.json.decode(run("lenders", "-o", "json"), type=list[LenderView])
    assert not view.reachable
    assert view.error
    run("unpair", "attic")
    assert run("lenders", "-o", "json") == b"[]\n"
    run("lend", "stop", "--deadline", "5s")
    assert run("lend", "status").endswith(b"Lender barn: stopped\n")


def test_ctrl_c_closes_the_window(barn: str) -> None:
    window, _ = open_window()
    assert status().pairing
    window.send_signal(signal.SIGINT)
    _, err = window.communicate(timeout=PATIENCE)
    assert window.returncode == 130
    assert b"Traceback" not in err
    assert not status().pairing


def test_what_this_host_cannot_lend_is_told(barn: str) -> None:
    err = run("lend", "--cpus", "4000", "--memory", "64M", "--name", "big", code=3)
    assert b"4000 CPUs cannot be lent" in err
    assert b"hint: lend at most --cpus" in err


def test_a_port_that_is_taken(barn: str) -> None:
    (address,) = status().addresses
    err = run("lend", "--cpus", "1", "--name", "second", "--listen", address, code=5)
    assert address.encode() in err or b"taken" in err or b"in use" in err


def test_foreground_logs_to_stderr() -> None:
    reader, writer = os.pipe()
    process = spawn_vmcoal(
        *("lend", "--cpus", "1", "--name", "fore", "--listen", "127.0.0.1:0", "--foreground"), stderr=writer
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as log:
        while b"lender fore lends" not in (line := log.readline()):
            assert line, "it ended"
        process.send_signal(signal.SIGTERM)
        log.read()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
