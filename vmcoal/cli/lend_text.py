"""What is said of a lender of this host, and of its leases."""

from __future__ import annotations

from vmcoal.cli.output import counted, device_words, table, vcpus
from vmcoal.lending.api import LenderStatus
from vmcoal.model.lease import Lease, ResourceKind
from vmcoal.model.units import format_duration, format_size


def total(status: LenderStatus) -> str:
    """Return what a lender lends in all, in words."""
    parts = [vcpus(status.offer.cpus_total)] if status.offer.cpus_total else []
    parts += [format_size(status.offer.memory_total)] if status.offer.memory_total else []
    parts += [counted(status.offer.gpus_total, "GPU")] if status.offer.gpus_total else []
    return " and ".join(parts) or "nothing"


def lender_text(status: LenderStatus) -> str:
    """Return everything about one lender."""
    if not status.running:
        return "\n".join([f"Lender {status.name}: stopped", *(f"  ! {line}" for line in status.degraded)])
    offer = status.offer
    state = "cordoned: lends nothing new" if offer.cordoned else "lends"
    facts = [
        ("State", state + (f", up {format_duration(status.uptime)}" if status.uptime is not None else "")),
        ("Listens on", ", ".join(status.addresses)),
        ("vCPUs", f"{offer.cpus_free} of {offer.cpus_total} free"),
        ("Memory", f"{format_size(offer.memory_free)} of {format_size(offer.memory_total)} free"),
        ("GPUs", f"{offer.gpus_free} of {offer.gpus_total} free" if offer.gpus_total else None),
        *(("", f"{device.id} {device_words(device)}") for device in offer.gpus),
        ("Borrowers", str(status.borrowers)),
        ("Pairing", f"open for {format_duration(status.pairing)}" if status.pairing else None),
        ("Metrics", f"http://{status.metrics}/metrics" if status.metrics else None),
    ]
    lines = [f"Lender {status.name}"]
    lines += [f"  {label + ':' if label else '':<12}{text}" for label, text in facts if text]
    if status.leases:
        lines += ["", table(("LEASE", "BORROWER", "VM", "WHAT", "STATE", "EPOCH"), map(_lease_row, status.leases))]
    if status.degraded:
        lines += ["", "Degraded:", *(f"  ! {line}" for line in status.degraded)]
    return "\n".join(lines)


def _lease_row(lease: Lease) -> tuple[str, ...]:
    if lease.kind is ResourceKind.MEMORY:
        what = format_size(lease.amount)
        if lease.committed != lease.amount:
            what = f"{format_size(lease.committed)} of {what}"
    else:
        what = f"{lease.amount} {'GPU' if lease.kind is ResourceKind.GPU else lease.kind.value}"
    return lease.id, lease.borrower, lease.vm, what, lease.state.value, str(lease.epoch)


def amount(lease: Lease) -> str:
    """Return how much a lease is of, in words."""
    return format_size(lease.committed) if lease.kind is ResourceKind.MEMORY else counted(lease.amount, lease.kind)
