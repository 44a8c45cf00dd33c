"""The borrower's end of a lent GPU: a process that carries bytes between the lender and the guest's port.

It sees bytes only: the calls are understood by the OpenCL client in the guest and by the server on the lender. It ends
when either side does, and is not started again: the lender has freed what the programs had by then.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

from vmcoal.backends import nbd
from vmcoal.errors import DeadlineError, ExecutionError, NotFoundError, RefusedError, UnreachableError
from vmcoal.holding.binaries import find_binary
from vmcoal.holding.children import ChildSpec
from vmcoal.holding.client import Holder
from vmcoal.layout import VmFolders
from vmcoal.model.gpu import GpuServer

NAME = "opencl"
_LOG_LIMIT = 64 * 1024
_METER, _METER_VERSION = struct.Struct("<30Q"), 1


def child_id(lease: str) -> str:
    """Return the holder's id of the process of a GPU lease."""
    return f"{lease}.gpu"


def pump_argv(address: str, port: int, psk_file: Path, socket: Path, meter: Path) -> list[str]:
    """Return the command line of the process; ``socket`` is the host side of the guest's port (QEMU listens), ``meter``
    the file that it counts in."""
    return [*_to_lender("pump", address, port, psk_file), "--socket", str(socket), "--meter", str(meter)]


def _to_lender(mode: str, address: str, port: int, psk_file: Path) -> list[str]:
    return [str(find_binary("vmcoal-gpu")), mode, "--key", str(psk_file), "--address", address, "--port", str(port)]


def psk_file(folders: VmFolders, lease: str) -> Path:
    """Return the file of a GPU lease's key."""
    return folders.runtime / f"{nbd.check_lease(lease)}.psk"


async def start(
    holder: Holder, folders: VmFolders, lease: str, server: GpuServer, address: str, *, host: str, deadline: float
) -> None:
    """Check that the lender takes the lease's key, then start the process.

    Raises `UnreachableError`, `RefusedError` or `ExecutionError` with what the lender's end said.
    """
    key = psk_file(folders, lease)
    nbd.write_psk(key, server.psk_identity, server.psk)
    try:
        code, _, said = await nbd.run(_to_lender("check", address, server.port, key), deadline=deadline)
    except DeadlineError as error:
        raise UnreachableError(
            "the lender's GPU port does not answer", host=host, hint="check the link and the lender's firewall"
        ) from error
    if code:
        text = said.splitlines()[-1].removeprefix("vmcoal-gpu: ") if said else f"exit code {code}"
        if "accept the key" in text:
            raise RefusedError("the GPU server does not accept the lease's key", host=host, stderr=text)
        if "cannot be reached" in text:
            raise UnreachableError(
                f"nothing answers on the lender's GPU port: {text}",
                host=host,
                hint="check the lender's firewall: the data port is beside the control port",
            )
        raise ExecutionError(f"the lender's GPU cannot be used: {text}", host=host)
    log = folders.state / f"{child_id(lease)}.log"
    await holder.spawn(
        ChildSpec(
            id=child_id(lease),
            argv=pump_argv(address, server.port, key, folders.gpu_socket(lease), folders.gpu_meter(lease)),
            env=nbd.child_env(),
            stdout=log,
            stderr=log,
            log_limit=_LOG_LIMIT,
        )
    )


async def stop(holder: Holder, folders: VmFolders, lease: str) -> None:
    """End the process of a lease and remove its key. Idempotent."""
    with contextlib.suppress(NotFoundError, UnreachableError):
        await holder.stop(child_id(lease), 1.0)
        await holder.forget(child_id(lease))
    nbd.remove_file(psk_file(folders, lease))
    nbd.remove_file(folders.gpu_socket(lease))  # QEMU removes it where it still can
    nbd.remove_file(folders.gpu_meter(lease))
    for suffix in ("log", "log.1"):
        nbd.remove_file(folders.state / f"{child_id(lease)}.{suffix}")


def counted(folders: VmFolders, lease: str) -> tuple[int, ...]:
    """Return bytes to and from the lender, calls, failed calls, microseconds busy, and the buckets of latency; nothing
    where the process has not begun to count (dataplane/gpu/meter.h)."""
    try:
        page = folders.gpu_meter(lease).read_bytes()
        version, *numbers = _METER.unpack(page)
    except (OSError, struct.error):
        return ()
    return tuple(numbers) if version == _METER_VERSION else ()


async def runs(holder: Holder, lease: str) -> bool:
    """Return whether the process of a lease runs."""
    return any(child.id == child_id(lease) and child.live for child in await holder.list())


def last_words(folders: VmFolders, lease: str) -> str:
    """Return why the process of a lease ended, as it said."""
    try:
        text = (folders.state / f"{child_id(lease)}.log").read_text(errors="replace").strip()
    except OSError:
        text = ""
    return text.splitlines()[-1].removeprefix("vmcoal-gpu: ")[:200] if text else "it said nothing"
