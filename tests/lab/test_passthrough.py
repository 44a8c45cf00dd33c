"""Functions of a host in its guest by VFIO: a real IOMMU driver, real KVM, and devices that QEMU emulates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from framework.one_host import LENDER, VM, OneHost, lasting, one_host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

EDU, DISPLAY, DISK, SERIAL = "0000:00:10.0", "0000:00:11.0", "0000:00:05.0", "0000:00:03.0"
RAM = "0000:00:13.0"
LEGACY_EDU, NETWORK = "0000:01:01.0", "0000:01:02.0"
FUNCTIONS = ("edu", "bochs-display", "legacy-bus", "ivshmem-plain")
PROGRAM = (Path(__file__).parents[1] / "framework" / "edu.py").read_text()
BOOT = ("--accel", "kvm", "--cpus", "1", "--memory", "384M", "--far-nodes", "2", "--far-memory", "1G", "--net", "none")


@contextmanager
def ready(request: pytest.FixtureRequest) -> Iterator[OneHost]:
    """A host with functions to pass through and a VM."""
    with one_host(request, "12", memory=1792, iommu=True, functions=FUNCTIONS) as made:
        made.vmcoal("boot", VM, *BOOT, "--gpu-window", "32M")
        yield made


@pytest.fixture(scope="module")
def hosts(request: pytest.FixtureRequest) -> Iterator[Callable[[], OneHost]]:
    with lasting(lambda: ready(request)) as give:
        yield give


@pytest.fixture
def host(hosts: Callable[[], OneHost]) -> OneHost:
    return hosts()


@pytest.fixture(autouse=True)
def _everything_back(host: OneHost) -> Iterator[None]:
    yield
    if host.read("status", VM)["attachments"]:
        host.vmcoal("detach", VM, "--all")


def driver(host: OneHost, address: str) -> str:
    return host.shell(f"basename $(readlink -e /sys/bus/pci/devices/{address}/driver || echo none)")


def attach(host: OneHost, address: str, *options: str) -> Any:
    return json.loads(host.vmcoal("attach", VM, "--gpu", f"pci:{address}", *options, "-o", "json"))


def detach(host: OneHost, address: str) -> None:
    host.vmcoal("detach", VM, "--gpu", f"pci:{address}")


def refused(host: OneHost, address: str, *options: str) -> str:
    """Attach what cannot be attached, and return what is said: the error and its hint."""
    done = host.run("vmcoal", "attach", VM, *(("--gpu", f"pci:{address}") if address else ()), *options, code=None)
    assert done.code not in (0, 70), done.text
    said = done.stderr.decode()
    assert "hint: " in said
    return said


def read(host: OneHost, address: str, name: str) -> str:
    """Return an attribute of a function in the guest."""
    return host.guest(VM, "cat", f"/sys/bus/pci/devices/{address}/{name}")


def bind_console(host: OneHost, on: int) -> None:
    host.shell(f"for one in /sys/class/vtconsole/*; do grep -q frame $one/name && echo {on} >$one/bind; done; true")


def test_a_device_computes_and_copies_guest_memory(host: OneHost) -> None:
    answer = attach(host, EDU)
    assert answer["verified"]
    (gpu,) = answer["attachment"]["gpus"]
    assert (gpu["host"], gpu["engine"], gpu["state"]) == (EDU, "vfio", "attached")
    assert driver(host, EDU) == "vfio-pci"
    found = json.loads(host.guest(VM, "python3", "-c", PROGRAM, gpu["address"]))
    assert found == {"id": 0x010000ED, "alive": True, "factorial": 720, "moved": 2048}
    assert EDU in host.vmcoal("status", VM)
    detach(host, EDU)
    assert driver(host, EDU) == "none"
    assert host.guest(VM, "ls", "/sys/bus/pci/devices").count(gpu["address"]) == 0


def test_a_display_leaves_the_hosts_driver_and_comes_back_to_it(host: OneHost) -> None:
    bind_console(host, 0)
    assert driver(host, DISPLAY) == "bochs-drm"
    gpu = attach(host, DISPLAY)["attachment"]["gpus"][0]
    assert read(host, gpu["address"], "class") == "0x038000"
    first = read(host, gpu["address"], "resource").splitlines()[0].split()
    assert int(first[0], 16), "the BAR of 16 MiB has an address"
    assert int(first[1], 16) - int(first[0], 16) == (16 << 20) - 1
    detach(host, DISPLAY)
    assert driver(host, DISPLAY) == "bochs-drm"


@pytest.mark.soak
def test_the_guest_knows_the_node(host: OneHost) -> None:
    host.lend(LENDER, "--cpus", "1", "--memory", "128M")
    node = json.loads(host.vmcoal("attach", VM, "--from", LENDER, "--cpus", "1", "-o", "json"))["attachment"]["node"]
    gpu = attach(host, EDU, "--node", str(node))["attachment"]["gpus"][0]
    assert read(host, gpu["address"], "numa_node") == str(node)
    assert VM in refused(host, "", "--from", LENDER, "--memory", "128M")
    detach(host, EDU)
    host.vmcoal("detach", VM, "--all")
    host.vmcoal("lend", "stop", "--name", LENDER, code=None)


@pytest.mark.soak
def test_a_killed_controller_gives_the_driver_back(host: OneHost) -> None:
    bind_console(host, 0)
    attach(host, DISPLAY)
    host.shell("pkill -9 -f '[v]mcoal.controller'")
    assert EDU not in host.vmcoal("status", VM)
    detach(host, DISPLAY)
    assert driver(host, DISPLAY) == "bochs-drm"


@pytest.mark.soak
def test_what_qemu_may_not_lock_and_who_has_the_group(host: OneHost) -> None:
    """Another VM, whose QEMU is not privileged to lock what it likes, and cannot have what the first one has."""
    other = "small"
    boot = ("vmcoal", "boot", other, "--accel", "kvm", "--cpus", "1", "--memory", "320M", "--far-nodes", "1")
    host.run("setpriv", "--bounding-set=-ipc_lock", *boot, "--net", "none")
    said = host.run("vmcoal", "attach", other, "--gpu", f"pci:{EDU}", code=3).stderr.decode()
    assert "QEMU may lock 8 MiB of memory, and VFIO locks all that the guest has: 384 MiB" in said
    pid = host.read("status", other)["qemu_pid"]
    limit = next(word for word in said.split() if word.startswith("--memlock="))
    host.run("prlimit", limit, "--pid", str(pid))
    attach(host, EDU)
    said = host.run("vmcoal", "attach", other, "--gpu", f"pci:{EDU}", code=5).stderr.decode()
    assert f"the IOMMU group of {EDU} cannot be opened: another program has it" in said
    detach(host, EDU)
    host.vmcoal("attach", other, "--gpu", f"pci:{EDU}")
    host.vmcoal("shutdown", other, "--force")
    assert driver(host, EDU) == "none", "the end of QEMU gives it back"


def test_refusals(host: OneHost) -> None:
    interface = host.shell(f"basename /sys/bus/pci/devices/{NETWORK}/virtio*/net/*")
    host.shell(f"ip link set {interface} up")
    for address, words in (
        ("0000:09:00.0", "this host has no PCI function 0000:09:00.0"),
        ("0000:00:1f.0", "0000:00:1f.0 is a bridge"),
        (DISK, "is mounted or in use"),
        (NETWORK, f"network interface {interface} is up (ip link set {interface} down)"),
        (RAM, "need a window of 128 MiB, and the PCI ports of node 1 have 32 MiB"),
    ):
        assert words in refused(host, address)
    said = refused(host, LEGACY_EDU)
    assert f"{LEGACY_EDU} shares IOMMU group" in said
    assert f"{NETWORK} (" in said
    assert "driver virtio-pci" in said
    assert "boot --gpu-window 128M" in refused(host, RAM)
    bind_console(host, 1)
    assert "its console is on it, fb" in refused(host, DISPLAY)
    assert [driver(host, one) for one in (DISPLAY, DISK, NETWORK)] == ["bochs-drm", "virtio-pci", "virtio-pci"]


def test_a_display_that_a_program_has_open_and_a_user_without_rights(host: OneHost) -> None:
    bind_console(host, 0)
    card = host.shell(f"basename /sys/bus/pci/devices/{DISPLAY}/drm/card*")
    holder = host.shell(f"sleep 1000 </dev/dri/{card} >/dev/null 2>&1 & echo $!")
    assert f"sleep has /dev/dri/{card} open" in refused(host, DISPLAY)
    host.shell(f"kill {holder}")
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/nonexistent")
    said = host.run(*user, "vmcoal", "doctor", "gpu", code=None).text
    assert f"this user may not give {DISPLAY} another driver" in said
    assert f"echo vfio-pci > /sys/bus/pci/devices/{DISPLAY}/driver_override" in said


@pytest.mark.soak
def test_memory_that_is_paged_and_a_function_exclude_each_other(host: OneHost) -> None:
    host.lend(LENDER, "--memory", "128M")
    host.vmcoal("attach", VM, "--from", LENDER, "--memory", "128M", "--deadline", "240s")
    assert f"{VM} has 128 MiB of memory through the memory engine" in refused(host, EDU)
    host.vmcoal("detach", VM, "--all", "--deadline", "240s")
    host.vmcoal("lend", "stop", "--name", LENDER, code=None)


@pytest.mark.soak
def test_the_display_that_the_host_booted_on_stays(request: pytest.FixtureRequest) -> None:
    with one_host(request, "12", memory=1024, iommu=True, functions=("VGA",)) as plain:
        said = plain.vmcoal("doctor", "gpu", code=None)
        assert f"{EDU} (PCI function 1234:1111) is the display that this host booted on" in said


@pytest.mark.soak
def test_a_host_without_an_iommu_gives_nothing(request: pytest.FixtureRequest) -> None:
    with one_host(request, "12", memory=1280) as plain:
        plain.vmcoal("boot", VM, *BOOT)
        assert "this host has no IOMMU that is on" in refused(plain, SERIAL)
        plain.vmcoal("shutdown", VM, "--force")
