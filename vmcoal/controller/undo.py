"""How each journaled step is undone, from the plain data it was begun with.

Used when an operation fails and when a new controller finds one that its predecessor did not end. Every undo is
idempotent and asks QEMU, the guest or the lender what is there before it takes it away.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import msgspec

from vmcoal.controller import gpu
from vmcoal.controller.compression import apply_compression
from vmcoal.controller.journal import TUNING
from vmcoal.controller.transaction import Undo
from vmcoal.controller.vm import Vm, cpu_names
from vmcoal.errors import ConflictError, NotFoundError, RefusedError, UnreachableError, VmcoalError
from vmcoal.machine import cpu, memory, virtio_mem
from vmcoal.model.attachment import AttachmentState
from vmcoal.model.guest import MemorySpan
from vmcoal.model.lease import LeaseEvent, ResourceKind, answered
from vmcoal.model.machine import CpuMode
from vmcoal.model.paging import LossPolicy
from vmcoal.model.pci import HostDriver

log = logging.getLogger(__name__)

_DEADLINE = 30.0
_AGENT_DEADLINE = 5.0


def undos(vm: Vm) -> dict[str, Undo]:
    """Return the undo of each step, bound to ``vm``. A step that is missing here needs none."""

    async def lease(data: dict[str, Any]) -> None:
        # A request is idempotent by its token: asking again names the lease, also for one granted to a dead controller.
        granted = vm.granted.pop(data["token"], None)
        try:
            if granted is None:
                session = await vm.keeper.session(data["lender"])
                reply = await session.request(
                    ResourceKind(data["kind"]),
                    data["amount"],
                    committed=data["committed"],
                    token=data["token"],
                    deadline=_DEADLINE,
                )
                granted = reply.lease.id, reply.lease.epoch
            if vm.book.get(granted[0]) is None:
                await vm.keeper.release(data["lender"], *granted)
        except (RefusedError, NotFoundError, ConflictError):
            return  # it was never granted, or is over already
        except UnreachableError as error:
            log.warning(
                "%s: its lease is given back when it answers again, or ends when its time to live is over", error
            )

    async def book(data: dict[str, Any]) -> None:
        loan = vm.book.get(data["lease"])
        if loan is not None and not (loan.copy and loan.problem):
            vm.book.drop(loan.id)

    async def serve(data: dict[str, Any]) -> None:
        await vm.engine.remove(data["lease"], mapped_by=await vm.qemu_pid(), deadline=_DEADLINE)

    async def store(data: dict[str, Any]) -> None:
        try:
            await vm.pager("places").unstore(data["region"], data["number"])
        except UnreachableError:
            return  # without a pager there is no region either
        except ConflictError as error:
            # The other place stopped answering while this one was filled: it is kept, and what follows leaves it alone.
            for loan in vm.book.places(data["region"]):
                if loan.copy and loan.number == data["number"]:
                    kept = f"{loan.lease.lender} alone has pages of {loan.device}: {error}"
                    vm.book.put(msgspec.structs.replace(loan, state=AttachmentState.ATTACHED, problem=kept))
            raise

    async def local_copy(data: dict[str, Any]) -> None:
        await vm.local.stop(data["region"])

    async def unstore(data: dict[str, Any]) -> None:
        loan = vm.book.get(data["lease"])
        if loan is None:
            return
        session = await vm.keeper.session(loan.lease.lender)
        granted = await session.resume(loan.id, loan.lease.epoch)
        if granted.memory is not None:
            where = session.data_address(granted.memory)
            pager = vm.pager("places")
            await pager.store(loan.region, loan.number, granted.lease, granted.memory, where, deadline=_DEADLINE)

    async def home(data: dict[str, Any]) -> None:
        with contextlib.suppress(NotFoundError):
            await vm.pager("home").home(data["region"], False)

    async def cache(data: dict[str, Any]) -> None:
        vm.journal.put(TUNING, data["told"])
        await vm.pager("bounded cache (--cache)").set_cache(data["before"])

    async def compress(data: dict[str, Any]) -> None:
        vm.journal.put(TUNING, data["told"])
        with contextlib.suppress(NotFoundError):
            await apply_compression(vm)

    async def told(data: dict[str, Any]) -> None:
        vm.journal.put(TUNING, data["told"])

    async def loss(data: dict[str, Any]) -> None:
        for loan in vm.book.places(data["region"]):
            vm.book.put(msgspec.structs.replace(loan, on_loss=LossPolicy(data["before"])))

    async def plug_dimm(data: dict[str, Any]) -> None:
        await memory.ensure_unplugged(vm.qmp, data["device"], data["backend"], deadline=_DEADLINE)

    async def online_memory(data: dict[str, Any]) -> None:
        # Only a help: the unplug that follows has the guest's kernel take it offline, whether or not an agent answers.
        if vm.agent is not None:
            with contextlib.suppress(VmcoalError):
                await vm.agent.memory_set(MemorySpan(data["start"], data["size"]), False, deadline=_AGENT_DEADLINE)

    async def offline_memory(data: dict[str, Any]) -> None:
        if vm.agent is not None and await memory.has_device(vm.qmp, data["device"]):
            await vm.agent.memory_set(MemorySpan(data["start"], data["size"]), True, deadline=_DEADLINE)

    async def plug_virtio_mem(data: dict[str, Any]) -> None:
        await virtio_mem.ensure_unplugged(vm.qmp, data["device"], data["backend"], deadline=_DEADLINE)

    async def resize(data: dict[str, Any]) -> None:
        if not await memory.has_device(vm.qmp, data["device"]):
            return
        loan = next((loan for loan in vm.book if loan.device == data["device"]), None)
        # A lender that could not commit the bytes again lends no more than it says.
        size = data["before"] if loan is None else min(data["before"], loan.lease.committed)
        await virtio_mem.resize(vm.qmp, data["device"], size, deadline=_DEADLINE)
        if loan is not None:
            vm.book.resize(loan.region, size)

    async def commit(data: dict[str, Any]) -> None:
        loan = vm.book.get(data["lease"])
        if loan is not None and not loan.leased:
            return
        session = await vm.keeper.session(data["lender"])
        reply = await session.resize(data["lease"], data["epoch"], data["before"])
        if loan is not None:
            loan = vm.book.get(loan.id) or loan
            vm.book.put(msgspec.structs.replace(loan, lease=answered(loan.lease, reply)))

    async def plug_cpu(data: dict[str, Any]) -> None:
        # Under TCG device_del of a vCPU kills QEMU: there it stays, parked, for the next attach.
        if vm.spec.cpu_mode is CpuMode.HOTPLUG:
            await cpu.ensure_unplugged(vm.qmp, data["node"], data["core"], deadline=_DEADLINE)

    async def unplug_cpu(data: dict[str, Any]) -> None:
        if vm.spec.cpu_mode is CpuMode.HOTPLUG and vm.book.get(data.get("lease", "")) is not None:
            await cpu.plug_cpu(vm.qmp, vm.spec, data["node"], data["core"], deadline=_DEADLINE)

    async def online_cpus(data: dict[str, Any]) -> None:
        if vm.agent is not None:
            await vm.agent.cpu_set(cpu_names(data["node"], data["cores"]), False, deadline=_AGENT_DEADLINE)

    async def offline_cpus(data: dict[str, Any]) -> None:
        if vm.agent is not None:
            await vm.agent.cpu_set(cpu_names(data["node"], data["cores"]), True, deadline=_DEADLINE)

    async def drain(data: dict[str, Any]) -> None:
        loan = vm.book.get(data["lease"])
        if loan is None:
            return
        loan = msgspec.structs.replace(loan, state=AttachmentState.ATTACHED)
        vm.book.put(loan)
        if not loan.leased:
            return
        try:
            session = await vm.keeper.session(loan.lease.lender)
            reply = await session.report(loan.id, loan.lease.epoch, LeaseEvent.PLUGGED)
        except (UnreachableError, RefusedError) as error:
            log.warning("%s", error)
        else:
            vm.book.put(msgspec.structs.replace(loan, lease=answered(loan.lease, reply)))

    async def serve_gpu(data: dict[str, Any]) -> None:
        await gpu.end_way(vm, data["lease"])

    async def plug_gpu(data: dict[str, Any]) -> None:
        loan = vm.book.get(data["lease"])
        await gpu.unplug(vm, data["lease"], loan.address if loan else "", deadline=_DEADLINE)

    async def take_pci(data: dict[str, Any]) -> None:
        functions = msgspec.convert(data["functions"], tuple[HostDriver, ...])
        await vm.pci.give_back(functions)

    async def show_gpu(data: dict[str, Any]) -> None:
        await gpu.hide(vm, data["lease"])

    async def hide_gpu(data: dict[str, Any]) -> None:
        if vm.agent is not None:
            await gpu.show_again(vm, vm.agent, data["lease"])

    return {
        "lease": lease,
        "book": book,
        "serve": serve,
        "cache": cache,
        "compress": compress,
        "told": told,
        "loss": loss,
        "store": store,
        "local-copy": local_copy,
        "unstore": unstore,
        "home": home,
        "plug-dimm": plug_dimm,
        "online-memory": online_memory,
        "offline-memory": offline_memory,
        "plug-virtio-mem": plug_virtio_mem,
        "resize": resize,
        "commit": commit,
        "plug-cpu": plug_cpu,
        "unplug-cpu": unplug_cpu,
        "online-cpus": online_cpus,
        "offline-cpus": offline_cpus,
        "drain": drain,
        "serve-gpu": serve_gpu,
        "take-pci": take_pci,
        "plug-gpu": plug_gpu,
        "show-gpu": show_gpu,
        "hide-gpu": hide_gpu,
    }
