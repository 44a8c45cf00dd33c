"""The servers of GPU leases: PoCL-Remote's pocld and vmcoal-cuda, each in a sandbox, for a device that is one of OpenCL
and one of CUDA; and in front of them a bridge that knows the lease's key.

pocld has no authentication and would listen on three ports, one of them on every address. Here it gets two listening
Unix sockets and no network at all. A kernel is the borrower's own code, and a CPU device runs it on this host:
the sandbox (bwrap(1)) shows it system libraries and device nodes, nothing of any user, and no network; the control
group bounds its memory and its processes. Without bwrap nothing is lent.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import stat
import struct
from pathlib import Path

import msgspec

from vmcoal.backends import nbd
from vmcoal.errors import ExecutionError, NotFoundError, PrerequisiteError
from vmcoal.holding.binaries import find_binary
from vmcoal.holding.children import ChildSpec, Restart
from vmcoal.host.cuda import driver
from vmcoal.lending import cgroup, connections
from vmcoal.lending.entry import Entry
from vmcoal.lending.lease_servers import LeaseServers
from vmcoal.lending.listening import listen_on
from vmcoal.model.gpu import GpuDevice, GpuKind, GpuServer
from vmcoal.model.units import GIB

BRIDGE, SERVER, CUDA = "serve-", "pocld-", "cuda-"
"""How the ids of the children begin; the rest is the lease."""

_START, _CUDA_START = 30.0, 60.0  # a real driver takes seconds to initialize
_CUDA_HELLO = b"vmcoal-cuda 2\0"
_PROGRAM, _DRIVER = "/server", "/driver"
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt/rocm")
# What finds devices; not what tells of the kernel and the firmware, which root's files do to a lender that is root.
_SYSFS = ("bus", "class", "dev", "devices", "module")
_ETC = ("OpenCL", "alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d")
_DEVICES = ("dri", "kfd", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps")
_ENV = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp", "LC_ALL": "C"}  # noqa: S108
REMEDY = "run tools/setup, which builds PoCL-Remote, and install bubblewrap: apt install bubblewrap"


def missing(*, opencl: bool = True) -> str | None:
    """Return why this host cannot serve GPUs, or ``None``; without ``opencl`` those that only CUDA knows."""
    try:
        for name in ("vmcoal-gpu", "vmcoal-cuda", *(("pocld",) if opencl else ())):
            find_binary(name)
    except PrerequisiteError as error:
        return error.message
    return None if shutil.which("bwrap") else "bwrap is not installed, and kernels must not run outside of a sandbox"


def servable(found: list[GpuDevice]) -> list[GpuDevice]:
    """Return what of ``found`` this host has servers for: without pocld the CUDA devices, as such.

    Raises `PrerequisiteError` where there is none.
    """
    why = missing()
    if why is None:
        return found
    cuda = [msgspec.structs.replace(device, opencl=False) for device in found if device.cuda is not None]
    if not cuda or missing(opencl=False):
        raise PrerequisiteError(f"this host cannot lend GPUs: {why}", hint=REMEDY)
    return cuda


class GpuServers(LeaseServers[GpuServer]):
    """Starts, finds and ends the GPU servers of one lender: for each lease pocld, vmcoal-cuda or both, and a bridge."""

    async def start(self, entry: Entry) -> GpuServer:
        """Start the server of a requested lease; raises `ExecutionError` and leaves nothing behind if it fails."""
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self.stop, entry)
            psk = nbd.new_psk()
            nbd.write_psk(self._psk_file(entry.lease.id), entry.lease.id, psk)
            self._home(entry.lease.id).mkdir(mode=0o700)
            port = await self._serve(entry, 0)
            undo.pop_all()
        return self._describe(entry, port, psk)

    async def find(self, entry: Entry) -> GpuServer:
        """Return the server of a granted lease, started again on its port if it does not run. Programs that used it
        have got errors by then. Raises `NotFoundError` if its key is gone, `ConflictError` if its port is taken."""
        psk = self._read_psk(entry.lease.id)
        if psk is None:
            raise NotFoundError(f"the key of lease {entry.lease.id} is gone")
        if not await self._runs(entry):
            await self._end_children(entry.lease.id)
            self._home(entry.lease.id).mkdir(mode=0o700, exist_ok=True)
            await self._serve(entry, entry.port)
        return self._describe(entry, entry.port, psk)

    async def stop(self, entry: Entry) -> None:
        """End a lease's server and remove what it had. Idempotent; raises `DeadlineError` if it does not end."""
        lease = entry.lease.id
        await self._end_children(lease)
        await asyncio.to_thread(shutil.rmtree, self._home(lease), ignore_errors=True)
        self._remove(lease, *_children(lease))

    async def sweep(self, entries: list[Entry]) -> list[str]:
        """End servers that belong to none of ``entries``; return their ids. A bridge goes with memory's servers."""
        ended = []
        for server in (SERVER, CUDA):
            for lease in await self._end_others(server, entries):
                await asyncio.to_thread(shutil.rmtree, self._home(lease), ignore_errors=True)
                self._remove(lease, *_children(lease))
                ended.append(f"{server}{lease}")
        return ended

    # Steps

    async def _serve(self, entry: Entry, port: int) -> int:
        lease, device = entry.lease.id, entry.gpu
        assert device is not None
        home = self._home(lease)
        with contextlib.ExitStack() as stack:
            group = (self._cgroups and cgroup.lease_group(self._cgroups, lease, device.memory)) or None
            if device.opencl:
                sockets = [stack.enter_context(_unix_listener(home / name)) for name in ("command", "stream")]
                await self._spawn(
                    f"{SERVER}{lease}",
                    sandboxed([str(find_binary("pocld"))], device),
                    server_env(device),
                    {3: sockets[0].fileno(), 4: sockets[1].fileno()},
                    group,
                )
            if device.cuda is not None:
                calls = stack.enter_context(_unix_listener(home / "cuda"))
                path = driver()
                argv = sandboxed(cuda_argv(device, path), device, path if path.startswith("/") else None)
                await self._spawn(f"{CUDA}{lease}", argv, _ENV, {3: calls.fileno()}, group)
            listener = stack.enter_context(listen_on(self._host, port, self._ports))
            connections.notice_loss(listener)
            port = int(listener.getsockname()[1])
            argv = bridge_argv(self._psk_file(lease), home, device)
            await self._spawn(f"{BRIDGE}{lease}", argv, nbd.child_env(), {3: listener.fileno()}, None)
        if device.opencl:
            await self._answers(lease, home)
        if device.cuda is not None:
            await self._cuda_answers(lease, home)
        if not await self._runs(entry):
            server = SERVER if device.opencl else CUDA
            raise ExecutionError(
                f"the GPU server of lease {lease} ended at its start", stderr=self._tail(f"{server}{lease}")
            )
        return port

    async def _spawn(
        self, child: str, argv: list[str], env: dict[str, str], fds: dict[int, int], group: Path | None
    ) -> None:
        log = self._log(child)
        await self.holder.spawn(
            ChildSpec(
                id=child,
                argv=argv,
                env=env,
                fds=fds,
                stdout=log,
                stderr=log,
                log_limit=nbd.LOG_LIMIT,
                restart=Restart.ON_FAILURE,
                restart_max=nbd.RESTARTS,
                cgroup=group,
            )
        )

    async def _answers(self, lease: str, home: Path) -> None:
        """Return when pocld has taken a connection: the socket listens already, so only its answer tells that it runs.

        A connection that is closed for writing is dropped by pocld's loop, which is that answer.
        """
        try:
            async with asyncio.timeout(_START):
                reader, writer = await asyncio.open_unix_connection(str(home / "command"))
                try:
                    writer.write_eof()
                    await reader.read(1)
                finally:
                    writer.close()
        except (TimeoutError, OSError) as error:
            raise ExecutionError(
                f"the GPU server of lease {lease} does not answer", stderr=self._tail(f"{SERVER}{lease}"), hint=REMEDY
            ) from error

    async def _cuda_answers(self, lease: str, home: Path) -> None:
        """Return when vmcoal-cuda has taken a client, whose process says that the driver works."""
        body = struct.pack("<Q", len(_CUDA_HELLO)) + _CUDA_HELLO
        request = struct.pack("<IHHQII", len(body), 0, 1, 0, 1, 0) + body
        try:
            async with asyncio.timeout(_CUDA_START):
                reader, writer = await asyncio.open_unix_connection(str(home / "cuda"))
                try:
                    writer.write(request)
                    _, _, result, _ = struct.unpack("<IIiI16x", await reader.readexactly(32))
                finally:
                    writer.close()
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise ExecutionError(
                f"the CUDA server of lease {lease} does not answer",
                stderr=self._tail(f"{CUDA}{lease}"),
                hint="see what nvidia-smi says of the driver",
            ) from error
        if result:
            raise ExecutionError(f"the CUDA driver does not start: error {result}", hint="see what nvidia-smi says")

    async def _runs(self, entry: Entry) -> bool:
        return set(_children(entry.lease.id, entry.gpu)) <= await self._live()

    async def _end_children(self, lease: str) -> None:
        for child in _children(lease):
            with contextlib.suppress(NotFoundError):
                await self._end(child)

    # Small things

    def _describe(self, entry: Entry, port: int, psk: str) -> GpuServer:
        assert entry.gpu is not None
        return GpuServer(port=port, psk_identity=entry.lease.id, psk=psk, device=entry.gpu)

    def _home(self, lease: str) -> Path:
        return self._folders.runtime / f"gpu-{lease}"


