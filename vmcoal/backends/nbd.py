"""What both ends of the NBD data plane share: programs, keys, names, command lines.

Sources: nbdkit(1), nbdkit-tls(1), nbdkit-exportname-filter(1), nbdkit-retry-filter(1), nbdkit-nbd-plugin(1),
nbdfuse(1), nbdinfo(1); TLS-PSK is RFC 4279.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from vmcoal.errors import UNREADABLE, DeadlineError, ExecutionError, PrerequisiteError, RefusedError, UnreachableError
from vmcoal.holding.children import ChildSpec, Restart
from vmcoal.model.lease import MemoryServer

NBDKIT_MIN = (1, 30)
PSK_BYTES = 32

RESTARTS = 100
"""How often in a row a server that ended is started again."""

LOG_LIMIT = 256 * 1024
"""Bytes of a server's log, and of the older part beside it."""

_PIECE = 256 << 20

LEASE_PATTERN = re.compile(r"[a-z][a-z0-9]{0,31}")
"""Lease ids become file names, QOM ids and ids of children."""

_EXPORT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,127}")
_PSK_PATTERN = re.compile(r"([0-9a-f]{2}){16,64}")
_ADDRESS_PATTERN = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:%_-]{0,254}")
_MAX_OUTPUT = 64 * 1024


def check_lease(lease: str, host: str | None = None) -> str:
    """Return ``lease`` if it can be a file name, else raise `RefusedError`: it comes from the peer."""
    if not LEASE_PATTERN.fullmatch(lease):
        raise RefusedError("the lender named a lease in a way that vmcoal does not accept", host=host)
    return lease


def check_server(server: MemoryServer, address: str, host: str | None = None) -> None:
    """Raise `RefusedError` unless what a lender said of its server can go into a command line and a key file."""
    good = (
        0 < server.port < 65536
        and _EXPORT_PATTERN.fullmatch(server.export)
        and LEASE_PATTERN.fullmatch(server.psk_identity)
        and _PSK_PATTERN.fullmatch(server.psk)
        and _ADDRESS_PATTERN.fullmatch(address)
    )
    if not good:
        raise RefusedError("the lender described its memory server in a way that vmcoal does not accept", host=host)


def export_name(lease: str, epoch: int, generation: str) -> str:
    """Return the export of one generation of a lease: a server that began again with other bytes has another one, so a
    client that reconnects is refused and never reads zeros."""
    return f"{lease}-{epoch}-{generation}"


def new_psk() -> str:
    """Return a new key, in hex."""
    return secrets.token_hex(PSK_BYTES)


