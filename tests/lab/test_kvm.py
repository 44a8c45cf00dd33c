"""What vmcoal has, under real KVM on one host: both Debians, with their own QEMU and kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from framework.one_host import LENDER_ADDRESS, OneHost, one_host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

VM = "web"

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


@pytest.fixture(scope="module", params=["12", "13"])
def host(request: pytest.FixtureRequest) -> Iterator[OneHost]:
    """Give a host with a lender on itself and a VM that has borrowed nothing yet."""
    with one_host(request, request.param, memory=1792) as made:
        made.lend("attic", "--cpus", "2", "--memory", "384M")
        made.vmcoal("boot", VM, "--accel", "kvm", "--cpus", "1", "--memory", "384M", "--far-memory", "1G")
        yield made


@pytest.fixture
def plain(host: OneHost) -> Iterator[OneHost]:
    """Give the host, and take back from the VM what a test borrowed."""
    yield host
    if host.read("status", VM)["attachments"]:
        host.vmcoal("detach", VM, "--from", "attic")
    assert cpus(host) == {0: 1}


def cpus(host: OneHost) -> dict[int, int]:
    """Return how many CPUs each node of the guest has online, as its own kernel sees it."""
    found: dict[int, int] = {}
    for line in host.guest(VM, "lscpu", "-p=CPU,NODE").splitlines():
        if not line.startswith("#"):
            node = int(line.split(",")[1] or 0)
            found[node] = found.get(node, 0) + 1
    return found


def attach(host: OneHost, *what: str) -> int:
    """Attach from the lender and return the far node."""
    answer = json.loads(host.vmcoal("attach", VM, "--from", "attic", *what, "-o", "json"))
    return int(answer["attachment"]["node"])


def test_the_host_has_real_kvm(host: OneHost) -> None:
    checks = {check["id"]: check for check in json.loads(host.vmcoal("doctor", "-o", "json", code=None))}
    assert checks["acceleration"]["level"] == "ok"
    assert checks["acceleration"]["found"].startswith("KVM")
    assert host.read("status", VM)["accel"] == "kvm"
    assert host.shell("cat /sys/kernel/debug/kvm/exits") != "0"
    release = {"12": "6.1.", "13": "6.12."}[host.host.spec.flavor]
    assert host.shell("uname -r").startswith(release)
    assert host.guest(VM, "uname", "-r").startswith(release)


def test_vcpus_come_and_go(plain: OneHost) -> None:
    for _ in range(2):
        node = attach(plain, "--cpus", "2")
        assert cpus(plain) == {0: 1, node: 2}
        plain.guest(VM, "numactl", f"--cpunodebind={node}", "true")
        plain.vmcoal("detach", VM, "--from", "attic", "--cpus", "2")
        assert cpus(plain) == {0: 1}
        present = plain.guest(VM, "cat", "/sys/devices/system/cpu/present")
        assert present == "0", "unplugged, not only offline"


def test_memory_holds_what_is_written(plain: OneHost) -> None:
    node = attach(plain, "--memory", "256M", "--cpus", "1")
    script = (
        "import hashlib, mmap\n"
        "size, page = 96 << 20, 1 << 20\n"
        "fill = lambda at: hashlib.sha256(b'%d' % at).digest() * (page // 32)\n"
        "memory = mmap.mmap(-1, size)\n"
        "for at in range(0, size, page): memory[at:at + page] = fill(at)\n"
        "print(sum(memory[at:at + page] != fill(at) for at in range(0, size, page)))\n"
    )
    wrong = plain.guest(VM, "numactl", f"--membind={node}", f"--cpunodebind={node}", "python3", "-c", script)
    assert wrong == "0"


def test_a_guest_reboots_with_what_it_borrowed(plain: OneHost) -> None:
    node = attach(plain, "--memory", "256M", "--cpus", "2")
    before = plain.guest(VM, "cat", "/proc/sys/kernel/random/boot_id")
    plain.guest(VM, "reboot", code=None)
    plain.until(
        f'now=$(vmcoal exec {VM} -- cat /proc/sys/kernel/random/boot_id 2>/dev/null) && [ -n "$now" ] '
        f'&& [ "$now" != {before} ]'
    )
    assert cpus(plain) == {0: 1, node: 2}
    plain.vmcoal("detach", VM, "--from", "attic")
    assert cpus(plain) == {0: 1}


def test_a_killed_controller_is_followed_by_one_that_knows(plain: OneHost) -> None:
    node = attach(plain, "--cpus", "1", "--memory", "128M")
    plain.shell("pkill -9 -f '[v]mcoal.controller'")
    assert cpus(plain) == {0: 1, node: 1}
    plain.vmcoal("detach", VM, "--from", "attic")


def test_a_killed_lender_costs_nothing(plain: OneHost) -> None:
    node = attach(plain, "--memory", "128M")
    plain.shell("pkill -9 -f '[v]mcoal.lending'")
    plain.vmcoal("lend", "--name", "attic", "--cpus", "2", "--memory", "384M", "--listen", LENDER_ADDRESS)
    script = "b = bytearray(32 << 20); b[::4096] = b'x' * len(b[::4096]); print(sum(b[::4096]) // 120)"
    assert plain.guest(VM, "numactl", f"--membind={node}", "python3", "-c", script) == str((32 << 20) // 4096)
    plain.vmcoal("detach", VM, "--from", "attic")


def test_a_killed_pager_costs_nothing(plain: OneHost) -> None:
    assert plain.read("status", VM)["memory_engine"]["name"] == "pager", "userfaultfd takes KVM's faults here"
    node = attach(plain, "--memory", "128M")
    plain.guest(VM, "sh", "-c", f"numactl --membind={node} python3 -c '{HOLD}' </dev/null >/tmp/held 2>&1 &")
    plain.until(f"vmcoal exec {VM} -- grep -q ready /tmp/held")
    plain.shell("pkill -9 -x vmcoal-pager")
    plain.guest(VM, "touch", "/tmp/look")
    plain.until(f"vmcoal exec {VM} -- grep -q wrong /tmp/held")
    assert plain.guest(VM, "tail", "-1", "/tmp/held") == "0 wrong"
    plain.vmcoal("detach", VM, "--from", "attic")


def test_nothing_is_left_in_the_host(host: OneHost) -> None:
    host.vmcoal("shutdown", VM)
    host.vmcoal("lend", "stop", "--name", "attic")
    assert host.left() == []


def test_a_host_with_an_iommu_can_pass_functions_through(request: pytest.FixtureRequest) -> None:
    with one_host(request, "12", memory=1024, iommu=True, functions=("edu", "bochs-display")) as host:
        assert int(host.shell("ls /sys/kernel/iommu_groups | wc -l")) > 3
        for device in ("1234:11e8", "1234:1111"):
            bound = host.shell(
                f"set -e; modprobe vfio-pci; at=$(lspci -Dn -d {device} | cut -d' ' -f1); cd /sys/bus/pci/devices/$at; "
                "echo vfio-pci >driver_override; [ ! -e driver ] || echo $at >driver/unbind; "
                "echo $at >/sys/bus/pci/drivers_probe; "
                "basename $(readlink driver); ls /dev/vfio/$(basename $(readlink iommu_group))"
            )
            assert bound.startswith("vfio-pci\n/dev/vfio/")
