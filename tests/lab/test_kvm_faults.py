"""Who is killed while a guest under real KVM uses what it borrowed on one host; and that nothing is left in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from framework.one_host import LENDER, LENDER_ADDRESS, LENT, VM, Borrower, borrower, lasting

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


HOLD = (
    "import mmap, os, time\n"
    "size = 48 << 20\n"
    "memory = mmap.mmap(-1, size)\n"
    'for at in range(0, size, 4096): memory[at:at + 8] = at.to_bytes(8, "big")\n'
    'print("ready", flush=True)\n'
    'while not os.path.exists("/tmp/look"): time.sleep(0.1)\n'
    'wrong = sum(memory[at:at + 8] != at.to_bytes(8, "big") for at in range(0, size, 4096))\n'
    'print(wrong, "wrong", flush=True)\n'
)
"""A program of the guest that fills memory, and looks at it when it is told to."""


@pytest.fixture(scope="module")
def machines(request: pytest.FixtureRequest) -> Iterator[Callable[[], Borrower]]:
    with lasting(lambda: borrower(request, "12")) as give:
        yield give


@pytest.fixture
def machine(machines: Callable[[], Borrower]) -> Borrower:
    return machines()


@pytest.fixture
def plain(machine: Borrower) -> Iterator[Borrower]:
    yield machine
    machine.give_back()


def test_a_killed_lender_costs_nothing(plain: Borrower) -> None:
    node = plain.attach("--memory", "128M")
    plain.host.shell("pkill -9 -f '[v]mcoal.lending'")
    plain.host.vmcoal("lend", "--name", LENDER, *LENT, "--listen", LENDER_ADDRESS)
    script = "b = bytearray(32 << 20); b[::4096] = b'x' * len(b[::4096]); print(sum(b[::4096]) // 120)"
    assert plain.guest("numactl", f"--membind={node}", "python3", "-c", script) == str((32 << 20) // 4096)
    plain.detach()


def test_a_killed_pager_costs_nothing(plain: Borrower) -> None:
    assert plain.host.read("status", VM)["memory_engine"]["name"] == "pager", "userfaultfd takes KVM's faults here"
    node = plain.attach("--memory", "128M")
    plain.guest("sh", "-c", f"setsid numactl --membind={node} python3 -c '{HOLD}' </dev/null >/tmp/held 2>&1 &")
    plain.host.until(f"vmcoal exec {VM} -- grep -q ready /tmp/held")
    plain.host.shell("pkill -9 -x vmcoal-pager")
    plain.guest("touch", "/tmp/look")
    plain.host.until(f"vmcoal exec {VM} -- grep -q wrong /tmp/held")
    assert plain.guest("tail", "-1", "/tmp/held") == "0 wrong"
    plain.detach()


def test_nothing_is_left_in_the_host(machine: Borrower) -> None:
    if machine.host.read("status", VM)["state"] == "running":  # a second try meets what the first one ended
        machine.host.vmcoal("shutdown", VM)
        machine.host.vmcoal("lend", "stop", "--name", LENDER)
    assert machine.host.left() == []
