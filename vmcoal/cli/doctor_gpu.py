"""``vmcoal doctor gpu``: which GPUs this host can lend, what a guest here needs to use one, and why not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import click

from vmcoal.cli.app import Command
from vmcoal.cli.output import device_words, print_json
from vmcoal.cli.params import output_option
from vmcoal.errors import VmcoalError
from vmcoal.host.checks import Check, Duty, Finding, Seen, run_checks
from vmcoal.host.facts import Host
from vmcoal.host.pci import PciBus
from vmcoal.model.gpu import GpuDevice, GpuKind, NvidiaGpu
from vmcoal.model.machine import GPU_WINDOW
from vmcoal.model.pci import PassthroughFacts
from vmcoal.model.units import format_size
from vmcoal.policy.passthrough import objections, option_size, remarks, window_needed

_LEND, _ATTACH = frozenset({Duty.LEND}), frozenset({Duty.ATTACH})
_NVIDIA = 0x10DE
_BUILD = "run tools/setup, which builds PoCL-Remote"


@click.command(
    "gpu",
    cls=Command,
    short_help="Say which GPUs this host can lend or attach, and why not",
    example="""
    vmcoal doctor gpu
    vmcoal doctor gpu -o json
    """,
)
@output_option
def doctor_gpu(form: str) -> None:
    """Say which GPUs this host can lend, what its guests need to use one, and what keeps the others from it.

    Nothing has to be there: the exit code is 0. What is missing is said with its remedy.
    """
    from vmcoal.cli.doctor import findings_text

    findings = gpu_findings(Host())
    if form == "json":
        print_json(findings)
    else:
        click.echo(findings_text(findings))


def gpu_findings(host: Host, bus: PciBus | None = None) -> list[Finding]:
    """Return what there is of GPUs; takes as long as the drivers need to answer. ``bus`` is another one in a test."""
    devices, no_devices = _devices()
    cards, no_cards = _nvidia()
    bus = bus or PciBus()
    facts = [bus.facts(address) for address in bus.displays()]
    checks = [
        Check("opencl", "OpenCL and CUDA devices", lambda _: _seen(devices, no_devices), "", False, _LEND),
        *(_device(device) for device in devices),
        Check("gpu-server", "the servers of lent devices", _server, _BUILD, False, _LEND),
        Check("gpu-client", "the clients that guests are given", _client, _BUILD, False, _ATTACH),
        Check("nvidia", "NVIDIA's driver", lambda _: _driver(facts, cards, no_cards), "", False, _LEND),
        *(_card(card, devices) for card in cards),
        *_functions(facts),
    ]
    return run_checks(checks, host, frozenset(Duty))


def _devices() -> tuple[list[GpuDevice], VmcoalError | None]:
    from vmcoal.host.cuda import find_devices

    try:
        return asyncio.run(find_devices()), None
    except VmcoalError as error:
        return [], error


def _nvidia() -> tuple[tuple[NvidiaGpu, ...], VmcoalError | None]:
    from vmcoal.host.nvidia import find_nvidia

    try:
        return asyncio.run(find_nvidia()), None
    except VmcoalError as error:
        return (), error


def _seen(devices: Iterable[GpuDevice], why: VmcoalError | None) -> Seen:
    from vmcoal.host.opencl import REMEDY

    kinds = [device.kind for device in devices]
    if why is not None:
        return Seen(False, why.message, why.hint)
    if not kinds:
        return Seen(False, "none: there is no loader (libOpenCL.so.1), or no driver for it", REMEDY)
    if all(kind is GpuKind.CPU for kind in kinds):
        remedy = "a GPU's own OpenCL driver makes it one: apt search opencl-icd; the CPU can be lent as it is"
        return Seen(False, "only this host's CPU", remedy)
    return Seen(True, f"{len(kinds)}, of which --gpu auto lends those that are no CPU")


def _device(device: GpuDevice) -> Check:
    both = " (CUDA too)" if device.opencl and device.cuda is not None else ""
    found = f"{device_words(device)}: vmcoal lend --gpu {device.id}"
    name = f"OpenCL device {device.id}{both}" if device.opencl else f"CUDA device {device.cuda}"
    key = f"opencl-{device.id}" if device.opencl else f"cuda-{device.cuda}"
    return Check(key, name, lambda _: Seen(True, found), "", False, _LEND)


def _server(host: Host) -> Seen:
    from vmcoal.lending.gpu_server import REMEDY, missing

    del host
    why = missing()
    if why and not missing(opencl=False):
        why += "; CUDA devices can be lent without it"
    return Seen(False, why, REMEDY) if why else Seen(True, "PoCL-Remote's pocld and vmcoal-cuda, in sandboxes of bwrap")


def _client(host: Host) -> Seen:
    from vmcoal.guest.gpu import CUDA_LIBRARY, LIBRARY, missing

    del host
    why = missing()
    return (
        Seen(False, why)
        if why
        else Seen(True, f"{LIBRARY}, {CUDA_LIBRARY}; the guest needs vmcoal's agent, Python and glibc 2.34")
    )


def _driver(facts: list[PassthroughFacts], cards: tuple[NvidiaGpu, ...], why: VmcoalError | None) -> Seen:
    if cards:
        return Seen(True, f"{cards[0].driver}, for CUDA up to {cards[0].cuda}")
    if not any(one.function.vendor == _NVIDIA for one in facts):
        return Seen(True, "not needed: this host has no NVIDIA GPU")
    return Seen(False, why.message if why else "it lists no GPU", why.hint if why else "dmesg | grep -i nvrm")


def _card(card: NvidiaGpu, devices: Iterable[GpuDevice]) -> Check:
    use = "" if card.use is None else f", {card.use * 100:.0f} % busy"
    found = f"{card.name}, {format_size(card.used)} of {format_size(card.memory)} used{use}"
    lent = [device.id for device in devices if device.address == card.address]
    if lent:
        seen = Seen(True, f"{found}; device {lent[0]}")
    else:
        remedy = "install the rest of its driver: apt install libcuda1 nvidia-opencl-icd"
        seen = Seen(False, f"{found}; neither CUDA nor OpenCL lists it, so it cannot be lent", remedy)
    return Check(f"nvidia-{card.address}", f"NVIDIA GPU {card.address}", lambda _: seen, "", False, _LEND)


def _functions(facts: list[PassthroughFacts]) -> list[Check]:
    """Return a check for each display of this host: whether a guest here can have it by VFIO."""
    if facts:
        return [_function(one) for one in facts]
    none = Seen(True, "none: a guest of this host can have a lender's GPU only")
    return [Check("pci", "displays of this host", lambda _: none, "", False, _ATTACH)]


def _function(facts: PassthroughFacts) -> Check:
    one = facts.function
    parts = [one.title, f"driver {one.driver or 'none'}"]
    parts += [f"IOMMU group {one.group}" if one.group is not None else "no IOMMU group"]
    others = [member.address for member in facts.group if member.address != one.address]
    parts += [f"with {', '.join(others)}"] if others else []
    parts += [f"reset by {', '.join(one.resets)}" if one.resets else "no reset"]
    found = f"{', '.join(parts)}: "
    against = objections(facts, 0)
    if against:
        hints = "; ".join(dict.fromkeys(error.hint for error in against if error.hint))
        seen = Seen(False, found + "; ".join(error.message for error in against), hints)
    else:
        need = window_needed(one.bars)
        window = f", of a VM booted with --gpu-window {option_size(need)}" if need > GPU_WINDOW else ""
        seen = Seen(True, "; ".join([f"{found}vmcoal attach --gpu pci:{one.address}{window}", *remarks(facts)]))
    return Check(f"pci-{one.address}", f"display {one.address}", lambda _: seen, "", False, _ATTACH)
