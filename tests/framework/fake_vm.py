"""A whole VM in memory for tests of the controller: QEMU, guest, holder, memory engine and lender are fakes.

What is plugged into the fake QEMU appears in the fake guest, as in a real one. `Fuse.arm` makes the n-th call to any of
them fail, or ends the controller there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from framework.fake_guest import BLOCK, FakeAgent, FakeGuest
from framework.fake_machine import FakeGuest as UnplugPolicy
from framework.fake_monitor import FakeMonitor
from framework.fake_pci import PciTree
from vmcoal.backends.base import EngineTraits, MemoryRegion
from vmcoal.controller.journal import Journal
from vmcoal.controller.keeper import Keeper
from vmcoal.controller.loans import LoanBook
from vmcoal.controller.vm import Vm
from vmcoal.errors import RefusedError, UnreachableError
from vmcoal.fabric.identity import LenderRecord
from vmcoal.fabric.messages import Granted
from vmcoal.guest.pci import LOOK
from vmcoal.layout import VmFolders
from vmcoal.lending.book import LeaseBook
from vmcoal.lending.entry import Capacity
from vmcoal.metrics.controller import ControllerMetrics
from vmcoal.model.guest import CommandEnd, GuestCommand
from vmcoal.model.lease import Lease, LeaseTerms, MemoryServer, Offer, ResourceKind
from vmcoal.model.link import LinkSample
from vmcoal.model.machine import Accel, CpuMode, FarNode, KernelBoot, MachineSpec
from vmcoal.model.pci import GuestFunction
from vmcoal.model.units import GIB

ALL = (ResourceKind.MEMORY, ResourceKind.CPU)


class Killed(BaseException):
    """The controller was killed: nothing of it runs any more, not even its undo."""


class Fuse:
    """Counts the calls to the outside world, and breaks one of them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._break_at: int | None = None
        self._kill = False
        self.dead = False
        self.broken = ""
        """The call that was made to fail, or that the controller ended at."""

    def arm(self, number: int, *, kill: bool) -> None:
        self.calls.clear()
        self._break_at, self._kill = number, kill

    def disarm(self) -> None:
        self._break_at, self.dead = None, False

    async def blow(self, what: str) -> None:
        """Called before each call to the outside."""
        await asyncio.sleep(0)
        if self.dead:
            raise Killed
        self.calls.append(what)
        if self._break_at == len(self.calls):
            self.broken = what
            if self._kill:
                self.dead = True
                raise Killed
            raise UnreachableError(f"broken at {what}")


class LinkedMonitor(FakeMonitor):
    """A fake QEMU that counts its commands."""

    def __init__(self, fuse: Fuse, **machine: Any) -> None:
        super().__init__(**machine)
        self._fuse = fuse

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, deadline: float = 10.0) -> Any:
        if not command.startswith(("query-", "qom-list", "qom-get")):
            await self._fuse.blow(command)
        return await super().execute(command, arguments, deadline=deadline)