def lease_of(child: str) -> str:
    """Return the lease that a child of the holder works for."""
    for prefix in (BRIDGE, SERVER, CUDA):
        child = child.removeprefix(prefix)
    return child


def _children(lease: str, device: GpuDevice | None = None) -> list[str]:
    """Return the ids of a lease's children: those for ``device``, or all that there may be."""
    wanted = [(BRIDGE, True), (SERVER, not device or device.opencl), (CUDA, not device or device.cuda is not None)]
    return [f"{prefix}{lease}" for prefix, is_wanted in wanted if is_wanted]


def bridge_argv(psk_file: Path, home: Path, device: GpuDevice) -> list[str]:
    """Return the bridge's command line; its listening socket is passed as descriptor 3."""
    argv = [str(find_binary("vmcoal-gpu")), "serve", "--key", str(psk_file), "--listen-fd", "3"]
    if device.opencl:
        argv += ["--command", str(home / "command"), "--stream", str(home / "stream")]
    if device.cuda is not None:
        argv += ["--cuda", str(home / "cuda")]
    return argv


def cuda_argv(device: GpuDevice, path: str) -> list[str]:
    """Return the command line of vmcoal-cuda in its sandbox; ``path`` is the driver's."""
    binary = str(find_binary("vmcoal-cuda"))
    argv = [binary, "serve", "--listen-fd", "3", "--device", str(device.cuda), "--memory", str(device.memory)]
    argv += ["--clients", str(device.programs)]
    return [*argv, "--driver", _DRIVER if path.startswith("/") else path]