def write_psk(path: Path, identity: str, psk: str) -> None:
    """Write a key file, mode 0600 from its first byte on; an older one is replaced."""
    remove_file(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{identity}:{psk}\n")


def remove_file(path: Path) -> None:
    """Remove a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def server_argv(file: Path, export: str, psk_file: Path, *, threads: int) -> list[str]:
    """Return the lender's nbdkit; its listening socket is passed as descriptor 3 (``LISTEN_FDS=1``).

    The `file` plugin serves tmpfs pages in place; only the one export is known, and none is listed.
    """
    return [
        "nbdkit",
        "--foreground",
        "--log=stderr",
        f"--threads={threads}",
        "--tls=require",
        f"--tls-psk={psk_file}",
        "--filter=exportname",
        "file",
        f"file={file}",
        f"exportname={export}",
        "exportname-strict=true",
        "exportname-list=empty",
        "exportdesc=none",
    ]


def server_spec(
    child: str, argv: list[str], listener: socket.socket, log: Path, *, cgroup: Path | None = None
) -> ChildSpec:
    """Return `server_argv`'s nbdkit as a child of a holder, which keeps ``listener``: one that was killed comes back on
    the same port, and clients that retry lose nothing."""
    return ChildSpec(
        id=child,
        argv=argv,
        env=child_env(1),
        fds={3: listener.fileno()},
        stdout=log,
        stderr=log,
        log_limit=LOG_LIMIT,
        restart=Restart.ON_FAILURE,
        restart_max=RESTARTS,
        cgroup=cgroup,
    )


async def reserve(descriptor: int, size: int) -> None:
    """Reserve every byte of a file, a piece at a time so that it can be cancelled; raises `OSError` without room."""
    for start in range(0, size, _PIECE):
        await asyncio.to_thread(os.posix_fallocate, descriptor, start, min(_PIECE, size - start))


def proxy_argv(address: str, port: int, export: str, identity: str, psk_file: Path) -> list[str]:
    """Return the borrower's proxy: TLS-PSK towards the lender, plain on a private Unix socket passed as descriptor 3.

    The retry filter opens the connection again, once a second and in effect for ever: a fault on a lost lender waits
    instead of failing, because a failed one is SIGBUS for QEMU. Ending the region ends the wait.
    """
    return [
        "nbdkit",
        "--foreground",
        "--log=stderr",
        "--filter=retry",
        "nbd",
        f"hostname={address}",
        f"port={port}",
        f"export={export}",
        "tls=require",
        f"tls-psk={psk_file}",
        f"tls-username={identity}",
        "retries=100000000",
        "retry-delay=1",
        "retry-exponential=no",
    ]


def fuse_argv(file: Path, socket: Path, *, connections: int) -> list[str]:
    """Return the nbdfuse that shows the proxy's export as the one file ``file`` of a new mount on its folder."""
    return ["nbdfuse", "-C", str(connections), str(file), f"nbd+unix:///?socket={quote(str(socket))}"]


def info_argv(address: str, port: int, export: str, identity: str, psk_file: Path) -> list[str]:
    """Return the nbdinfo that checks that the server is there, knows the key and has the export."""
    host = f"[{address.replace('%', '%25')}]" if ":" in address else address
    return [
        "nbdinfo",
        "--json",
        f"nbds://{identity}@{host}:{port}/{export}?tls-psk-file={quote(str(psk_file), safe='/')}",
    ]


_PRIORITY_VARIABLE = "GNUTLS_SYSTEM_PRIORITY_FILE"
_PRIORITY_FILE = Path(__file__).parent / "tls.config"
_SYSTEM_PRIORITIES = (Path("/etc/gnutls/config"), Path("/etc/crypto-policies/back-ends/gnutls.config"))


@functools.cache
def prefers_aes(cpuinfo: Path = Path("/proc/cpuinfo"), system: tuple[Path, ...] = _SYSTEM_PRIORITIES) -> bool:
    """Return whether TLS should use AES-GCM: the processor has instructions for it, and the host has no priorities of
    its own, which stand. Source: GnuTLS manual, "System-wide configuration of the library"."""
    try:
        words = cpuinfo.read_text().split()
    except OSError:
        return False
    return "aes" in words and not any(path.exists() for path in system)


def child_env(sockets: int = 0) -> dict[str, str]:
    """Return the environment of a data-plane process; ``sockets`` listening ones begin at descriptor 3
    (sd_listen_fds(3)), which nbdkit takes over."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("LISTEN_")}
    env["LC_ALL"] = "C"
    if prefers_aes():
        env.setdefault(_PRIORITY_VARIABLE, str(_PRIORITY_FILE))
    if sockets:
        env["LISTEN_FDS"] = str(sockets)
    return env


async def run(argv: Sequence[str], *, deadline: float) -> tuple[int, bytes, str]:
    """Run a short program and return its exit code, output and the tail of its stderr.

    It is ended at the deadline (`DeadlineError`) or when the caller is cancelled. Raises `PrerequisiteError` if it is
    not installed.
    """
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=child_env(),
        )
    except FileNotFoundError as error:
        raise PrerequisiteError(f"{argv[0]} is not installed", hint=REMEDY) from error
    try:
        async with asyncio.timeout(deadline):
            out, err = await child.communicate()
    except TimeoutError as error:
        raise DeadlineError(f"{argv[0]} did not answer within {deadline:g} s") from error
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    return child.returncode or 0, out[:_MAX_OUTPUT], err.decode(errors="replace")[-2000:].strip()


class _Export(msgspec.Struct):
    size: int = msgspec.field(name="export-size", default=-1)
    is_read_only: bool = False


class _Info(msgspec.Struct):
    exports: list[_Export] = []


async def check_export(argv: Sequence[str], size: int, *, host: str | None, deadline: float) -> None:
    """Run `info_argv`'s nbdinfo and raise unless the export is there with ``size`` bytes and writable.

    `UnreachableError` nobody listens; `RefusedError` another key or another generation; `ExecutionError` the rest.
    """
    try:
        code, out, err = await run(argv, deadline=deadline)
    except DeadlineError as error:
        raise UnreachableError(
            "the memory server does not answer", host=host, hint="check the link and the lender's firewall"
        ) from error
    if code:
        text = err.splitlines()[-1] if err else f"exit code {code}"
        if "No such file" in err or "no export named" in err:
            raise RefusedError(
                "the memory server does not have these bytes any more", host=host, hint="detach it and attach again"
            )
        if "gnutls" in err:
            raise RefusedError("the memory server does not accept the lease's key", host=host, stderr=text)
        if any(word in err for word in ("refused", "unreachable", "No route", "timed out", "resolve", "getaddrinfo")):
            raise UnreachableError(
                "nothing answers on the memory server's port",
                host=host,
                hint="check the lender's firewall: the data port is beside the control port",
                stderr=text,
            )
        raise ExecutionError("the memory server cannot be used", host=host, stderr=text)
    try:
        exports = msgspec.json.decode(out, type=_Info).exports
    except UNREADABLE as error:
        raise ExecutionError(f"nbdinfo said something unexpected of the memory server: {error}", host=host) from error
    if len(exports) != 1 or exports[0].size != size or exports[0].is_read_only:
        raise RefusedError("the memory server does not serve what was granted", host=host)


REMEDY = "install it: apt install nbdkit libnbd-bin fuse3"


def missing_server() -> str | None:
    """Return why this host cannot serve memory with nbdkit, or ``None``. Runs nbdkit once (about 10 ms)."""
    return _missing_nbdkit(["--filter=exportname", "file", "--dump-plugin"], "its file plugin or exportname filter")


def missing_client() -> str | None:
    """Return why this host cannot map borrowed memory through nbdfuse, or ``None``. Runs nbdkit once."""
    for program in ("nbdfuse", "nbdinfo", "fusermount3"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    return _missing_nbdkit(["--filter=retry", "nbd", "--dump-plugin"], "its nbd plugin or retry filter", "libnbd_tls=1")


def _missing_nbdkit(arguments: list[str], parts: str, needed: str = "") -> str | None:
    try:
        version = _output(["nbdkit", "--version"])
        match = re.search(r"nbdkit (\d+)\.(\d+)", version)
        if not match or (int(match[1]), int(match[2])) < NBDKIT_MIN:
            wanted = ".".join(map(str, NBDKIT_MIN))
            return f"nbdkit {wanted} or newer is needed, here is {version.strip()!r}"
        if "tls=yes" not in _output(["nbdkit", "--dump-config"]):
            return "this nbdkit was built without TLS"
        if needed not in _output(["nbdkit", *arguments]):
            return "this nbdkit's nbd plugin was built without TLS"
    except FileNotFoundError:
        return "nbdkit is not installed"
    except (subprocess.SubprocessError, OSError):
        return f"this nbdkit does not run, or lacks {parts}"
    return None


def _output(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL).stdout
