"""Starts controllers: for a boot, and for a VM that lost its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from vmcoal.control.client import call
from vmcoal.control.detached import EndedAtStartError, start_detached
from vmcoal.control.wire import Progress
from vmcoal.controller.api import WaitRequest
from vmcoal.controller.lifecycle import save_spec
from vmcoal.controller.status import tail
from vmcoal.errors import ConflictError, ExecutionError, VmcoalError
from vmcoal.layout import VmFolders, vm_folders
from vmcoal.model.machine import MachineSpec
from vmcoal.model.status import VmStatus

_LISTEN_DEADLINE = 60.0  # an emulated host is slow; one that fails ends at once
_END_DEADLINE, _LOOKS = 5.0, 20


async def start_controller(
    name: str,
    spec: MachineSpec,
    *,
    on_progress: Callable[[Progress], None],
    until: str = "agent",
    deadline: float = 120.0,
) -> VmStatus:
    """Write the spec of VM ``name``, start its controller in the background and wait until the guest answers.

    ``until`` and ``deadline`` as in `WaitRequest`. Raises what the boot failed with; `ConflictError` if it runs.
    """
    folders = vm_folders(name)
    folders.make()
    if folders.holder_socket.exists() or folders.control_socket.exists():
        await _refuse_running(name, folders)
    save_spec(spec, folders)
    await _spawn(folders, "--boot")
    return await _wait(folders, WaitRequest(until=until, deadline=deadline), on_progress)


async def ensure_controller(name: str) -> None:
    """Start a controller for a VM whose own has died; it finishes or undoes what was under way before it answers."""
    folders = vm_folders(name)
    await _spawn(folders)
    await _wait(folders, WaitRequest(until="qemu", deadline=60.0))


async def _wait(
    folders: VmFolders, request: WaitRequest, on_progress: Callable[[Progress], None] | None = None
) -> VmStatus:
    """Wait for the VM. Where it fails, its controller has ended before the error goes on, so that the next command does
    not meet it."""
    try:
        return await asyncio.to_thread(
            call,
            folders.control_socket,
            "wait",
            request,
            result=VmStatus,
            peer=f"the controller of VM {folders.state.name}",
            on_progress=on_progress,
            deadline=request.deadline + 10.0,
        )
    except VmcoalError:
        await _ending(folders)
        raise


async def _ending(folders: VmFolders) -> bool:
    """Return whether there is no controller any more. One that is ending is waited for: its VM has no holder."""

    def ended() -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(2.0)
            try:
                probe.connect(str(folders.control_socket))
                pid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
                process = os.pidfd_open(pid)
            except OSError:
                return True
        try:
            for _ in range(_LOOKS):
                if select.select([process], [], [], _END_DEADLINE / _LOOKS)[0]:
                    return True
                if _answers(folders.holder_socket):
                    return False
            return False
        finally:
            os.close(process)

    return await asyncio.to_thread(ended)


async def _refuse_running(name: str, folders: VmFolders) -> None:
    if await asyncio.to_thread(_answers, folders.holder_socket) or not await _ending(folders):
        raise ConflictError(f"{name} runs already", hint=f"vmcoal status {name}, or boot another: vmcoal boot NAME")


def _answers(holder: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, contextlib.suppress(OSError):
        probe.settimeout(2.0)
        probe.connect(str(holder))
        return True
    return False


async def _spawn(folders: VmFolders, *options: str) -> None:
    """Start ``python -m vmcoal.controller`` detached, and return when its socket listens."""
    name = folders.state.name
    argv = [sys.executable, "-P", "-m", "vmcoal.controller", name, *options]
    try:
        await asyncio.to_thread(
            start_detached, argv, folders.controller_log, what=f"the controller of {name}", deadline=_LISTEN_DEADLINE
        )
    except EndedAtStartError as error:
        raise ExecutionError(
            f"the controller of {name} ended with exit code {error.code}: {tail(folders.controller_log, 1)}",
            hint=f"vmcoal logs {name} controller",
            log=tail(folders.controller_log),
        ) from None
