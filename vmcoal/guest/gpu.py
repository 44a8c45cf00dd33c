"""Makes a lent GPU usable in the guest: brings the client libraries and the relay there, starts and ends the relay.

Everything goes through the agent's `exec`, so that an agent needs no update for it. What runs in the guest is
guest-agent/vmcoal_gpu.py.
"""

from __future__ import annotations

import asyncio
import io
import tarfile

import msgspec

from vmcoal.errors import UNREADABLE, DeadlineError, ExecutionError, PrerequisiteError, RefusedError
from vmcoal.guest.agent_link import guest_words
from vmcoal.guest.channel import Agent
from vmcoal.guest.images import guest_files
from vmcoal.holding.binaries import find_binary
from vmcoal.model.gpu import GpuDevice
from vmcoal.model.guest import CommandInput, GuestCommand

FOLDER = "/var/lib/vmcoal/gpu"
"""Where the clients and the relay are in the guest; /run may forbid to execute."""

LIBRARY, CUDA_LIBRARY, CARRIER, RELAY = "libvmcoal-pocl.so", "libvmcoal-cuda.so", "vmcoal-gpu-relay", "vmcoal_gpu.py"

_OUTPUT_MAX = 64 * 1024
# Each file is renamed into place: programs of another attached GPU may have the old one mapped.
_UNPACK = """
import os, sys, tarfile
folder = sys.argv[1]
os.makedirs(folder, 0o755, exist_ok=True)
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
    for member in archive:
        path = os.path.join(folder, os.path.basename(member.name))
        with open(path + ".new", "wb") as file:
            file.write(archive.extractfile(member).read())
        os.chmod(path + ".new", 0o755)
        os.rename(path + ".new", path)
os.execv(sys.executable, [sys.executable, "-IS", os.path.join(folder, "vmcoal_gpu.py"), *sys.argv[2:]])
"""
_END = """
import os, sys
if os.path.exists(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, "-IS", sys.argv[1], "down", sys.argv[2]])
"""
_PYTHON = "python3"


class GuestGpu(msgspec.Struct, frozen=True, kw_only=True):
    """The function as the guest sees it: PCI ``address``, ``pci_class`` (``0x038000``), NUMA ``node`` (-1: none), and
    whether the guest has an OpenCL ``loader`` that programs find."""

    address: str
    pci_class: str = msgspec.field(name="class")
    node: int
    loader: bool


class _Answer(msgspec.Struct):
    error: str | None = None


def missing() -> str | None:
    """Return why this host has no client libraries to give to guests, or ``None``."""
    try:
        for name in (LIBRARY, CUDA_LIBRARY, CARRIER):
            find_binary(name)
    except PrerequisiteError as error:
        return error.message
    return None


def bundle() -> bytes:
    """Return the compressed archive of what the guest needs; takes some 0.1 s."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as archive:
        archive.add(guest_files() / RELAY, RELAY, recursive=False)
        for name in (LIBRARY, CUDA_LIBRARY, CARRIER):
            archive.add(find_binary(name), name, recursive=False)
    return out.getvalue()


async def up(
    agent: Agent, name: str, node: int, device: GpuDevice | None, *, keep: bool = False, deadline: float
) -> GuestGpu:
    """Bring the clients to the guest, check the PCI function of port ``name`` and let programs find ``device``.

    ``keep`` leaves a relay alone that runs already. Raises `RefusedError` with the guest's reason (a BAR without an
    address, no port), and as `Agent.exec`.
    """
    data = await asyncio.to_thread(bundle)
    inner = max(1.0, deadline - 5.0)
    argv: tuple[str, ...] = (
        _PYTHON,
        "-IS",
        "-c",
        _UNPACK,
        FOLDER,
        "up",
        name,
        "--node",
        str(node),
        "--deadline",
        f"{inner:g}",
    )
    if device is not None and device.cuda is not None:
        argv += ("--cuda",)
    if device is not None and not device.opencl:
        argv += ("--no-opencl",)
    if keep:
        argv += ("--keep",)
    out = await _run(agent, argv, data, deadline=deadline)
    try:
        return msgspec.json.decode(out, type=GuestGpu)
    except UNREADABLE as error:
        raise ExecutionError(f"the guest's GPU relay said something unexpected: {guest_words(str(error))}") from error


async def down(agent: Agent, name: str, *, deadline: float) -> None:
    """End the relay of port ``name``: programs get errors, and new ones do not find the GPU. Idempotent."""
    await _run(agent, (_PYTHON, "-IS", "-c", _END, f"{FOLDER}/{RELAY}", name), b"", deadline=deadline)


async def _run(agent: Agent, argv: tuple[str, ...], data: bytes, *, deadline: float) -> bytes:
    out, err = bytearray(), bytearray()

    async def on_output(stream: int, chunk: bytes) -> None:
        kept = out if stream == 1 else err
        kept.extend(chunk[: _OUTPUT_MAX - len(kept)])

    stdin: asyncio.Queue[CommandInput] = asyncio.Queue()
    stdin.put_nowait(CommandInput(data=data, eof=True))
    try:
        end = await agent.exec(GuestCommand(argv=argv), on_output=on_output, stdin=stdin, deadline=deadline)
    except DeadlineError as error:
        words = (err.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise DeadlineError(
            f"the guest's GPU relay did not answer within {deadline:g} s: {guest_words(words)}",
            left=error.left,
            hint="see vmcoal status; the guest may be busy: try again when it is not",
        ) from error
    if end.code == 0:
        return bytes(out)
    try:
        said = msgspec.json.decode(out, type=_Answer).error
    except UNREADABLE:
        said = (err.decode(errors="replace").strip().splitlines() or [""])[-1]
    how = f"exit code {end.code}" if end.signal is None else f"signal {end.signal}"
    raise RefusedError(
        f"the guest cannot use the GPU: {guest_words(said or how)}", hint="the guest needs Python 3.9 or newer"
    )