def sandboxed(argv: list[str], device: GpuDevice, library: str | None = None) -> list[str]:
    """Return the command line that runs ``argv`` with the system's libraries, the device nodes of GPUs where the device
    is one, an empty home, and nothing else: no network, no files of users, no capabilities. ``library`` is the path of
    a driver that lies elsewhere; it is ``/driver`` there."""
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in map(Path, (*_SYSTEM, *(f"/etc/{name}" for name in _ETC))):
        # PoCL finds its files by way of /lib/…/../.., which means /usr only where /lib is a link.
        how = ["--symlink", str(path.readlink())] if path.is_symlink() else ["--ro-bind-try", str(path)]
        words += [*how, str(path)]
    for name in _SYSFS:
        words += ["--ro-bind-try", f"/sys/{name}", f"/sys/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - the sandbox's own
    words += ["--ro-bind", argv[0], _PROGRAM]
    if library:
        words += ["--ro-bind", library, _DRIVER]
    if device.kind is not GpuKind.CPU:
        for name in (*_DEVICES, *sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))):
            words += ["--dev-bind-try", f"/dev/{name}", f"/dev/{name}"]
    return [*words, "--", _PROGRAM, *argv[1:]]


def server_env(device: GpuDevice) -> dict[str, str]:
    """Return the environment of pocld: the one device it serves, the lease's limits, and what CPU PoCL may use."""
    env = {**_ENV, "LISTEN_FDS": "2", "POCLD_PLATFORM": str(device.platform), "POCLD_DEVICE": str(device.index)}
    env |= {"POCLD_MEMORY_LIMIT": str(device.memory), "POCLD_SESSIONS": str(device.programs)}
    if device.kind is GpuKind.CPU:
        env["POCL_MEMORY_LIMIT"] = str(max(1, device.memory // GIB))
    return env


def _unix_listener(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(64)
    except BaseException:
        sock.close()
        raise
    return sock
