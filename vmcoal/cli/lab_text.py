"""What is said of labs, and while they come up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmcoal.cli.output import Steps, counted, table
from vmcoal.control.wire import Progress
from vmcoal.model.units import format_size

if TYPE_CHECKING:
    from vmcoal.lab.lab import LabStatus, Report
    from vmcoal.lab.network import LabLink


def reporting(shown: Steps) -> Report:
    """Return what shows a lab's steps in ``shown``."""
    from vmcoal.lab.lab import STEPS

    return lambda number, text, fraction, detail: shown(Progress(number, STEPS, text, fraction, detail))


def called(name: str) -> str:
    """Return what a lab is called in a sentence; the one that nobody named is just the lab."""
    from vmcoal.lab.state import DEFAULT_LAB

    return "the lab" if name == DEFAULT_LAB else f"lab {name}"


def ready_line(status: LabStatus) -> str:
    """Return one sentence on a lab that is up."""
    assert status.accel is not None
    hosts = counted(len(status.hosts), "host")
    return (
        f"{called(status.name)} is {status.state}: {hosts} of {counted(status.cpus, 'CPU')} "
        f"and {format_size(status.memory)}, Debian {status.flavor}, {status.accel.value} ({status.accel_reason})"
    )


def lab_text(status: LabStatus) -> str:
    """Return everything about one lab."""
    if status.accel is None:
        lines = [f"{called(status.name)} is {status.state}; vmcoal lab down --name {status.name} takes it away"]
    else:
        lines = [ready_line(status)]
    if status.hosts:
        rows = ((host.name, host.state, host.address, str(host.pid or "-")) for host in status.hosts)
        lines += ["", table(("HOST", "STATE", "ADDRESS", "HOLDER"), rows)]
    if status.links:
        lines += ["", table(("LINK", "STATE", "PROFILE"), map(_link_row, status.links))]
    return "\n".join(lines)


def _link_row(link: LabLink) -> tuple[str, str, str]:
    from vmcoal.lab.links import describe_link

    return f"{link.a} {link.b}", "cut" if link.cut else "up", describe_link(link.profile)
