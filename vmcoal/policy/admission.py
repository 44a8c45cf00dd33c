"""Whether a lender grants a request."""

from __future__ import annotations

from collections.abc import Collection

from vmcoal.errors import RefusedError
from vmcoal.model.lease import Offer, ResourceKind
from vmcoal.model.units import MIB, format_size

GRAIN = 2 * MIB
"""Memory is lent in multiples of this."""


def admit(
    offer: Offer, grants: Collection[ResourceKind], kind: ResourceKind, amount: int, committed: int, same_host: bool
) -> None:
    """Raise `RefusedError` unless the lender behind ``offer`` grants ``amount`` of ``kind``.

    ``committed`` bytes of memory (at most ``amount``) count against what is free. A vCPU is only lent to a borrower on
    the same host: a vCPU that executes on the lender needs the far engine.
    """
    host = offer.lender
    if kind not in grants:
        raise RefusedError(
            f"{host} does not lend {kind} to this borrower",
            host=host,
            hint=f"pair again while the lender runs: vmcoal lend pair --grant {kind}",
        )
    if offer.cordoned:
        raise RefusedError(
            f"{host} is cordoned and grants nothing new", host=host, hint="ask its operator, or another lender"
        )
    if kind is ResourceKind.MEMORY:
        if amount <= 0 or amount % GRAIN or committed < 0 or committed % GRAIN or committed > amount:
            raise RefusedError("memory is lent in multiples of 2 MiB", host=host, hint="ask for a multiple of 2M")
        if committed > offer.memory_free:
            raise RefusedError(
                f"{host} has {format_size(offer.memory_free)} of {format_size(offer.memory_total)} free, "
                f"{format_size(committed)} were asked for",
                host=host,
                hint="ask for less, or another lender",
            )
    elif kind is ResourceKind.CPU:
        if amount <= 0 or committed != amount:
            raise RefusedError("vCPUs are lent whole", host=host, hint="ask for one or more")
        if not same_host:
            raise RefusedError(
                "a vCPU of engine local runs on the borrower's own host and cannot be lent from another one",
                host=host,
                hint="attach memory only, or use a lender on this host",
            )
        if amount > offer.cpus_free:
            raise RefusedError(
                f"{host} has {offer.cpus_free} of {offer.cpus_total} CPUs free, {amount} were asked for",
                host=host,
                hint="ask for fewer, or another lender",
            )
    else:
        if amount != 1 or committed != 1:
            raise RefusedError("a lease is of one GPU", host=host, hint="ask for each GPU alone")
        if amount > offer.gpus_free:
            has = f"all {offer.gpus_total} are lent" if offer.gpus_total else "it lends none"
            raise RefusedError(f"{host} has no GPU to lend: {has}", host=host, hint="ask another lender")
