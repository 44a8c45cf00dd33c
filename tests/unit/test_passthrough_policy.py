"""What decides whether a guest can have a function of its host, and how much room its BARs need."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from vmcoal.errors import ConflictError, ExecutionError, NotFoundError, PrerequisiteError, UsageError, VmcoalError
from vmcoal.machine import pci
from vmcoal.model.machine import Accel, FarNode, KernelBoot, MachineSpec
from vmcoal.model.pci import DRIVER, Bar, GuestFunction, PassthroughFacts, PciFunction
from vmcoal.model.units import GIB, MIB
from vmcoal.policy.passthrough import (
    MARGIN,
    check_address,
    check_bars,
    check_window,
    choose_own_node,
    low_window_needed,
    objections,
    remarks,
    to_bind,
    window_needed,
    without_address,
)

pytestmark = pytest.mark.unit

GPU = PciFunction(
    address="0000:01:00.0",
    vendor=0x10DE,
    device=0x2204,
    pci_class=0x030000,
    name="A GPU",
    driver="nvidia",
    group="7",
    resets=("flr",),
)
SOUND = msgspec.structs.replace(
    GPU, address="0000:01:00.1", pci_class=0x040300, name="Its sound", driver="snd_hda_intel"
)
PORT = msgspec.structs.replace(GPU, address="0000:00:01.0", pci_class=0x060400, name="A port", driver="pcieport")
DISK = msgspec.structs.replace(GPU, address="0000:02:00.0", pci_class=0x010802, name="A disk", driver="nvme")
BRIDGE = msgspec.structs.replace(PORT, address="0000:00:1f.0", pci_class=0x060100, name="An ISA bridge", driver="lpc")


def facts(*others: PciFunction, function: PciFunction = GPU, **change: Any) -> PassthroughFacts:
    return msgspec.structs.replace(PassthroughFacts(function=function, group=(function, *others)), **change)


def changed(**change: Any) -> PciFunction:
    return msgspec.structs.replace(GPU, **change)


def bar(size: int, number: int = 1, *, wide: bool = True, io: bool = False) -> Bar:
    return Bar(number=number, size=size, prefetchable=wide, wide=wide, io=io)


def test_a_card_alone_in_its_group_goes() -> None:
    assert objections(facts(SOUND, PORT), 4 * GIB) == []
    assert to_bind(facts(SOUND, PORT)) == (GPU, SOUND), "the kernel gives a group away as a whole"
    assert remarks(facts(SOUND)) == [
        "0000:01:00.1 (Its sound) of the same card and IOMMU group is held for it, and given to nobody"
    ]


def test_what_vfio_has_already_is_not_taken_again() -> None:
    ours, stub = changed(driver=DRIVER), msgspec.structs.replace(SOUND, driver="pci-stub")
    assert to_bind(facts(stub, function=ours)) == ()
    assert to_bind(facts(function=changed(driver=None))) == (changed(driver=None),)
    assert to_bind(facts(function=changed(driver="pci-stub")))[0].driver == "pci-stub", "a stub passes nothing through"


def test_neighbours_on_the_root_bus_are_no_card() -> None:
    function = changed(integrated=True)
    neighbour = msgspec.structs.replace(SOUND, integrated=True)
    assert to_bind(facts(neighbour, function=function)) == (function,)
    assert "shares IOMMU group 7" in str(objections(facts(neighbour, function=function), GIB)[0])


@pytest.mark.parametrize(
    ("given", "kind", "words", "hint"),
    [
        (facts(function=PORT), UsageError, "is a bridge", "lspci"),
        (facts(iommu=False), PrerequisiteError, "no IOMMU that is on", "intel_iommu=on"),
        (facts(function=changed(group=None)), PrerequisiteError, "behind no IOMMU", "another slot"),
        (facts(unsafe=True), PrerequisiteError, "no-IOMMU mode", "unsafe_noiommu"),
        (facts(function=changed(boot_vga=True)), ConflictError, "booted on", "vfio-pci.ids=10de:2204"),
        (facts(function=changed(uses=("disk sda is mounted",))), ConflictError, "uses .*: disk sda", "end that"),
        (facts(msgspec.structs.replace(SOUND, uses=("Xorg plays",))), ConflictError, "01:00.1 .*Xorg", "end that"),
        (facts(DISK), ConflictError, r"shares IOMMU group 7 with 0000:02:00.0 \(A disk, driver nvme\)", "ACS"),
        (facts(BRIDGE), ConflictError, "shares IOMMU group 7 with 0000:00:1f.0", "ACS"),
        (facts(vfio=False), PrerequisiteError, "has no vfio-pci", "modprobe vfio-pci"),
        (facts(writable=False), PrerequisiteError, "another driver", "echo vfio-pci > /sys/.*/driver_override; echo"),
        (facts(function=changed(driver=DRIVER), opens="another program has it"), ConflictError, "opened", "fuser"),
        (facts(memlock=8 * MIB), PrerequisiteError, "lock 8 MiB .*: 4.06 GiB", "prlimit --memlock=4362076160"),
    ],
)
def test_objections(given: PassthroughFacts, kind: type[VmcoalError], words: str, hint: str) -> None:
    (error,) = objections(given, 4 * GIB)
    assert type(error) is kind
    assert re.search(words, error.message), error.message
    assert re.search(hint, error.hint or ""), error.hint


def test_neighbours_that_keep_no_group_from_a_guest() -> None:
    free = [msgspec.structs.replace(DISK, driver=driver) for driver in (None, DRIVER, "pci-stub")]
    assert objections(facts(PORT, *free), GIB) == []
    assert to_bind(facts(PORT, *free)) == (GPU,)


def test_a_display_that_the_host_never_had_may_be_the_first_one() -> None:
    assert objections(facts(function=changed(boot_vga=True, driver=DRIVER)), GIB) == []
    assert objections(facts(function=changed(driver=DRIVER), writable=False), GIB) == [], "nothing needs to be written"


def test_locked_memory_up_to_the_limit() -> None:
    assert objections(facts(memlock=GIB + MARGIN), GIB) == []
    assert len(objections(facts(memlock=GIB + MARGIN - 1), GIB)) == 1


def test_a_function_that_cannot_be_reset_is_told() -> None:
    assert objections(facts(function=changed(resets=())), GIB) == []
    assert "no way to reset" in remarks(facts(function=changed(resets=())))[0]


@pytest.mark.parametrize(
    ("sizes", "window"),
    [
        ((), 0),
        ((MIB,), 2 * MIB),
        ((256 * MIB, 32 * MIB), 512 * MIB),
        ((256 * MIB, 256 * MIB), GIB),
        ((32 * GIB, 32 * MIB), 64 * GIB),
        ((128 * GIB, 32 * MIB), 256 * GIB),
    ],
)
def test_windows(sizes: tuple[int, ...], window: int) -> None:
    assert window_needed([bar(size) for size in sizes]) == window


def test_only_wide_prefetchable_bars_are_in_the_large_window() -> None:
    bars = [bar(16 * MIB, 0, wide=False), bar(256 * MIB), bar(4096, 2, wide=False), bar(128, 5, wide=False, io=True)]
    assert window_needed(bars) == 512 * MIB
    assert low_window_needed(bars) == 32 * MIB
    assert low_window_needed([bars[1], bars[3]]) == 0


def test_a_window_that_is_too_small_says_how_to_get_a_larger_one() -> None:
    far = FarNode(1, 2, GIB, 40, 32)
    check_window(changed(bars=(bar(256 * MIB),)), far, 64 * MIB)
    with pytest.raises(ConflictError, match="need a window of 64 GiB, and the PCI ports of node 1 have 512 MiB") as at:
        check_window(changed(bars=(bar(32 * GIB),)), far, 64 * MIB)
    assert at.value.hint is not None
    assert "--gpu-window 64G" in at.value.hint
    with pytest.raises(ConflictError, match="needs 128 MiB below 4 GiB"):
        check_window(changed(bars=(bar(128 * MIB, 0, wide=False),)), far, 64 * MIB)


def test_bars_without_an_address() -> None:
    bars = (bar(16 * MIB, 0, wide=False), bar(256 * MIB), bar(128, 5, wide=False, io=True))
    good = ((0xFE000000, 16 * MIB), (1 << 32, 256 * MIB), (0, 0), (0, 0), (0, 0), (0, 0))
    seen = GuestFunction(address="0000:21:00.0", vendor=1, device=1, node=1, bars=good)
    assert without_address(bars, seen) == []
    for wrong in (((0, 16 * MIB), *good[1:]), ((good[0][0], 4096), *good[1:]), ()):
        other = msgspec.structs.replace(seen, bars=wrong)
        assert without_address(bars, other)[0] == bars[0]


def test_addresses() -> None:
    assert check_address("01:00.0") == check_address("0000:01:00.0") == "0000:01:00.0"
    assert check_address("000A:0B:1F.7") == "000a:0b:1f.7"
    for wrong in ("", "1:0.0", "0000:01:00", "0000:01:20.0", "0000:01:00.8", "../x:01:00.0", "0:0:0:0.0", "01:00.0 "):
        with pytest.raises(UsageError, match="is not a PCI address"):
            check_address(wrong)


def test_the_node_of_a_function() -> None:
    far = tuple(FarNode(n, 2, GIB, 40 * n, 32 * n) for n in (1, 2, 3))
    spec = MachineSpec(name="web", uuid="u", accel=Accel.KVM, memory=GIB, far_nodes=far, boot=KernelBoot("/k"))
    free = {1: 2, 2: 2, 3: 2}
    assert choose_own_node(spec, {}, free, None).node == 1, "the nearest"
    assert choose_own_node(spec, {1: "attic"}, free, None).node == 2
    assert choose_own_node(spec, {2: "home"}, free, None).node == 2, "beside the last one"
    assert choose_own_node(spec, {1: "home"}, {**free, 1: 0}, None).node == 2
    assert choose_own_node(spec, {}, free, 3).node == 3
    with pytest.raises(UsageError, match="no far node 4"):
        choose_own_node(spec, {}, free, 4)
    with pytest.raises(ConflictError, match="node 2 is bound to attic"):
        choose_own_node(spec, {2: "attic"}, free, 2)
    with pytest.raises(ConflictError, match="2 PCI ports of node 1 are taken"):
        choose_own_node(spec, {}, {**free, 1: 0}, 1)
    with pytest.raises(ConflictError, match="without far nodes"):
        choose_own_node(msgspec.structs.replace(spec, far_nodes=()), {}, {}, None)


class QueryPci:
    """A monitor that knows one command: a function behind a root port, of which one BAR is not mapped."""

    async def execute(self, command: str, arguments: Any = None, *, deadline: float = 10.0) -> Any:
        assert command == "query-pci"
        known = {"slot": 0, "function": 0, "class_info": {"class": 0x0380}, "id": {"device": 1, "vendor": 2}}
        regions = [
            {"bar": 1, "type": "memory", "address": 0xC0000000, "size": 4096, "prefetch": False, "mem_type_64": False},
            {"bar": 4, "type": "memory", "address": -1, "size": 16384, "prefetch": True, "mem_type_64": True},
        ]
        function = {"bus": 33, "qdev_id": "gpu-l1", "regions": regions, **known}
        bus = {"number": 32, "secondary": 33, "subordinate": 33}
        port = {"bus": 32, "qdev_id": "port", "pci_bridge": {"bus": bus, "devices": [function]}, **known}
        return [{"bus": 0, "devices": []}, {"bus": 32, "devices": [port]}]


async def test_a_bar_that_the_guest_left_out_is_named() -> None:
    monitor: Any = QueryPci()
    bars = await pci.bars(monitor, "gpu-l1")
    assert [(bar.number, bar.size, bar.wide) for bar in bars] == [(1, 4096, False), (4, 16384, True)]
    with pytest.raises(NotFoundError, match="QEMU lists no PCI device gpu-l2"):
        await pci.bars(monitor, "gpu-l2")
    far = FarNode(node=1, cpus=1, memory=GIB, distance=40, bus_nr=32)
    starts = [(0, 0), (0xC0000000, 4096), (0, 0), (0, 0), (0, 0), (0, 0)]
    seen = GuestFunction(address="0000:21:00.0", vendor=2, device=1, node=1, bars=tuple(starts))
    with pytest.raises(ExecutionError, match=r"the guest gave BAR 4 \(16 KiB\) of gpu-l1 no address"):
        check_bars("gpu-l1", bars, seen, far)
    starts[4] = (0x2000000000, 16384)
    check_bars("gpu-l1", bars, GuestFunction(address="", vendor=2, device=1, node=1, bars=tuple(starts)), far)
