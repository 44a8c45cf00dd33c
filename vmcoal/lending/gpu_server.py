"""The servers of GPU leases: PoCL-Remote's pocld in a sandbox, and in front of it a bridge that knows the lease's key.

pocld has no authentication and would listen on three ports, one of them on every address. Here it gets two listening
Unix sockets and no network at all. An OpenCL kernel is the borrower's own code, and a CPU device runs it on this host:
the sandbox (bwrap(1)) shows it system libraries and device nodes, nothing of any user, and no network; the control
group bounds its memory and its processes. Without bwrap nothing is lent.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import stat
from pathlib import Path

from vmcoal.backends import nbd
from vmcoal.errors import ExecutionError, NotFoundError, PrerequisiteError
from vmcoal.holding.binaries import find_binary
from vmcoal.holding.children import ChildSpec, Restart
from vmcoal.lending import cgroup, connections
from vmcoal.lending.entry import Entry
from vmcoal.lending.lease_servers import LeaseServers
from vmcoal.lending.listening import listen_on
from vmcoal.model.gpu import GpuDevice, GpuKind, GpuServer
from vmcoal.model.units import GIB

BRIDGE, SERVER = "serve-", "pocld-"
"""How the ids of the children begin; the rest is the lease."""

_START = 30.0
_PROGRAM = "/server"
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt/rocm")
# What finds devices; not what tells of the kernel and the firmware, which root's files do to a lender that is root.
_SYSFS = ("bus", "class", "dev", "devices", "module")
_ETC = ("OpenCL", "alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d")
_DEVICES = ("dri", "kfd", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps")
REMEDY = "run tools/setup, which builds PoCL-Remote, and install bubblewrap: apt install bubblewrap"


def missing() -> str | None:
    """Return why this host cannot serve GPUs, or ``None``."""
    try:
        find_binary("pocld")
        find_binary("vmcoal-gpu")
    except PrerequisiteError as error:
        return error.message
    return None if shutil.which("bwrap") else "bwrap is not installed, and kernels must not run outside of a sandbox"


class GpuServers(LeaseServers[GpuServer]):
    """Starts, finds and ends the GPU servers of one lender: pocld and its bridge for each lease."""

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
        if not await self._runs(entry.lease.id):
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
        leases = await self._end_others(SERVER, entries)
        for lease in leases:
            await asyncio.to_thread(shutil.rmtree, self._home(lease), ignore_errors=True)
            self._remove(lease, *_children(lease))
        return [f"{SERVER}{lease}" for lease in leases]

    # Steps

    async def _serve(self, entry: Entry, port: int) -> int:
        lease, device = entry.lease.id, entry.gpu
        assert device is not None
        home = self._home(lease)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(_unix_listener(home / name)) for name in ("command", "stream")]
            group = self._cgroups and cgroup.lease_group(self._cgroups, lease, device.memory)
            await self._spawn(
                f"{SERVER}{lease}",
                sandboxed([str(find_binary("pocld"))], device),
                server_env(device),
                {3: sockets[0].fileno(), 4: sockets[1].fileno()},
                group or None,
            )
            listener = stack.enter_context(listen_on(self._host, port, self._ports))
            connections.notice_loss(listener)
            port = int(listener.getsockname()[1])
            argv = bridge_argv(self._psk_file(lease), home / "command", home / "stream")
            await self._spawn(f"{BRIDGE}{lease}", argv, nbd.child_env(), {3: listener.fileno()}, None)
        await self._answers(lease, home)
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
        if not await self._runs(lease):
            raise ExecutionError(
                f"the GPU server of lease {lease} ended at its start", stderr=self._tail(f"{SERVER}{lease}")
            )

    async def _runs(self, lease: str) -> bool:
        return set(_children(lease)) <= await self._live()

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


def _children(lease: str) -> tuple[str, str]:
    return f"{BRIDGE}{lease}", f"{SERVER}{lease}"


def bridge_argv(psk_file: Path, command: Path, stream: Path) -> list[str]:
    """Return the bridge's command line; its listening socket is passed as descriptor 3."""
    return [
        str(find_binary("vmcoal-gpu")),
        "serve",
        "--key",
        str(psk_file),
        "--listen-fd",
        "3",
        "--command",
        str(command),
        "--stream",
        str(stream),
    ]


def sandboxed(argv: list[str], device: GpuDevice) -> list[str]:
    """Return the command line that runs ``argv`` with the system's libraries, the device nodes of GPUs where the device
    is one, an empty home, and nothing else: no network, no files of users, no capabilities."""
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in map(Path, (*_SYSTEM, *(f"/etc/{name}" for name in _ETC))):
        # PoCL finds its files by way of /lib/…/../.., which means /usr only where /lib is a link.
        how = ["--symlink", str(path.readlink())] if path.is_symlink() else ["--ro-bind-try", str(path)]
        words += [*how, str(path)]
    for name in _SYSFS:
        words += ["--ro-bind-try", f"/sys/{name}", f"/sys/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - the sandbox's own
    words += ["--ro-bind", argv[0], _PROGRAM]
    if device.kind is not GpuKind.CPU:
        for name in (*_DEVICES, *sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))):
            words += ["--dev-bind-try", f"/dev/{name}", f"/dev/{name}"]
    return [*words, "--", _PROGRAM, *argv[1:]]


def server_env(device: GpuDevice) -> dict[str, str]:
    """Return the environment of pocld: the one device it serves, the lease's limits, and what CPU PoCL may use."""
    env = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp", "LC_ALL": "C", "LISTEN_FDS": "2"}  # noqa: S108
    env |= {"POCLD_PLATFORM": str(device.platform), "POCLD_DEVICE": str(device.index)}
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
