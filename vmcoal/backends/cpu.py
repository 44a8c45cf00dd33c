"""vCPU engines: where a far node's vCPU executes, and why it cannot where it cannot. Pure."""

from __future__ import annotations

from vmcoal.backends.base import EngineTraits
from vmcoal.errors import PrerequisiteError, RefusedError
from vmcoal.model.machine import Engine

LOCAL = EngineTraits(
    name="local",
    summary="the vCPU runs on this host, on cores that a lender on this same host accounts for",
    same_host_only=True,
)

FAR = EngineTraits(
    name="far",
    summary="the vCPU executes on the lender",
    needs_kvm=True,
    missing="this release of vmcoal has no engine that executes a vCPU on the lender",
    remedy="attach memory from that lender, or vCPUs with --engine local from a lender on this host",
)
"""Far vCPUs need /dev/kvm on both hosts, a split irqchip and shared guest memory chosen at boot, and the page engine
that keeps guest memory coherent between the hosts; none of it is in this release."""

ENGINES = {Engine.LOCAL: LOCAL, Engine.FAR: FAR}


def choose_cpu_engine(engine: Engine, same_host: bool) -> EngineTraits:
    """Return the traits of ``engine`` for a lender that is on the same host or not.

    Raises `PrerequisiteError` for an engine that cannot run and `RefusedError` where it cannot serve this lender.
    """
    traits = ENGINES[engine]
    if traits.missing:
        raise PrerequisiteError(
            f"--engine {engine} is not possible: {traits.missing}",
            hint=traits.remedy,
            needs=["/dev/kvm on both hosts", "a split irqchip", "shared guest memory", "a page engine"],
        )
    if traits.same_host_only and not same_host:
        raise RefusedError(
            "--engine local runs vCPUs on this host, so a lender on another host has nothing to lend for it",
            hint="attach its memory; executing on the lender comes with engine far",
        )
    return traits
