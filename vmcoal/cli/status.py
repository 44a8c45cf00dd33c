"""``vmcoal status`` and ``vmcoal metrics``."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from vmcoal import layout
from vmcoal.cli.app import Command
from vmcoal.cli.outcome import printable
from vmcoal.cli.output import gpu_name, print_json, table, vcpus
from vmcoal.cli.params import output_option, resolve_vm, vm_argument
from vmcoal.cli.vm import offline_status, status_of, vm_call
from vmcoal.errors import VmcoalError
from vmcoal.model.activity import GpuActivity, PagingActivity, StoreActivity, percentile
from vmcoal.model.attachment import AttachedCpu, AttachedGpu, AttachedMemory, Attachment
from vmcoal.model.machine import Accel, CpuMode
from vmcoal.model.paging import HOME, LOCAL
from vmcoal.model.status import NodeStatus, VmStatus
from vmcoal.model.units import format_duration, format_size

_INTERVAL = 1.0


@click.command(
    cls=Command,
    example="""
    vmcoal status
    vmcoal status web --watch
    vmcoal status web -o json
    """,
)
@vm_argument
@click.option("-w", "--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
@output_option
def status(vm: str | None, watch: bool, form: str) -> None:
    """Show all VMs, or one of them with its NUMA nodes, attachments and what is degraded."""

    def read() -> list[VmStatus] | VmStatus:
        return status_of(resolve_vm(vm)) if vm else [_status_or_error(name) for name in layout.known_vms()]

    def text() -> str:
        seen = read()
        return vm_text(seen) if isinstance(seen, VmStatus) else vms_text(seen)

    if watch and form == "json":
        _json_lines(read)
    elif watch:
        _live(text)
    elif form == "json":
        print_json(read())
    else:
        click.echo(text())


def _status_or_error(name: str) -> VmStatus:
    """Return a VM's status; one whose controller does not answer, or whose files cannot be read, is listed as unknown,
    the others are still shown."""
    try:
        return status_of(name)
    except VmcoalError as error:
        why = f"{error}; next: {error.hint}" if error.hint else str(error)
    try:
        import msgspec

        return msgspec.structs.replace(offline_status(name), state="unknown", degraded=(why,))
    except VmcoalError:
        return VmStatus(
            name=name,
            state="unknown",
            accel=Accel.TCG,
            accel_reason="its files cannot be read",
            cpu_mode=CpuMode.PARKED,
            cpus=0,
            memory=0,
            degraded=(why,),
        )


def _live(text: Callable[[], str]) -> None:
    """Redraw ``text`` on a terminal; print it again and again elsewhere."""
    import sys

    try:
        if not sys.stdout.isatty():
            while True:
                click.echo(text() + "\n")
                time.sleep(_INTERVAL)
        from rich.live import Live
        from rich.text import Text

        with Live(Text(text()), auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(_INTERVAL)
                live.update(Text(text()), refresh=True)
    except KeyboardInterrupt:
        return


def _json_lines(read: Callable[[], object]) -> None:
    """Print one JSON value a line."""
    import msgspec

    try:
        while True:
            click.echo(msgspec.json.encode(read()))
            time.sleep(_INTERVAL)
    except KeyboardInterrupt:
        return


def vms_text(statuses: list[VmStatus]) -> str:
    """Return the table of all VMs."""
    if not statuses:
        return "there is no VM; vmcoal boot makes one"
    rows = [
        (
            status.name,
            status.state,
            status.accel.value,
            _total_cpus(status),
            _total_memory(status),
            ", ".join(sorted({at.lender for at in status.attachments} - {HOME, LOCAL})) or "-",
            format_duration(status.uptime) if status.uptime is not None else "-",
            f"degraded ({len(status.degraded)})" if status.degraded else "ok" if status.state == "running" else "-",
        )
        for status in statuses
    ]
    return table(("VM", "STATE", "ACCEL", "CPUS", "MEMORY", "LENDERS", "UP", "HEALTH"), rows)


def _total_cpus(status: VmStatus) -> str:
    far = sum(len(at.cpus) for at in status.attachments)
    return f"{status.cpus}+{far}" if far else str(status.cpus)


def _total_memory(status: VmStatus) -> str:
    far = sum(memory.size for at in status.attachments for memory in at.memory if not memory.copy)
    return format_size(status.memory) + (f" + {format_size(far)}" if far else "")


def vm_text(status: VmStatus) -> str:
    """Return everything about one VM."""
    reason = f" ({status.accel_reason})" if status.accel_reason else ""
    facts = [
        ("State", status.state + (f", up {format_duration(status.uptime)}" if status.uptime is not None else "")),
        ("Guest", status.guest),
        ("Acceleration", f"{status.accel.value}{reason}"),
        ("Near node", f"{vcpus(status.cpus)}, {format_size(status.memory)}"),
        ("Far vCPUs", f"{status.cpu_mode.value}: {_CPU_MODES[status.cpu_mode.value]}"),
        ("Far memory", _engine(status)),
        ("GPU slots", _slots(status)),
        ("Agent", status.agent if status.state not in ("stopped", "failed") else None),
        ("QEMU", status.qemu_version),
        ("Processes", _processes(status)),
        ("SSH", f"vmcoal ssh {status.name} (port {status.ssh_port})" if status.ssh_port else None),
        ("Metrics", f"http://{status.metrics}/metrics" if status.metrics else None),
        ("Under way", status.operation),
    ]
    parts = [f"VM {status.name}"]
    parts += [f"  {label + ':':<14}{printable(text)}" for label, text in facts if text]
    if status.nodes:
        header = ("NODE", "DISTANCE", "LENDER", "CPUS ONLINE/PLUGGED/SLOTS", "MEMORY ONLINE/PLUGGED/HEADROOM")
        parts += ["", table(header, map(_node_row, status.nodes))]
    rows = [row for at in status.attachments for row in attachment_rows(at)]
    if rows:
        parts += ["", table(("LENDER", "NODE", "RTT", "WHAT", "ENGINE", "STATE", "LEASE"), rows)]
    if status.paging is not None:
        parts += ["", *paging_lines(status.paging)]
    if status.gpus:
        parts += ["", table(_GPU_HEADER, map(_gpu_row, status.gpus))]
    if status.exit:
        said = str(status.exit.get("stderr") or "").splitlines()
        how = "was killed by signal" if status.exit.get("state") == "signaled" else "ended with exit code"
        parts += ["", f"QEMU {how} {status.exit.get('code')} at {status.exit.get('at')}"]
        parts += [f"  | {printable(line)}" for line in said]
    if status.degraded:
        parts += ["", "Degraded:", *(f"  ! {printable(line)}" for line in status.degraded)]
    return "\n".join(parts)


_CPU_MODES = {
    "hotplug": "plugged at attach, unplugged at detach",
    "plug-park": "plugged at attach, parked (offline) at detach",
    "parked": "present from boot, parked (offline) until attached",
}


def _slots(status: VmStatus) -> str | None:
    far = next((node for node in status.nodes if node.pci_ports), None)
    if far is None:
        return None
    return f"{far.pci_ports} at each far node, with a window of {format_size(far.gpu_window)}"


def _engine(status: VmStatus) -> str | None:
    engine = status.memory_engine
    if engine is None:
        return None
    better = "; vmcoal doctor --for attach says what would change that" if engine.remedy else ""
    return f"{engine.name.value}: {engine.reason}{better}"


def paging_lines(paging: PagingActivity) -> list[str]:
    """Return what the page engine does: the cache, how well it guesses, and a table of the places of the pages."""
    facts = [
        ("Cache", f"{format_size(paging.used)} of {format_size(paging.cache)} used"),
        ("Borrowed", f"{format_size(paging.here)} here, {format_size(paging.away)} away, the rest is zeros"),
        ("Lost", format_size(paging.lost) if paging.lost else None),
        ("Hit ratio", _share(paging.hit_ratio, "of the faults on pages with bytes met them here or on their way")),
        ("Compressed", _compressed(paging)),
        ("Standby", f"{paging.standby} faults on pages that had just left" if paging.standby else None),
        ("Prefetch", _share(paging.prefetch_accuracy, "of the guesses that were judged were used")),
    ]
    rows = []
    for store in paging.stores:
        region = paging.regions[store.region]
        p50, p99 = (percentile(store.latency, fraction) for fraction in (0.5, 0.99))
        fetch = f"< {format_duration(p50)} / {format_duration(p99)}" if p50 and p99 else "-"
        moved = (format_size(store.bytes_in), format_size(store.bytes_out))
        rows.append((_who(store.lender), store.region, format_size(region.away), _place(store), *moved, fetch))
    for name, region in paging.regions.items():
        if region.home:
            state = "is home" if not region.away else "comes home"
            rows.append(("(this host)", name, format_size(region.away), state, "-", "-", "-"))
    header = ("LENDER", "MEMORY", "AWAY", "STATE", "BYTES IN", "BYTES OUT", "FETCH P50/P99")
    return [
        "Paged memory",
        *(f"  {label + ':':<14}{text}" for label, text in facts if text),
        *(["", table(header, rows)] if rows else []),
    ]


_GPU_HEADER = ("LENDER", "GPU", "CALLS", "FAILED", "BYTES OUT", "BYTES IN", "IN USE", "CALL P50/P99 AT THE LENDER")


def _gpu_row(seen: GpuActivity) -> tuple[str, ...]:
    p50, p99 = (percentile(seen.latency, fraction) for fraction in (0.5, 0.99))
    took = f"< {format_duration(p50)} / {format_duration(p99)}" if p50 and p99 else "-"
    used = "-" if seen.utilization is None else f"{seen.utilization * 100:.3g} %"
    moved = (format_size(seen.bytes_out), format_size(seen.bytes_in))
    return seen.lender, printable(seen.name), str(seen.calls), str(seen.failed), *moved, used, took


def _who(lender: str) -> str:
    return "(this host's disk)" if lender == LOCAL else lender


def _share(ratio: float | None, of: str) -> str | None:
    return None if ratio is None else f"{ratio * 100:.3g} % {of}"


def _compressed(paging: PagingActivity) -> str | None:
    if not paging.compressed or paging.compression is None:
        return "nothing has been sent yet" if paging.compressed else None
    return f"{paging.compression:.2f} bytes of pages in each byte on the links"


def _place(store: StoreActivity) -> str:
    if store.refused:
        return "has other bytes"
    if not store.connected:
        return "does not answer"
    return f"{format_size(store.behind)} behind" if store.behind else "up to date"


def _processes(status: VmStatus) -> str | None:
    known = (("qemu", status.qemu_pid), ("controller", status.controller_pid), ("holder", status.holder_pid))
    return ", ".join(f"{name} {pid}" for name, pid in known if pid) or None


def _node_row(node: NodeStatus) -> tuple[str, ...]:
    def seen(value: int | None, write: Callable[[int], str]) -> str:
        return "?" if value is None else write(value)

    return (
        str(node.node),
        str(node.distance),
        node.lender or ("(this host)" if node.node == 0 else "-"),
        f"{seen(node.cpus_online, str)}/{node.cpus_plugged}/{node.cpu_slots}",
        f"{seen(node.memory_online, format_size)} / {format_size(node.memory_plugged)}"
        f" / {format_size(node.memory_headroom)}",
    )


def attachment_rows(at: Attachment) -> list[tuple[str, ...]]:
    """Return one row for the vCPUs of each engine and state, and one for each memory device and GPU."""
    rtt = format_duration(at.link.rtt) if at.link else "-"
    head = (at.lender, str(at.node), rtt)
    rows: list[tuple[str, ...]] = []
    groups: dict[tuple[str, str, str], int] = {}
    for cpu in at.cpus:
        key = (f"{cpu.engine.value} (runs on {'this host' if cpu.engine == 'local' else 'the lender'})", *_states(cpu))
        groups[key] = groups.get(key, 0) + 1
    for (engine, state, lease), count in groups.items():
        rows.append((*head, vcpus(count), engine, state, lease))
    for memory in at.memory:
        size = format_size(memory.size)
        if memory.size != memory.capacity:
            size += f" of {format_size(memory.capacity)}"
        what = "copy" if memory.copy else memory.style.value
        rows.append((*head, f"{size} {what}", memory.engine, *_states(memory)))
    for gpu in at.gpus:
        where = f" at {gpu.address}" if gpu.address else ""
        engine = f"{gpu.engine} ({gpu.host})" if gpu.host else gpu.engine
        rows.append((*head, f"{printable(gpu_name(gpu))}{where}", engine, *_states(gpu)))
    return rows


def _states(part: AttachedCpu | AttachedMemory | AttachedGpu) -> tuple[str, str]:
    return part.state.value, part.lease_state.value


@click.command(cls=Command, example="vmcoal metrics web")
@vm_argument
def metrics(vm: str | None) -> None:
    """Print a VM's metrics as Prometheus would scrape them."""
    click.echo(vm_call(resolve_vm(vm), "metrics", result=str, deadline=10.0).rstrip("\n"))