class LinkedAgent(FakeAgent):
    """A fake guest that sees what is plugged into a fake QEMU."""

    def __init__(self, guest: FakeGuest, qemu: FakeMonitor, fuse: Fuse, *, fixed_cpus: bool) -> None:
        super().__init__(guest)
        self._qemu = qemu
        self._fuse = fuse
        self._fixed_cpus = fixed_cpus
        self.functions: dict[str, GuestFunction] = {}
        """What the guest makes of functions of the host, by their address there."""

    async def _begin(self, name: str, arguments: Any, deadline: float | None) -> None:
        if name in ("cpu_set", "memory_set"):
            await self._fuse.blow(name)
        self.sync()
        await super()._begin(name, arguments, deadline)

    async def exec(self, command: GuestCommand, *, on_output: Any, **options: Any) -> CommandEnd:
        """Knows what `vmcoal.guest.pci` runs, beside what every fake guest knows."""
        if command.argv[:4] != ("python3", "-IS", "-c", LOOK):
            return await super().exec(command, on_output=on_output, **options)
        await self._fuse.blow("look")
        for device in self._qemu.devices.values():
            if device.driver == "vfio-pci" and self._qemu.port_slot(device.place[0]) == int(command.argv[4]):
                await on_output(1, msgspec.json.encode(self.functions[device.host]))
                return CommandEnd(code=0)
        await on_output(1, b'{"error": "its kernel shows nothing there"}')
        return CommandEnd(code=1)

    def sync(self) -> None:
        guest = self.guest
        blocks: dict[int, int] = {}
        places: set[tuple[int, int]] = set()
        virtio: set[int] = set()
        for device in self._qemu.devices.values():
            if device.memdev:
                numbers = range(device.addr // BLOCK, -(-(device.addr + device.size) // BLOCK))
                blocks |= dict.fromkeys(numbers, device.node)
                if device.driver != "pc-dimm":
                    virtio |= set(numbers)
            elif device.driver.endswith("-cpu"):
                places.add(device.place)
        for number in [n for n, block in guest.blocks.items() if block.node and n not in blocks]:
            guest.remove_block(number)
        for number, node in blocks.items():
            if number not in guest.blocks:
                state = ("online", "Movable") if number in virtio else ("offline", "")
                guest.add_block(number, node, *state)
        if self._fixed_cpus:
            return
        known = {(cpu.socket, cpu.core): number for number, cpu in guest.cpus.items()}
        for place, number in known.items():
            if place[0] and place not in places:
                guest.remove_cpu(number)
        for socket, core in sorted(places - known.keys()):
            guest.add_cpu(next(n for n in itertools.count() if n not in guest.cpus), socket, core)


class FakeEngine:
    """A memory engine whose regions are plain RAM of the fake QEMU."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse
        self.regions: set[str] = set()
        self.traits = EngineTraits(name="fake", summary="for tests")

    def _region(self, lease: str, size: int) -> MemoryRegion:
        return MemoryRegion(
            lease=lease, size=size, backend="memory-backend-ram", props={"size": size, "share": True}, children=()
        )

    def plan(self, lease: str, size: int) -> tuple[MemoryRegion, list[list[str]]]:
        return self._region(lease, size), [["server", lease]]

    async def prepare(self, lease: Lease, server: MemoryServer, address: str, *, deadline: float) -> MemoryRegion:
        await self._fuse.blow("prepare")
        self.regions.add(lease.id)
        return self._region(lease.id, lease.amount)

    async def relink(self, lease: Lease, server: MemoryServer, address: str, *, deadline: float) -> None:
        assert lease.id in self.regions

    async def remove(self, lease: str, *, mapped_by: int | None, deadline: float) -> None:
        await self._fuse.blow("remove")
        self.regions.discard(lease)

    async def health(self, lease: str) -> str | None:
        return None if lease in self.regions else "it is gone"


class FakeLender:
    """A lender's book without a daemon: what it holds is what a real one would hold."""

    def __init__(self, name: str, *, rtt: float = 50e-6, cpus: int = 4, memory: int = 4 * GIB) -> None:
        numbers = itertools.count(1)
        self.name = name
        self.rtt = rtt
        self.same_host = True
        self.reachable = True
        self.lies: Callable[[str, Lease], Lease] = lambda call, lease: lease
        """Changes the lease of an answer to the call ``request``, ``report`` or ``resize``."""
        self.book = LeaseBook(name, Capacity(cpus, memory), new_id=lambda: f"{name}{next(numbers):04d}")

    def held(self) -> list[Lease]:
        return [entry.lease for entry in self.book.live()]


class FakeSession:
    """A session with a `FakeLender`; the methods of `vmcoal.fabric.session.LenderSession` that the controller uses."""

    def __init__(self, lender: FakeLender, vm: str, fuse: Fuse) -> None:
        self._lender = lender
        self._vm = vm
        self._fuse = fuse
        self.name = lender.name
        self.grants = ALL
        self.peer_address = "127.0.0.1"
        self.same_host = lender.same_host
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def _call(self, what: str) -> None:
        await self._fuse.blow(what)
        if not self._lender.reachable:
            raise UnreachableError(f"{self.name} does not answer", host=self.name)

    async def offer(self) -> Offer:
        return self._lender.book.offer(same_host=self.same_host)

    async def sample_link(self, count: int) -> LinkSample:
        if not self._lender.reachable:
            raise UnreachableError(f"{self.name} does not answer", host=self.name)
        return LinkSample((self._lender.rtt,) * count, self._lender.rtt)

    async def request(
        self,
        kind: ResourceKind,
        amount: int,
        *,
        committed: int | None = None,
        terms: LeaseTerms | None = None,
        token: str,
        deadline: float = 10.0,
    ) -> Granted:
        await self._call("request")
        book, now, wish = self._lender.book, time.monotonic(), terms or LeaseTerms()
        entry = book.request(
            now,
            token=token,
            borrower="me",
            vm=self._vm,
            kind=kind,
            amount=amount,
            committed=amount if committed is None else committed,
            ttl=wish.ttl,
            grace=wish.grace,
            grants=frozenset(ALL),
            same_host=self.same_host,
        )
        if entry.lease.state == "requested":
            entry = book.granted(now, entry.lease.id, port=10809 if kind is ResourceKind.MEMORY else 0)
        server = MemoryServer(port=10809, export="e", psk_identity="i", psk="00") if entry.port else None
        return Granted(id=1, lease=self._lender.lies("request", entry.lease), memory=server)

    async def report(self, lease: str, epoch: int, event: str, *, deadline: float = 10.0) -> Lease:
        await self._call(f"report {event}")
        return self._lender.lies("report", self._lender.book.report(time.monotonic(), lease, epoch, "me", event).lease)

    async def resume(self, lease: str, epoch: int, *, deadline: float = 10.0) -> Granted:
        await self._call("resume")
        entry = self._lender.book.entry(lease)
        server = MemoryServer(port=entry.port, export="e", psk_identity="i", psk="00") if entry.port else None
        return Granted(id=1, lease=entry.lease, memory=server)

    async def resize(self, lease: str, epoch: int, committed: int, *, deadline: float = 10.0) -> Lease:
        await self._call("resize")
        now = time.monotonic()
        return self._lender.lies("resize", self._lender.book.resize(now, lease, epoch, "me", committed).lease)

    async def release(self, lease: str, epoch: int, *, deadline: float = 10.0) -> Lease:
        await self._call("release")
        entry = self._lender.book.release(time.monotonic(), lease, epoch, "me")
        self._lender.book.reclaimed(lease)
        return entry.lease

    async def renew(self, leases: Iterable[tuple[str, int]]) -> tuple[Lease, ...]:
        return self._lender.book.renew(time.monotonic(), "me", self._vm, leases)

    async def events(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None

    async def wait_closed(self) -> None:
        await asyncio.Event().wait()

    def data_address(self, server: MemoryServer) -> str:
        return self.peer_address

    async def close(self, *, deadline: float = 3.0) -> None:
        pass


class FakeKeeper(Keeper):
    """A keeper whose sessions, of a ``kind``, lead to fake lenders, without heartbeats."""

    kind: type[FakeSession] = FakeSession

    def __init__(self, vm: str, book: LoanBook, lenders: dict[str, FakeLender], fuse: Fuse) -> None:
        async def relink(*args: Any) -> None:
            pass

        super().__init__(vm, book, relink=relink, revoked=lambda *args: None, changed=lambda: None)
        self._lenders = lenders
        self._fuse = fuse
        self.owed: list[tuple[str, str, int]] = []

    def owe(self, lender: str, lease: str, epoch: int) -> None:
        self.owed.append((lender, lease, epoch))

    def records(self) -> list[LenderRecord]:
        return [LenderRecord(name=name, host="127.0.0.1", port=1, host_key="", grants=ALL) for name in self._lenders]

    def record(self, lender: str | None) -> LenderRecord:
        return super().record(lender or next(iter(self._lenders)))

    async def session(self, lender: str, *, deadline: float = 10.0) -> Any:
        if not self._lenders[lender].reachable:
            raise UnreachableError(f"{lender} does not answer", host=lender)
        return self.kind(self._lenders[lender], self._vm, self._fuse)

    def watch(self, lender: str) -> None:
        pass


class FakeLocalCopies:
    """Copies on a disk that is not there."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse
        self.made: set[str] = set()
        self.full = False

    def check_room(self, size: int) -> None:
        if self.full:
            raise RefusedError("the disk is full")

    async def start(self, region: str, size: int) -> MemoryServer:
        await self._fuse.blow("local copy")
        self.made.add(region)
        return MemoryServer(port=10810, export="e", psk_identity="i", psk="00")

    async def stop(self, region: str) -> None:
        await self._fuse.blow("end of local copy")
        self.made.discard(region)

    async def sweep(self, regions: Collection[str]) -> None:
        self.made &= set(regions)


class FakeHolder:
    """The one question the controller asks of it here."""

    pid = 1

    async def list(self) -> list[Any]:
        return []


def spec(mode: CpuMode = CpuMode.PLUG_PARK, *, far: int = 3) -> MachineSpec:
    """A machine of 256 MiB with ``far`` far nodes at distances 40, 80, 120, …"""
    nodes = tuple(FarNode(node=n, cpus=2, memory=2 * GIB, distance=40 * n, bus_nr=32 * n) for n in range(1, far + 1))
    accel = Accel.KVM if mode is CpuMode.HOTPLUG else Accel.TCG
    boot = KernelBoot("/kernel")
    return MachineSpec(name="web", uuid="u", accel=accel, memory=256 << 20, far_nodes=nodes, cpu_mode=mode, boot=boot)


class FakeVm:
    """The outside world of one VM, and controllers that come and go."""

    def __init__(self, folder: Path, *, mode: CpuMode = CpuMode.PLUG_PARK) -> None:
        self.fuse = Fuse()
        self.spec = spec(mode)
        self.folder = folder
        self.lenders = {"attic": FakeLender("attic")}
        accel = "kvm" if mode is CpuMode.HOTPLUG else "tcg"
        self.qemu = LinkedMonitor(self.fuse, accel=accel, guest=UnplugPolicy(booted=True), slots=32)
        self.guest = FakeGuest.booted(memory_blocks=2)
        self.engine: FakeEngine = FakeEngine(self.fuse)
        self.local = FakeLocalCopies(self.fuse)
        self.tree = PciTree(folder / "pci")
        self.pci = self.tree.bus(self.fuse.blow)
        if mode is CpuMode.PARKED:
            for far in self.spec.far_nodes:
                for core in range(far.cpus):
                    self.guest.add_cpu(100 * far.node + core, far.node, core)
        self.functions: dict[str, GuestFunction] = {}
        self.told: list[str] = []
        self._journals: list[Journal] = []

    def controller(self) -> Vm:
        """Return a new controller of the VM, as after a start."""
        journal = Journal(self.folder / "journal.sqlite")
        self._journals.append(journal)
        book = LoanBook(journal)
        return Vm(
            spec=self.spec,
            folders=VmFolders(self.folder, self.folder),
            journal=journal,
            book=book,
            holder=FakeHolder(),  # type: ignore[arg-type]
            launcher=None,  # type: ignore[arg-type]
            engine=self.engine,
            local=self.local,  # type: ignore[arg-type]
            keeper=FakeKeeper("web", book, self.lenders, self.fuse),
            pci=self.pci,
            metrics=ControllerMetrics("web"),
            monitor=self.qemu,
            agent=self._agent(),
            state="running",
        )

    def _agent(self) -> LinkedAgent:
        # In parked mode the far CPUs are the guest's from boot; only memory comes and goes.
        agent = LinkedAgent(self.guest, self.qemu, self.fuse, fixed_cpus=self.spec.cpu_mode is CpuMode.PARKED)
        agent.functions = self.functions
        return agent

    def report(self, step: int, steps: int, text: str, fraction: float | None, detail: str | None) -> None:
        self.told.append(f"{step}/{steps} {text}")

    def close(self) -> None:
        for journal in self._journals:
            journal.close()

    def leftovers(self) -> list[str]:
        """Return what an undone or detached VM still holds, on either side. Parked vCPUs may stay plugged under TCG."""
        self._agent().sync()
        found = [f"lease {lease.id} at {x.name}" for x in self.lenders.values() for lease in x.held()]
        found += [f"region {region}" for region in self.engine.regions]
        found += [f"local copy {region}" for region in self.local.made]
        found += [f"backend {name}" for name in self.qemu.objects if name != "near"]
        cpus_may_stay = self.spec.cpu_mode is not CpuMode.HOTPLUG
        found += [
            f"device {name}"
            for name, device in self.qemu.devices.items()
            if not (cpus_may_stay and device.driver.endswith("-cpu"))
        ]
        found += [f"CPU {cpu.number} online" for cpu in self.guest.cpus.values() if cpu.socket and cpu.online]
        found += [f"block {block.number}" for block in self.guest.blocks.values() if block.node]
        return found


@contextlib.contextmanager
def fake_vm(folder: Path, mode: CpuMode = CpuMode.PLUG_PARK) -> Iterator[FakeVm]:
    """Make a `FakeVm` with its journal in ``folder``."""
    vm = FakeVm(folder, mode=mode)
    try:
        yield vm
    finally:
        vm.close()
