"""A lab as a whole: making it, looking at it, changing its links, and taking it away.

Every host runs under a holder of its own and outlives the command that started it; what is known of the lab is its spec
on disk (`vmcoal.lab.state`) and whose holders answer. So `lab_down` needs neither the command that made the lab nor its
spec.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec

from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    ExecutionError,
    NotFoundError,
    PrerequisiteError,
    UnreachableError,
    VmcoalError,
)
from vmcoal.holding.binaries import find_binary
from vmcoal.holding.client import Holder
from vmcoal.host.facts import Host as ThisMachine
from vmcoal.lab.host import Host, remove_sockets
from vmcoal.lab.host_spec import CPUS, FIRST_NETWORK_FD, FUNCTIONS, MEMORY, check_host
from vmcoal.lab.lab_checks import check_memory, check_space, choose_accel
from vmcoal.lab.links import PROFILES, LinkProfile
from vmcoal.lab.network import (
    LabLink,
    Wiring,
    address_of,
    all_links,
    find_link,
    host_names,
    netdev_argv,
    setup_script,
    shape_command,
    wired,
)
from vmcoal.lab.state import (
    LabSpec,
    changing,
    left_hosts,
    read_lab,
    remove_lab_folders,
    write_lab,
)
from vmcoal.layout import lab_host_folders, state_home
from vmcoal.model.machine import Accel
from vmcoal.model.units import format_size
from vmcoal.together import together

if TYPE_CHECKING:
    from vmcoal.lab.image import HostImage

STEPS = 5
Report = Callable[[int, str, float | None, str | None], None]
"""Called with the number of the step, of `STEPS`, its text, how much of it is done (0 to 1) and a detail."""

_CONNECT = 30.0
_START = 60.0
_COMMAND = 120.0
_TAIL_LINES = 10
_END = re.compile(r"Kernel panic|cannot be mounted|Out of memory|No working init")


class LabRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `vmcoal lab up` asks for. ``memory`` in bytes; ``flavor`` Debian's release in the hosts; ``accel`` ``None``
    for KVM where this machine can nest it; ``deadline`` seconds in which the hosts must have booted."""

    name: str
    hosts: int = 3
    link: LinkProfile = PROFILES["lan"]
    memory: int = MEMORY
    cpus: int = CPUS
    flavor: str = "12"
    iommu: bool = False
    accel: Accel | None = None
    qemu: str = "qemu-system-x86_64"
    deadline: float = 300.0


class LabHostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One host of a lab. ``state``: running | stopped; ``pid`` of its QEMU."""

    name: str
    state: str
    address: str
    pid: int | None = None


class LabStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A lab. ``state``: running | degraded (some hosts run) | stopped | unfinished (it never was completely up);
    ``memory`` bytes and ``cpus`` of each host."""

    name: str
    state: str
    accel: Accel | None = None
    accel_reason: str | None = None
    flavor: str | None = None
    iommu: bool = False
    memory: int = 0
    cpus: int = 0
    hosts: tuple[LabHostStatus, ...] = ()
    links: tuple[LabLink, ...] = ()


def lab_up(request: LabRequest, report: Report) -> LabStatus:
    """Make a lab and return it when its hosts have booted and are joined; all of it or nothing. Blocks.

    A lab that has lost hosts gets them back as they were made, whatever else ``request`` says. Raises `ConflictError`
    where all of them run, `PrerequisiteError` where this machine lacks something, and what a host failed with, with its
    name and the last lines of its console.
    """
    from vmcoal.lab.image import ensure_image  # the other commands do not pay for it

    report(1, "check this machine", None, None)
    find_binary("vmcoal-holder")
    with changing(request.name):
        known = read_lab(request.name)
        running = asyncio.run(_running(request.name))
        if (known is None and left_hosts(request.name)) or (known is not None and not known.complete):
            raise ConflictError(f"lab {request.name} was left unfinished", hint=_down(request.name))
        spec = known or _new_spec(request)
        missing = [host for host in spec.hosts if host not in running]
        if not missing:
            raise ConflictError(
                f"lab {spec.name} runs already", hint=f"vmcoal lab status, or to make it anew: {_down(spec.name)}"
            )
        check_memory(len(missing), spec.memory, spec.accel, ThisMachine().memory_available())
        check_space(state_home(), len(missing))
        text = f"the image of the hosts, Debian {spec.flavor}"
        report(2, text, None, None)
        image = ensure_image(spec.flavor, lambda detail, part: report(2, text, part, detail))
        return asyncio.run(_up(spec, missing, image, request.deadline, report))


