"""Processes of a VM that die while memory is plugged: told with the next step, and cleaned up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from framework.path import Scene, kill, needs_pager, scene, until
from vmcoal.model.status import VmStatus

pytestmark = [pytest.mark.contract, pytest.mark.timeout(120)]

BOOT_SECTOR = b"\xfa\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture(params=["pager", "fuse"])
def plugged(request: pytest.FixtureRequest) -> Iterator[tuple[Scene, str]]:
    """A VM whose guest does nothing, with a DIMM of 128 MiB, with each engine; its lease."""
    if request.param == "pager":
        needs_pager()
    with scene(request) as made:
        made.lend("attic", cpus=1, memory="256M")
        image = made.home / "still.raw"
        image.write_bytes(BOOT_SECTOR.ljust(1 << 20, b"\0"))
        options = ("--image", str(image), "--no-seed", "--wait", "qemu", "--memory-engine", request.param)
        made.boot("still", *options)
        yield made, made.attach("--memory", "128M").attachment.memory[0].lease


def all_given_back(made: Scene) -> None:
    until(lambda: made.lender("attic").leases == (), "the lease being given back")
    until(
        lambda: not made.pids(" still ") and not made.pids("nbdfuse") + made.pids("pager"), "the end of its processes"
    )
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{made.home}/r" in line]
    assert list(made.shm.iterdir()) == []
    assert made.open_operations() == []


def files(made: Scene) -> list[str]:
    """Return everything in the folders of the VM and its lender; mounts whose process is gone cannot be entered."""
    found = [os.path.join(folder, name) for folder, _, names in os.walk(made.home) for name in names]  # noqa: PTH118
    return sorted(name for name in found if not name.endswith(("-wal", "-shm")))


def failed(made: Scene) -> VmStatus | None:
    """Return the status of a VM that is told to have failed. While its controller still gives things back, the command
    itself fails with what QEMU ended by."""
    done = made.run("status", "still", "-o", "json", code=None)
    status = msgspec.json.decode(done.out, type=VmStatus) if done.code == 0 else None
    return status if status is not None and status.state == "failed" and status.exit is not None else None


def test_qemu_is_killed(plugged: tuple[Scene, str]) -> None:
    made, _ = plugged
    kill(made.status().qemu_pid or 0)
    status = until(lambda: failed(made), "the VM being failed")
    assert status is not None
    assert status.exit is not None
    assert (status.exit["state"], status.exit["code"]) == ("signaled", 9)
    all_given_back(made)
    assert made.run("attach", "still", "--memory", "128M", code=3).err.count("hint:") == 1
    assert "nothing left to give back" in made.run("shutdown", "still", "--dry-run").out
    assert made.run("shutdown", "still").out == "VM still had ended by itself already\n"


def test_the_holder_is_killed(plugged: tuple[Scene, str]) -> None:
    made, _ = plugged
    kill(made.status().holder_pid or 0)
    assert "VM still " in made.run("shutdown", "still").out, "also while its controller gives things back"
    until(lambda: failed(made), "the VM being failed")
    all_given_back(made)


def test_the_holder_and_the_controller_are_killed(plugged: tuple[Scene, str]) -> None:
    made, lease = plugged
    status = made.status()
    kill(status.controller_pid or 0)
    kill(status.holder_pid or 0)
    until(lambda: not made.pids("qemu-system") + made.pids("vmcoal.controller"), "the end of its processes")
    left = files(made)
    status = made.status()
    assert status.state == "failed"
    assert status.degraded == (
        "its processes were killed; left behind: 128 MiB of attic; "
        "next: vmcoal shutdown still gives it back, and so does vmcoal boot still",
    )
    error = made.run("attach", "still", "--memory", "128M", code=3).err
    assert "VM still does not run: its processes were killed" in error
    assert "left: 128 MiB of attic" in error
    assert f"give lease {lease} back" in made.run("shutdown", "still", "--dry-run").out
    assert [each.id for each in made.lender("attic").leases] == [lease], "nobody asked for it"
    assert files(made) == left
    assert "VM still had been killed already; 1 lease given back" in made.run("shutdown", "still").out
    all_given_back(made)
    assert made.status().degraded == ()
    assert made.run("shutdown", "still").out == "VM still had ended by itself already\n"


@pytest.mark.parametrize("plugged", ["pager"], indirect=True)
def test_delete_gives_back_what_a_killed_vm_had(plugged: tuple[Scene, str]) -> None:
    made, _ = plugged
    status = made.status()
    kill(status.controller_pid or 0)
    kill(status.holder_pid or 0)
    made.run("delete", "still", "--yes")
    until(lambda: made.lender("attic").leases == (), "the lease being given back")
    assert list(made.shm.iterdir()) == []


@pytest.mark.parametrize("plugged", ["fuse"], indirect=True)
@pytest.mark.parametrize("program", ["nbdfuse", "nbdkit"])
def test_a_data_plane_process_is_killed(plugged: tuple[Scene, str], program: str) -> None:
    made, lease = plugged
    (victim,) = made.pids(program, f"{lease}.nb") if program == "nbdfuse" else made.pids("nbdkit", "--filter=retry")
    kill(victim)
    (line,) = until(lambda: made.status().degraded, "the VM being degraded")
    assert "its memory is lost; next: vmcoal shutdown still --force" in line
    assert made.status().state == "running"
    made.run("shutdown", "still", "--force")
    all_given_back(made)


@pytest.mark.parametrize("plugged", ["pager"], indirect=True)
def test_the_pager_is_killed(plugged: tuple[Scene, str]) -> None:
    made, _ = plugged
    for _ in range(3):
        before = made.pid("vmcoal-pager")
        kill(before)
        until(lambda: made.pids("vmcoal-pager") not in ([], [before]), "another pager")  # noqa: B023
        until(lambda: not made.status().degraded, "all being well")
    made.run("shutdown", "still", "--force")
    all_given_back(made)
