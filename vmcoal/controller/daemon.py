"""The controller process of one VM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from vmcoal.backends.pager import CHILD as PAGER
from vmcoal.control.server import Client, ControlServer, Handler
from vmcoal.controller import gpu, lifecycle, questions
from vmcoal.controller.api import (
    ExecRequest,
    ExecResult,
    LenderView,
    MoveRequest,
    PingRequest,
    PingResult,
    ShutdownRequest,
    ShutdownResult,
    TuneRequest,
    WaitRequest,
)
from vmcoal.controller.attach import attach
from vmcoal.controller.detach import detach
from vmcoal.controller.guard import Guard
from vmcoal.controller.guest import GuestKeeper
from vmcoal.controller.leave import leave
from vmcoal.controller.leftovers import ended_already
from vmcoal.controller.loans import Loan, moved
from vmcoal.controller.move import move
from vmcoal.controller.reconcile import reconcile
from vmcoal.controller.status import vm_status
from vmcoal.controller.tune import restore, tune
from vmcoal.controller.vm import QEMU, Vm
from vmcoal.errors import UnreachableError, VmcoalError
from vmcoal.fabric.messages import Granted, Revoke
from vmcoal.holding.client import ExitEvent, Holder
from vmcoal.layout import VmFolders
from vmcoal.model.attachment import AttachRequest, DetachRequest, Plan
from vmcoal.model.lease import IllegalTransitionError, LeaseEvent
from vmcoal.model.machine import MachineSpec
from vmcoal.model.status import VmStatus

log = logging.getLogger(__name__)

_HOLDER = 30.0
_TELL_DEADLINE = 2.0
_AT_ONCE = 0.1
"""Seconds for which an operation may have waited for its turn without that being taken from its deadline."""
_GIVE_BACK = 60.0


class Controller:
    """Runs one VM: serves its control socket, keeps its leases, cleans up when it ends."""

    def __init__(self, spec: MachineSpec, folders: VmFolders) -> None:
        self._spec = spec
        self._folders = folders
        self._vm: Vm | None = None
        self._guest: GuestKeeper
        self._guard: Guard
        self._failure: VmcoalError | None = None
        self._ready: dict[str, asyncio.Event] = {"qemu": asyncio.Event(), "agent": asyncio.Event()}
        self._ended = asyncio.Event()
        self._ending = False
        """Whether QEMU ended by itself."""
        self._given_back: tuple[list[str], list[str]] = [], []
        self._stop = asyncio.Event()
        self._told = asyncio.Event()
        """Whoever started the controller knows why it failed."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server = ControlServer(
            folders.control_socket,
            {
                "status": self._status,
                "attach": self._operation("attach", AttachRequest, attach),
                "detach": self._operation("detach", DetachRequest, detach),
                "move": self._operation("move", MoveRequest, move),
                "tune": self._operation("tune", TuneRequest, tune),
                "exec": self._exec,
                "offers": self._offers,
                "ping": self._ping,
                "shutdown": self._shutdown,
                "metrics": self._metrics,
                "wait": self._wait,
            },
            what=f"the controller of {spec.name}",
            look=f"vmcoal status {spec.name}",
            log=f"vmcoal logs {spec.name} controller",
        )

    @property
    def vm(self) -> Vm:
        """The VM; raises the boot's failure, or `UnreachableError` while there is none."""
        if self._failure is not None:
            raise self._failure
        if self._vm is None:
            raise UnreachableError(f"{self._spec.name} is still starting", hint="try again in a moment")
        return self._vm

    async def run(self, *, boot: bool, listening: Callable[[], None]) -> int:
        """Serve until the VM ends or a signal comes. ``listening`` is called once commands are answered.

        With ``boot`` a new QEMU is started; without, the running one is found. Returns the exit code.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        await self._server.start()
        listening()
        try:
            try:
                await (self._boot() if boot else self._adopt())
            except Exception as error:
                failure = lifecycle.start_failure(self._spec.name, error)
                await self._fail(failure, booting=boot)
                return failure.exit_code
            await self._serve()
        finally:
            await self._close()
        return 0

    async def _serve(self) -> None:
        stop = asyncio.create_task(self._stop.wait())
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({stop, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            ended.cancel()

    async def _fail(self, error: VmcoalError, *, booting: bool) -> None:
        """Take away what there is of the VM, tell whoever waits for it why it failed, then end."""
        log.error("%s", error)
        self._failure = error
        try:
            if self._vm is not None and await lifecycle.qemu_is_gone(self._vm, booting=booting):
                released, notes = await lifecycle.clean_up(self._vm)
                error.details |= {"released": released, "notes": notes}
                await lifecycle.end_holder(self._vm)
        finally:
            for event in self._ready.values():
                event.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._told.wait(), _TELL_DEADLINE)

    async def _boot(self) -> None:
        if self._spec.metrics:
            from vmcoal.metrics.http import check_address

            check_address(self._spec.metrics)
        holder = await Holder.start(self._folders, name=f"vm-{self._spec.name}", deadline=_HOLDER)
        self._vm = await self._assemble(holder)
        await lifecycle.clean_up(self._vm)  # what a VM left whose holder was killed, and its controller too
        await holder.watch(self._child_ended)
        await restore(self._vm)
        await lifecycle.launch(self._vm, lambda *args: None)
        self._launched()

    async def _adopt(self) -> None:
        try:
            holder = await Holder.connect(self._folders.holder_socket, deadline=_HOLDER)
        except UnreachableError:
            killed = self._folders.holder_socket.exists()  # whoever ends in order takes it away
            holder = await Holder.start(self._folders, name=f"vm-{self._spec.name}", deadline=_HOLDER)
            self._vm = await self._assemble(holder)
            raise lifecycle.holder_lost(self._vm) if killed else lifecycle.not_running(self._vm) from None
        self._vm = await self._assemble(holder)
        await holder.watch(self._child_ended)
        self._vm.monitor = await self._vm.launcher.adopt(self._spec, deadline=_HOLDER)
        if self._vm.monitor is None:
            raise await lifecycle.qemu_failure(self._vm)
        self._vm.state = "running"
        with contextlib.suppress(VmcoalError):
            await self._guest.connect(deadline=5.0, prefer=1.0)
        async with self._vm.turn("reconcile"):
            await restore(self._vm)
            await reconcile(self._vm)
        for lender in self._vm.book.lenders():
            self._vm.keeper.watch(lender)
        self._launched()

    def _launched(self) -> None:
        self.vm.journal.mark_booted()
        self._ready["qemu"].set()
        self._spawn(self._guest.keep_agent(), "agent")
        # The first look at what the engine needs runs programs: better while the guest boots than during an attach.
        self._spawn(asyncio.to_thread(lambda: self.vm.engine.traits), "memory engine")
        self._spawn(self._guest.watch_qemu(), "QEMU's events")
        self._spawn(self._guard.run(), "guard of paged memory")
        self._spawn(self._holder_ended(), "end of the holder")
        if self._spec.metrics:
            self._spawn(self._serve_metrics(self._spec.metrics), "metrics")

    async def _assemble(self, holder: Holder) -> Vm:
        vm = await lifecycle.assemble(
            self._spec, self._folders, holder, relink=self._relink, revoked=self._revoked, changed=self._changed
        )
        self._guard = Guard(vm)
        self._guest = GuestKeeper(vm, self._ready["agent"])
        return vm

    def _changed(self) -> None:
        self._guard.kick()

    def _spawn(self, work: Awaitable[Any], name: str) -> None:
        task = asyncio.ensure_future(work)
        task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s", task.get_name(), error, exc_info=None if isinstance(error, VmcoalError) else error)

    async def _serve_metrics(self, address: str) -> None:
        from vmcoal.metrics.http import serve_metrics

        await serve_metrics(address, self._exposition)

    async def _exposition(self) -> str:
        return self.vm.metrics.exposition(await vm_status(self.vm, controller_pid=os.getpid()))

    def _child_ended(self, event: ExitEvent) -> None:
        if event.id == QEMU:
            self._spawn(self._qemu_ended(), "end of QEMU")
        else:
            log.warning(
                "%s ended (%s %s)%s", event.id, event.state, event.code, ", restarting" if event.restarting else ""
            )
            lease, _, what = event.id.rpartition(".")
            check = gpu.check_way if what == "gpu" else lifecycle.check_region
            self._spawn(check(self.vm, lease), f"check of {event.id}")
            self._guard.kick()
            if event.id == PAGER and event.restarting:
                self._spawn(restore(self.vm), "what the next pager has to know")

    async def _holder_ended(self) -> None:
        await self.vm.holder.wait_lost()
        await self._qemu_ended()  # QEMU ends with its holder

    async def _qemu_ended(self) -> None:
        """Say how QEMU ended by itself, and give back what it had."""
        vm = self.vm
        if vm.state != "running":
            return
        vm.state, self._ending = "ending", True
        status = await vm.launcher.exit_status()
        if status is None or status.get("with_holder"):
            failure = lifecycle.holder_lost(vm)
        else:
            failure = await lifecycle.qemu_failure(vm)
        clean = failure.details.get("code") == 0 and not failure.details.get("signal")
        log.log(logging.INFO if clean else logging.ERROR, "%s", failure)
        if not clean:
            self._failure = failure
        vm.state = "stopped" if clean else "failed"
        vm.monitor = None
        self._given_back = await lifecycle.clean_up(vm)
        await lifecycle.end_holder(vm)
        for event in self._ready.values():
            event.set()
        self._ended.set()

    async def _relink(self, loan: Loan, granted: Granted, address: str) -> None:
        assert granted.memory is not None
        if granted.memory.port != loan.port:
            where = granted.memory.address or address
            if self.vm.engine.traits.pages:
                pager = self.vm.pager("regions")
                await pager.store(loan.region, loan.number, granted.lease, granted.memory, where, deadline=10.0)
            else:
                await self.vm.engine.relink(granted.lease, granted.memory, where, deadline=10.0)
            if (current := self.vm.book.get(loan.id)) is not None:
                self.vm.book.put(msgspec.structs.replace(current, port=granted.memory.port))

    def _revoked(self, revoke: Revoke, lender: str) -> None:
        loan = self.vm.book.get(revoke.lease)
        if loan is None or (loan.lease.lender, loan.lease.epoch) != (lender, revoke.epoch):
            return
        with contextlib.suppress(IllegalTransitionError):
            self.vm.book.put(moved(loan, LeaseEvent.REVOKE))
        log.warning("%s takes lease %s back within %g s: %s", lender, revoke.lease, revoke.deadline, revoke.reason)
        if not any(task.get_name() == f"revoked by {lender}" for task in self._tasks):
            self._spawn(self._drain(lender, revoke.deadline), f"revoked by {lender}")

    async def _drain(self, lender: str, deadline: float) -> None:
        vm = self.vm
        async with vm.queued_turn(f"give back to {lender}"):
            if vm.book.of(lender):
                try:
                    for line in await leave(vm, lender, deadline, lambda *args: None):
                        log.info("%s", line)
                except VmcoalError as error:
                    vm.keeper.notices[lender] = f"{error}; {error.hint}" if error.hint else str(error)
                    raise
        self._guard.kick()

    def _operation(self, name: str, kind: type[Any], run: Callable[..., Awaitable[Any]]) -> Handler:
        async def handler(params: dict[str, Any], client: Client) -> Any:
            request = msgspec.convert(params, kind)
            vm, began = self.vm, time.monotonic()
            if getattr(request, "dry_run", False):
                return await run(vm, request, client.report)
            try:
                async with vm.turn(name, deadline=request.deadline):
                    waited = time.monotonic() - began
                    if waited > _AT_ONCE:
                        request = msgspec.structs.replace(request, deadline=max(_AT_ONCE, request.deadline - waited))
                    result = await run(vm, request, client.report)
            except VmcoalError as error:
                vm.metrics.operation(name, type(error).__name__)
                raise
            finally:
                self._guard.kick()
            vm.metrics.operation(name, "ok")
            return result

        return handler

    async def _status(self, params: dict[str, Any], client: Client) -> VmStatus:
        return await vm_status(self.vm, controller_pid=os.getpid())

    async def _metrics(self, params: dict[str, Any], client: Client) -> str:
        return await self._exposition()

    async def _wait(self, params: dict[str, Any], client: Client) -> VmStatus:
        request = msgspec.convert(params, WaitRequest)
        spec = self._spec
        client.report(1, 2, f"start QEMU with {spec.accel} ({spec.accel_reason})")
        await lifecycle.wait_for(
            self._ready["qemu"], request.deadline, "QEMU did not start", f"vmcoal logs {spec.name} qemu"
        )
        if self._failure is not None:
            self._told.set()
        vm = self.vm
        if request.until == "agent":
            client.report(2, 2, "wait for the guest")
            await lifecycle.wait_for(
                self._ready["agent"],
                request.deadline,
                "no agent answered in the guest",
                f"the VM runs; see vmcoal logs {spec.name} console; without an agent nothing is verified",
            )
        if self._failure is not None:
            raise self._failure
        return await vm_status(vm, controller_pid=os.getpid())

    async def _exec(self, params: dict[str, Any], client: Client) -> ExecResult:
        return await questions.run(self.vm, msgspec.convert(params, ExecRequest), client)

    async def _offers(self, params: dict[str, Any], client: Client) -> list[LenderView]:
        return await questions.offers(self.vm)

    async def _ping(self, params: dict[str, Any], client: Client) -> PingResult:
        return await questions.ping(self.vm, msgspec.convert(params, PingRequest))

    async def _shutdown(self, params: dict[str, Any], client: Client) -> ShutdownResult | Plan:
        request = msgspec.convert(params, ShutdownRequest)
        if self._ending:
            await lifecycle.wait_for(
                self._ended, _GIVE_BACK, "not everything was given back", f"vmcoal logs {self._spec.name} controller"
            )
            return ended_already(self._spec.name, request, *self._given_back)
        vm = self.vm
        if request.dry_run:
            return lifecycle.plan_power_off(vm, request)
        if request.force:
            result = await lifecycle.power_off(vm, request, client.report)
        else:
            async with vm.turn("shutdown", give_up=True):
                result = await lifecycle.power_off(vm, request, client.report)
        await lifecycle.end_holder(vm)
        asyncio.get_running_loop().call_soon(self._ended.set)
        return result

    async def _close(self) -> None:
        await self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._vm is not None:
            await self._vm.undoing.stop()
            await self._vm.keeper.close()
            await self._guest.drop_agent()
            self._vm.journal.close()
            with contextlib.suppress(VmcoalError, OSError):
                await self._vm.holder.close()
        with contextlib.suppress(OSError):
            self._folders.runtime.rmdir()
