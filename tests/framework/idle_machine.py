"""A machine that vmcoal's own argv describes, run by the real QEMU, whose guest is a firmware with nothing to boot.

Nothing in it answers an unplug request, and nothing uses what is plugged.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from vmcoal.layout import VmFolders, vm_folders
from vmcoal.machine.argv import CHANNELS, qemu_argv
from vmcoal.model.machine import Accel, CpuMode, FarNode, KernelBoot, MachineSpec, Net
from vmcoal.model.units import GIB, MIB
from vmcoal_qmp import QmpClient, Transcript

SPEC = MachineSpec(
    name="idle",
    uuid="6f0e1a52-7a4e-4f6e-8f35-0d4c1f2b3a49",
    accel=Accel.TCG,
    cpus=2,
    memory=256 * MIB,
    far_nodes=(FarNode(1, 4, 2 * GIB, 40, 32), FarNode(2, 1, 2 * GIB, 120, 64)),
    dimm_slots=3,
    cpu_mode=CpuMode.PLUG_PARK,
    boot=KernelBoot("/nowhere"),
    net=Net("none"),
)
"""Node 1 has four vCPU places, node 2 one; both have 2 GiB of headroom; three DIMM slots in all."""


def bare_argv(spec: MachineSpec, folders: VmFolders, fds: dict[str, int]) -> list[str]:
    """Return vmcoal's argv for ``spec`` without the kernel."""
    argv = qemu_argv(spec, folders, fds)
    for option in ("-kernel", "-initrd", "-append"):
        if option in argv:
            at = argv.index(option)
            del argv[at : at + 2]
    return argv


@asynccontextmanager
async def idle_machine(binary: str, spec: MachineSpec = SPEC) -> AsyncIterator[QmpClient]:
    """Run ``spec`` on ``binary`` until the context ends; what QEMU writes to stderr goes to the VM's log."""
    folders = vm_folders(spec.name)
    folders.make()
    spec = msgspec.structs.replace(spec, qemu=binary)
    with contextlib.ExitStack() as stack:
        fds = {}
        for channel in CHANNELS:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(folders.runtime / f"{channel}.sock"))
            listener.listen(1)
            fds[channel] = listener.fileno()
        with folders.qemu_log.open("wb") as log:
            process = subprocess.Popen(
                bare_argv(spec, folders, fds),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=list(fds.values()),
                preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),  # PR_SET_PDEATHSIG
            )
    transcript = Transcript(folders.qmp_log)
    try:
        async with await QmpClient.connect(folders.qmp_socket, transcript=transcript, deadline=30) as client:
            yield client
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        transcript.close()
        for channel in CHANNELS:
            (folders.runtime / f"{channel}.sock").unlink(missing_ok=True)


def region_file(path: Path, size: int) -> str:
    """Make a sparse file of ``size`` bytes to be plugged, and return its name."""
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
    return str(path)


__all__ = ["SPEC", "bare_argv", "idle_machine", "region_file"]
