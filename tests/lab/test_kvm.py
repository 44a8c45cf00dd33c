"""What vmcoal has, under real KVM on one host: both Debians, with their own QEMU and kernel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from framework.one_host import VM, Borrower, borrower, lasting

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


SPIN = bytes([0xE4, 0x80, 0xEB, 0xFC]).ljust(510, b"\0") + b"\x55\xaa"  # in al, 0x80; jmp to it
TOGGLE = """
import fcntl, os
kvm = os.open("/dev/kvm", os.O_RDWR)
for _ in range(1500):
    vm = fcntl.ioctl(kvm, 0xAE01, 0)  # KVM_CREATE_VM; no interrupt controller in it
    vcpu = fcntl.ioctl(vm, 0xAE41, 0)  # KVM_CREATE_VCPU
    os.close(vcpu)
    os.close(vm)
"""


@pytest.fixture(scope="module", params=["12", "13"])
def machines(request: pytest.FixtureRequest) -> Iterator[Callable[[], Borrower]]:
    with lasting(lambda: borrower(request, request.param)) as give:
        yield give


@pytest.fixture
def machine(machines: Callable[[], Borrower]) -> Borrower:
    return machines()


@pytest.fixture
def plain(machine: Borrower) -> Iterator[Borrower]:
    yield machine
    machine.give_back()


def test_the_host_has_real_kvm(machine: Borrower) -> None:
    checks = {check["id"]: check for check in json.loads(machine.host.vmcoal("doctor", "-o", "json", code=None))}
    assert checks["acceleration"]["level"] == "ok"
    assert checks["acceleration"]["found"].startswith("KVM")
    assert machine.host.read("status", VM)["accel"] == "kvm"
    assert machine.host.shell("cat /sys/kernel/debug/kvm/exits") != "0"
    release = {"12": "6.1.", "13": "6.12."}[machine.host.host.spec.flavor]
    assert machine.host.shell("uname -r").startswith(release)
    assert machine.guest("uname", "-r").startswith(release)


def test_vcpus_come_and_go(plain: Borrower) -> None:
    for _ in range(2):
        node = plain.attach("--cpus", "2")
        assert plain.cpus() == {0: 1, node: 2}
        plain.guest("sh", "-c", f"taskset -c $(cat /sys/devices/system/node/node{node}/cpulist) true")
        plain.detach("--cpus", "2")
        assert plain.cpus() == {0: 1}
        present = plain.guest("cat", "/sys/devices/system/cpu/present")
        assert present == "0", "unplugged, not only offline"


def test_memory_holds_what_is_written(plain: Borrower) -> None:
    node = plain.attach("--memory", "256M", "--cpus", "1")
    script = (
        "import hashlib, mmap\n"
        "size, page = 96 << 20, 1 << 20\n"
        "fill = lambda at: hashlib.sha256(b'%d' % at).digest() * (page // 32)\n"
        "memory = mmap.mmap(-1, size)\n"
        "for at in range(0, size, page): memory[at:at + page] = fill(at)\n"
        "print(sum(memory[at:at + page] != fill(at) for at in range(0, size, page)))\n"
    )
    wrong = plain.guest("numactl", f"--membind={node}", f"--cpunodebind={node}", "python3", "-c", script)
    assert wrong == "0"


def test_a_guest_reboots_with_what_it_borrowed(plain: Borrower) -> None:
    node = plain.attach("--memory", "256M", "--cpus", "2")
    before = plain.guest("cat", "/proc/sys/kernel/random/boot_id")
    plain.guest("reboot", code=None)
    plain.host.until(
        f'now=$(vmcoal exec {VM} -- cat /proc/sys/kernel/random/boot_id 2>/dev/null) && [ -n "$now" ] '
        f'&& [ "$now" != {before} ]'
    )
    assert plain.cpus() == {0: 1, node: 2}
    plain.detach()
    assert plain.cpus() == {0: 1}


def test_a_host_without_an_iommu_passes_nothing_through(machine: Borrower) -> None:
    done = machine.host.run("vmcoal", "attach", VM, "--gpu", "pci:0000:00:04.0", code=3)
    assert "this host has no IOMMU that is on" in done.stderr.decode()


def test_a_killed_controller_is_followed_by_one_that_knows(plain: Borrower) -> None:
    node = plain.attach("--cpus", "1", "--memory", "128M")
    plain.host.shell("pkill -9 -f '[v]mcoal.controller'")
    assert plain.cpus() == {0: 1, node: 1}
    plain.detach()


@pytest.mark.soak
def test_an_emulated_host_bears_virtual_cpus_that_come_and_go(machine: Borrower) -> None:
    """Without guest-agent/lab/steady a host with Linux 6.12 panicked within a minute of this."""
    machine.host.run("sh", "-c", "cat > /tmp/spin; truncate -s 1440K /tmp/spin", stdin=SPIN)
    drive = "file=/tmp/spin,format=raw,if=floppy"
    machine.host.shell(
        f"qemu-system-x86_64 -accel kvm -m 32 -display none -nodefaults -drive {drive} >/dev/null 2>&1 & "
        f"python3 -c '{TOGGLE}'; ended=$?; kill $!; wait; rm /tmp/spin; exit $ended"
    )