async def _up(spec: LabSpec, missing: Sequence[str], image: HostImage, deadline: float, report: Report) -> LabStatus:
    async with AsyncExitStack() as undo:
        if not spec.complete:
            undo.callback(remove_lab_folders, spec.name)
        with wired(spec.links, missing) as wiring:
            spec = msgspec.structs.replace(spec, links=wiring.links)
            write_lab(spec)
            hosts = await _start(spec, missing, image, wiring, report, undo)
        await _boot(spec, hosts, deadline, report)
        report(5, "join the hosts", None, None)
        await together(*(_join(spec, host) for host in hosts))
        spec = msgspec.structs.replace(spec, complete=True)
        write_lab(spec)
        undo.pop_all()
    await together(*(host.close() for host in hosts))
    return await lab_status(spec.name)


def _down(name: str) -> str:
    return f"vmcoal lab down --name {name}"


def _new_spec(request: LabRequest) -> LabSpec:
    """Return the spec of a new lab; raises `UsageError` for what cannot be, `PrerequisiteError` without QEMU."""
    hosts = host_names(request.hosts)
    check_host(hosts[0], request.cpus, request.memory, request.iommu, ())
    accel, reason = choose_accel(request.qemu, request.accel)
    return LabSpec(
        name=request.name,
        hosts=hosts,
        links=all_links(hosts, request.link),
        memory=request.memory,
        cpus=request.cpus,
        flavor=request.flavor,
        iommu=request.iommu,
        qemu=request.qemu,
        accel=accel,
        accel_reason=reason,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


async def _start(
    spec: LabSpec, names: Sequence[str], image: HostImage, wiring: Wiring, report: Report, undo: AsyncExitStack
) -> list[Host]:
    """Start the hosts ``names``; ``undo`` ends each of them."""
    from vmcoal.lab.image import make_host_spec

    how = f"{spec.accel.value} ({spec.accel_reason})"
    report(3, f"start {len(names)} hosts of {format_size(spec.memory)} with {how}", None, None)

    async def start(name: str) -> Host:
        fds = wiring.fds(name)
        numbers = {peer: FIRST_NETWORK_FD + index for index, peer in enumerate(fds)}
        made = make_host_spec(
            name,
            image,
            qemu=spec.qemu,
            accel=spec.accel,
            accel_reason=spec.accel_reason,
            cpus=spec.cpus,
            memory=spec.memory,
            iommu=spec.iommu,
            functions=FUNCTIONS if spec.iommu else (),
        )
        with _on(name):
            host = await Host.start(
                made,
                lab_host_folders(name, spec.name),
                network=netdev_argv(name, wiring.links, numbers),
                fds={numbers[peer]: fd for peer, fd in fds.items()},
                deadline=_START,
            )
        undo.push_async_callback(host.kill)
        return host

    return await together(*(start(name) for name in names))


async def _boot(spec: LabSpec, hosts: Sequence[Host], deadline: float, report: Report) -> None:
    text, booted = "wait until they have booted", 0
    report(4, text, 0.0, None)

    async def wait(host: Host) -> None:
        nonlocal booted
        with _on(host.name):
            await host.wait_ready(deadline)
        booted += 1
        report(4, text, booted / len(hosts), f"{booted} of {len(hosts)}")

    try:
        await together(*(wait(host) for host in hosts))
    except ExecutionError as error:  # its console.log goes with the lab
        error.hint = (
            "try again: vmcoal lab up; should it end there each time: vmcoal image prune --all, for a new image"
        )
        raise
    except DeadlineError as error:
        error.hint = f"this machine may be overloaded: fewer hosts, or vmcoal lab up --deadline {2 * deadline:g}s"
        raise


async def _join(spec: LabSpec, host: Host) -> None:
    """Give a host its addresses, the shape of its links and the names of the others."""
    with _on(host.name):
        await host.run(["/bin/sh"], stdin=setup_script(host.name, spec.links).encode(), deadline=_COMMAND)


@contextlib.contextmanager
def _on(host: str) -> Iterator[None]:
    """Name the host in what fails, and show the end of its console."""
    try:
        yield
    except VmcoalError as error:
        error.host = error.host or host
        console = str(error.details.get("console") or "").strip()
        if console and not error.details.get("stderr"):
            error.details["stderr"] = telling(console)
        raise


def telling(console: str) -> str:
    """Return the lines of a console that say most: from where it speaks of its end, else the last."""
    lines = console.splitlines()
    ends = [number for number, line in enumerate(lines) if _END.search(line)]
    begin = ends[-1] if ends else max(0, len(lines) - _TAIL_LINES)
    return "\n".join(lines[begin : begin + _TAIL_LINES])


async def _running(name: str) -> dict[str, int]:
    """Return the hosts of lab ``name`` that run, with the process of their holder."""
    found = {}
    for host in left_hosts(name):
        with contextlib.suppress(UnreachableError):
            async with await Holder.connect(lab_host_folders(host, name).holder_socket, deadline=_CONNECT) as holder:
                found[host] = holder.pid
    return found


async def lab_status(name: str) -> LabStatus:
    """Return a lab as it is; raises `NotFoundError` where there is nothing of it."""
    running = await _running(name)
    try:
        spec = read_lab(name)
    except PrerequisiteError:
        spec = None
    names = spec.hosts if spec else tuple(left_hosts(name))
    hosts = tuple(
        LabHostStatus(
            name=host,
            state="running" if host in running else "stopped",
            address=address_of(host),
            pid=running.get(host),
        )
        for host in names
    )
    if spec is None or not spec.complete:
        return LabStatus(name=name, state="unfinished", hosts=hosts)
    state = "running" if len(running) == len(names) else "degraded" if running else "stopped"
    return LabStatus(
        name=name,
        state=state,
        accel=spec.accel,
        accel_reason=spec.accel_reason,
        flavor=spec.flavor,
        iommu=spec.iommu,
        memory=spec.memory,
        cpus=spec.cpus,
        hosts=hosts,
        links=spec.links,
    )


async def lab_down(name: str) -> list[str]:
    """End a lab and remove everything of it; return the hosts that ran.

    It goes by what is there and not by the spec, so a lab that never came up, or whose processes were all killed, goes
    the same way. Raises `DeadlineError` where a host outlives its end.
    """
    with changing(name):
        ended = await together(*(_end(name, host) for host in left_hosts(name)))
        remove_lab_folders(name)
    return [host for host in ended if host is not None]


async def _end(name: str, host: str) -> str | None:
    folders = lab_host_folders(host, name)
    with _on(host):
        try:
            async with await Holder.connect(folders.holder_socket, deadline=_CONNECT) as holder:
                await holder.shutdown(grace=0)
        except UnreachableError:
            return None
        finally:
            remove_sockets(folders)
    return host


def _spec_of(name: str) -> LabSpec:
    spec = read_lab(name)
    if spec is None or not spec.complete:
        raise ConflictError(f"lab {name} was left unfinished", hint=_down(name))
    return spec


@contextlib.asynccontextmanager
async def lab_host(name: str, host: str) -> AsyncIterator[Host]:
    """Give a running host of a lab; it runs on afterwards. Raises `NotFoundError`, `UnreachableError`."""
    spec = _spec_of(name)
    if host not in spec.hosts:
        raise NotFoundError(f"lab {name} has no host {host!r}", hint=f"its hosts are {', '.join(spec.hosts)}")
    try:
        found = await Host.connect(lab_host_folders(host, name), deadline=_CONNECT)
    except (NotFoundError, UnreachableError) as error:
        raise UnreachableError(
            f"{host} of lab {name} does not run", host=host, hint=f"vmcoal lab up --name {name} starts it again"
        ) from error
    try:
        yield found
    finally:
        await found.close()


async def lab_kill(name: str, host: str) -> None:
    """End a host as if its power was cut; `lab_up` brings it back, with nothing in it."""
    with changing(name):
        async with lab_host(name, host) as found:
            await found.kill()


async def lab_link(name: str, a: str, b: str, profile: LinkProfile | None, *, cut: bool = False) -> LabLink:
    """Give the link between two hosts another profile (``None``: the one it has), or cut it; return it.

    A cut link loses everything in both directions and closes nothing; setting a profile mends it. Both sides are
    changed or none: raises what a host failed with.
    """
    with changing(name):
        spec = _spec_of(name)
        old = find_link(spec.links, a, b)
        new = msgspec.structs.replace(old, profile=profile or old.profile, cut=cut)
        async with AsyncExitStack() as hosts, AsyncExitStack() as undo:
            for host, peer in ((old.a, old.b), (old.b, old.a)):
                found = await hosts.enter_async_context(lab_host(name, host))
                undo.push_async_callback(_shape, found, peer, old)
                await _shape(found, peer, new)
            links = tuple(new if link is old else link for link in spec.links)
            write_lab(msgspec.structs.replace(spec, links=links))
            undo.pop_all()
    return new


async def _shape(host: Host, peer: str, link: LabLink) -> None:
    with _on(host.name):
        await host.run(["/bin/sh", "-c", shape_command(peer, link)], deadline=_COMMAND)
