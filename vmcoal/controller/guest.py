"""Keeps in touch with the guest: its agent through reboots and restarts, and the events of QEMU that concern it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from vmcoal.controller import gpu
from vmcoal.controller.vm import Vm, cpu_names
from vmcoal.errors import VmcoalError
from vmcoal.guest.channel import Agent, wait_agent
from vmcoal.machine.names import AGENT_PORT
from vmcoal.model.machine import CpuMode
from vmcoal_qmp import QmpDisconnectedError

log = logging.getLogger(__name__)

_PATIENCE = 600.0
_RETRY = 2.0
_SOON = 2.0
_ADOPT_DEADLINE = 10.0


class GuestKeeper:
    """Holds ``vm.agent`` up to date. ``ready`` is set while an agent answers."""

    def __init__(self, vm: Vm, ready: asyncio.Event) -> None:
        self._vm = vm
        self._ready = ready
        self._vserport = asyncio.Event()

    async def connect(self, *, deadline: float, prefer: float = 10.0) -> None:
        """Wait for an agent, then settle what only the guest can; raises `UnreachableError`.

        ``prefer`` seconds are granted to vmcoal's own agent after qemu-guest-agent has answered.
        """
        agent = await wait_agent(self._vm.folders, deadline=deadline, vserport=self._vserport, prefer=prefer)
        with contextlib.suppress(VmcoalError):
            await self._park_unlent(agent)
        with contextlib.suppress(VmcoalError):
            await gpu.show_again(self._vm, agent)
        self._vm.agent = agent

    async def keep_agent(self) -> None:
        """Connect to the guest's agent, and again whenever it is lost. Runs until cancelled.

        An agent that is lost soon is waited for a little: a guest that floods its port is hung up on, and must not have
        its next connection at once.
        """
        vm = self._vm
        while True:
            pause, began = _RETRY, time.monotonic()
            try:
                if vm.agent is None:
                    await self.connect(deadline=_PATIENCE)
                assert vm.agent is not None
                self._ready.set()
                log.info("the guest's agent answers")
                log.info("the guest's agent is gone: %s", await vm.agent.wait_lost())
                pause = max(0.0, began + _SOON - time.monotonic())
            except (VmcoalError, OSError) as error:
                log.info("the guest's agent: %s", error)
            except Exception:  # a defect must not be the end of all contact
                log.exception("the guest's agent")
            self._ready.clear()
            await self.drop_agent()
            await asyncio.sleep(pause)

    async def drop_agent(self) -> None:
        """Close the channel to the agent, if there is one."""
        agent, self._vm.agent = self._vm.agent, None
        if agent is not None:
            with contextlib.suppress(VmcoalError, OSError):
                await agent.close()

    async def watch_qemu(self) -> None:
        """Follow QEMU's events, and its monitor when the connection breaks while QEMU lives. Runs until cancelled."""
        vm = self._vm
        while vm.monitor is not None:
            try:
                async with vm.monitor.events("RESET", "VSERPORT_CHANGE", "GUEST_PANICKED") as events:
                    async for event in events:
                        if event.name == "VSERPORT_CHANGE":
                            self._vserport.set()
                            if event.data.get("id") == AGENT_PORT and not event.data.get("open"):
                                # An agent that was killed takes with it what it was doing.
                                log.info("the guest's agent closed its port")
                                await self.drop_agent()
                        elif event.name == "GUEST_PANICKED":
                            log.error("the guest's kernel panicked")
                        elif event.data.get("guest"):
                            # virtio-serial tells nobody that its guest went away in a reset: say hello anew.
                            log.info("the guest reboots")
                            await self.drop_agent()
            except QmpDisconnectedError:
                log.warning("the connection to QEMU's monitor broke")
            try:
                vm.monitor = await vm.launcher.adopt(vm.spec, deadline=_ADOPT_DEADLINE)
            except VmcoalError as error:  # it hangs, or another program has its monitor
                log.warning("QEMU's monitor: %s", error)
                await asyncio.sleep(_RETRY)

    async def _park_unlent(self, agent: Agent) -> None:
        """Take vCPUs offline that are present and not lent: those present from boot, and after a guest's reboot those
        that an earlier detach parked."""
        vm = self._vm
        if vm.spec.cpu_mode is CpuMode.HOTPLUG:
            return
        lent = {(loan.node, loan.core) for loan in vm.book if loan.is_cpu}
        for cpu in (await agent.topology(deadline=10.0)).cpus:
            if cpu.online and cpu.socket and cpu.core is not None and (cpu.socket, cpu.core) not in lent:
                await agent.cpu_set(cpu_names(cpu.socket, [cpu.core]), False, deadline=30.0)
