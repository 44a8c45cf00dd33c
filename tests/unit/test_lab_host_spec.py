"""One host of the lab as data and as QEMU's command line."""

from __future__ import annotations

import json

import msgspec
import pytest

from vmcoal.errors import UsageError
from vmcoal.lab.clock import tsc_khz
from vmcoal.lab.host_spec import (
    CHANNELS,
    SOCKETS,
    HostSpec,
    check_host,
    host_argv,
    kernel_arguments,
    port_name,
)
from vmcoal.model.machine import Accel
from vmcoal.model.units import MIB

pytestmark = pytest.mark.unit

FDS = {name: 20 + index for index, name in enumerate(SOCKETS)}


def spec(**changes: object) -> HostSpec:
    plain = HostSpec(
        name="host1",
        qemu="qemu-system-x86_64",
        accel=Accel.TCG,
        flavor="12",
        release="6.1.0-amd64",
        kernel="/i/vmlinuz",
        initrd="/i/initrd",
        append="quiet",
        disks=("/i/base,1", "/i/vmcoal"),
    )
    return msgspec.structs.replace(plain, **changes)


def values(argv: list[str], option: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


def test_a_host_is_emulated_with_svm_where_this_machine_cannot_nest() -> None:
    argv = host_argv(spec(), FDS)
    assert values(argv, "-accel")[0].startswith("tcg,thread=multi")
    assert values(argv, "-cpu")[0].startswith("max")
    assert values(host_argv(spec(accel=Accel.KVM), FDS), "-cpu") == ["host"]
    assert values(host_argv(spec(accel=Accel.KVM), FDS), "-accel") == ["kvm"]


def test_its_disks_are_read_only_and_named_in_json() -> None:
    nodes = [json.loads(text) for text in values(host_argv(spec(), FDS), "-blockdev")]
    assert [node["file"]["filename"] for node in nodes] == ["/i/base,1", "/i/vmcoal"]
    assert all(node["read-only"] for node in nodes)


def test_each_control_channel_has_a_port_and_a_socket() -> None:
    argv = host_argv(spec(), FDS)
    ports = [text for text in values(argv, "-device") if text.startswith("virtserialport")]
    assert len(ports) == CHANNELS
    for number, text in enumerate(ports):
        assert f"chardev=agent{number}" in text
        assert text.endswith(f"name={port_name(number)}")
    sockets = {text.split(",")[1]: text for text in values(argv, "-chardev")}
    for name, number in FDS.items():
        assert f",fd={number},server=on,wait=off" in sockets[f"id={name}"]


def test_the_network_comes_last_as_it_was_given() -> None:
    network = ["-netdev", "dgram,id=n,local.type=fd,local.str=64", "-device", "virtio-net-pci,netdev=n"]
    assert host_argv(spec(), FDS, network)[-4:] == network
    assert not any("netdev" in word for word in host_argv(spec(), FDS))


def test_an_iommu_comes_before_what_it_serves() -> None:
    argv = host_argv(spec(iommu=True, functions=("edu", "bochs-display")), FDS)
    devices = values(argv, "-device")
    assert devices[0].startswith("intel-iommu,intremap=on,caching-mode=on")
    assert [text.split(",")[0] for text in devices[-2:]] == ["edu", "bochs-display"]
    assert "intel_iommu=on" in kernel_arguments(spec(iommu=True))
    assert "intel_iommu" not in kernel_arguments(spec())
    assert not any("iommu" in text for text in values(host_argv(spec(), FDS), "-device"))
    nested = host_argv(spec(iommu=True, accel=Accel.KVM), FDS)
    assert "kernel-irqchip=split" in values(nested, "-machine")[0]


def test_the_kernel_hears_the_hosts_name() -> None:
    assert "hostname=host1" in kernel_arguments(spec()).split()
    assert kernel_arguments(spec()).endswith("quiet")


@pytest.mark.parametrize(
    ("name", "cpus", "memory", "iommu", "functions", "words"),
    [
        ("Host", 2, 1024 * MIB, False, (), "host name"),
        ("host1", 0, 1024 * MIB, False, (), "1 to 64 CPUs"),
        ("host1", 2, 128 * MIB, False, (), "memory of a lab host"),
        ("host1", 2, -5, False, (), "memory of a lab host"),
        ("host1", 2, 1024 * MIB + 1, False, (), "memory of a lab host"),
        ("host1", 2, 1024 * MIB, True, ("gpu",), "'gpu'"),
        ("host1", 2, 1024 * MIB, False, ("edu",), "IOMMU"),
    ],
)
def test_a_host_that_cannot_be_is_refused(
    name: str, cpus: int, memory: int, iommu: bool, functions: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        check_host(name, cpus, memory, iommu, functions)


def test_a_spec_survives_its_file() -> None:
    assert msgspec.json.decode(msgspec.json.encode(spec(iommu=True)), type=HostSpec) == spec(iommu=True)


def test_the_counter_of_this_machine() -> None:
    khz = tsc_khz()
    assert khz == 0 or 500_000 < khz < 10_000_000
    assert "tsc_early_khz=2600000" in kernel_arguments(spec(tsc_khz=2_600_000)).split()
    assert "tsc_early_khz" not in kernel_arguments(spec())
