"""``python -m vmcoal.lending NAME``: the lender process."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import sys

from vmcoal.control.log import log_to
from vmcoal.errors import ConflictError, PrerequisiteError, UsageError, VmcoalError
from vmcoal.fabric.identity import DEFAULT_PORT
from vmcoal.layout import LenderFolders, lender_folders
from vmcoal.lending.entry import Capacity
from vmcoal.model.gpu import PROGRAMS, GpuLimits
from vmcoal.model.units import is_host, parse_port, parse_size


def main(argv: list[str] | None = None) -> int:
    """Run one lender until it is stopped; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        folders = lender_folders(options.name)
        log_to(folders.log)
        folders.make()
        lock = _lock(folders)
        try:
            asyncio.run(_run(options, folders))
        finally:
            os.close(lock)
    except VmcoalError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        print(f"vmcoal: error: {error}{hint}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


async def _run(options: argparse.Namespace, folders: LenderFolders) -> None:
    from vmcoal.backends.nbd import REMEDY, missing_server
    from vmcoal.lending.daemon import Lender, Settings

    capacity = None
    if any(option is not None for option in (options.cpus, options.memory, options.gpu)):
        capacity = Capacity(options.cpus or 0, parse_size(options.memory) if options.memory not in (None, "0") else 0)
    if capacity is None or capacity.memory:
        missing = await asyncio.to_thread(missing_server)
        if missing:
            raise PrerequisiteError(f"this host cannot lend memory: {missing}", hint=REMEDY)
    settings = Settings(
        capacity=capacity,
        gpus=options.gpu,
        gpu_limits=GpuLimits(parse_size(options.gpu_memory) if options.gpu_memory else 0, options.gpu_programs),
        listen=parse_listen(options.listen) if options.listen else None,
        data_ports=parse_ports(options.data_ports) if options.data_ports else None,
        metrics=options.metrics,
    )

    def ready() -> None:
        if options.ready_fd is not None:
            os.write(options.ready_fd, b"1")
            os.close(options.ready_fd)

    await Lender(folders, settings).run(ready)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vmcoal.lending", description="run one lender in the foreground")
    parser.add_argument("name")
    parser.add_argument("--cpus", type=int, help="vCPUs to lend at most")
    parser.add_argument("--memory", help="memory to lend at most, e.g. 2G")
    parser.add_argument("--gpu", help="auto, none or ids; without --cpus, --memory and --gpu as last time")
    parser.add_argument("--gpu-memory", help="memory of each GPU that is lent at most, e.g. 4G (default: all)")
    parser.add_argument("--gpu-programs", type=int, default=PROGRAMS, help="programs that may use a lent GPU at once")
    parser.add_argument(
        "--listen", help=f"HOST, HOST:PORT or [IPV6]:PORT (default: every address, port {DEFAULT_PORT})"
    )
    parser.add_argument("--data-ports", help="FIRST-LAST: TCP ports of the leases, for firewalls (default: any)")
    parser.add_argument("--metrics", help="serve Prometheus metrics on HOST:PORT")
    parser.add_argument("--ready-fd", type=int, help="descriptor that gets one byte when commands are answered")
    return parser


def _lock(folders: LenderFolders) -> int:
    """Return the descriptor that holds the lock of this lender's name; raises `ConflictError`."""
    lock = os.open(folders.state / "lender.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConflictError(
            f"lender {folders.state.name} runs already", hint="vmcoal lend status, or another name"
        ) from None
    return lock


def parse_listen(text: str) -> tuple[str, int]:
    """Return host (``""``: every address) and port of HOST, HOST:PORT, [IPV6]:PORT or ``*``; raises `UsageError`."""
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            host, rest = "", ":-"
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    number = parse_port(port)
    if number is None or not (host == "" or is_host(host)):
        raise UsageError(f"{text!r} is not an address to listen on", hint="write it as 192.0.2.7:6180 or [::1]:6180")
    return "" if host == "*" else host, number


def parse_ports(text: str) -> tuple[int, int]:
    """Return first and last port of FIRST-LAST; raises `UsageError`."""
    first, last = map(parse_port, text.partition("-")[::2])
    if not first or not last or first > last:
        raise UsageError(f"{text!r} is not a range of ports", hint="write it as 6181-6199")
    return first, last


if __name__ == "__main__":
    sys.exit(main())
