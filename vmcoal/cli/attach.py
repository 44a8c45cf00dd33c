"""``vmcoal attach`` and ``vmcoal detach``."""

from __future__ import annotations

import click

from vmcoal.cli.app import Command
from vmcoal.cli.config import load_config
from vmcoal.cli.output import counted, gpu_name, note, print_json, print_plan, vcpus
from vmcoal.cli.params import (
    ANY,
    COUNT,
    GPU,
    LENDER,
    PCI,
    PLACE,
    PLACE_OF_COPY,
    REPLICAS,
    SECONDS,
    SIZE,
    compress_option,
    deadline_option,
    dry_run_option,
    on_loss_option,
    output_option,
    resolve_vm,
    vm_argument,
)
from vmcoal.cli.vm import vm_steps
from vmcoal.controller.api import AttachResult, DetachResult
from vmcoal.errors import UsageError
from vmcoal.model.attachment import AttachedGpu, AttachRequest, DetachRequest, MemoryStyle, Plan
from vmcoal.model.machine import Engine
from vmcoal.model.paging import HOME, Compression, LossPolicy
from vmcoal.model.units import format_duration, format_size


class GpuCommand(Command):
    """A command whose ``--gpu`` may be followed by ``pci:ADDRESS``, and by nothing else: a VM's name may come next."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse ``args``, with ``--gpu`` alone written as ``--gpu=any``."""
        follows = zip(args, [*args[1:], ""], strict=False)
        return super().parse_args(ctx, [_alone(each, following) for each, following in follows])


def _alone(each: str, following: str) -> str:
    return f"--gpu={ANY}" if each == "--gpu" and not following.startswith(PCI) else each


@click.command(
    cls=GpuCommand,
    example="""
    vmcoal attach --cpus 2 --memory 512M
    vmcoal attach web --from attic --memory 4G --granular --dry-run
    vmcoal attach web --from attic --memory 4G --cache 512M --replicas 2
    vmcoal attach web --from attic --memory 4G --replica-on local
    vmcoal attach web --from attic --gpu
    vmcoal attach web --gpu pci:0000:01:00.0
    """,
)
@vm_argument
@click.option("--from", "lender", type=LENDER, help="The lender's name; needed only where several are paired.")
@click.option("--cpus", type=COUNT, help="How many vCPUs.")
@click.option("--memory", type=SIZE, help="How much memory, such as 512M or 4G.")
@click.option(
    "--gpu",
    type=GPU,
    metavar="[pci:ADDRESS]",
    help="One GPU of the lender, for its OpenCL and CUDA programs; or pci:0000:01:00.0, one of this host by VFIO.",
)
@click.option(
    "--granular/--dimm",
    default=None,
    help="Plug memory as one virtio-mem device that grows and shrinks in 2 MiB grains, or as whole DIMMs.  "
    "[default: --dimm]",
)
@click.option(
    "--engine",
    type=click.Choice([engine.value for engine in Engine]),
    help="Where the vCPUs execute: on this host (local) or on the lender (far).  [default: local]",
)
@click.option("--node", type=COUNT, help="The far NUMA node; else the free one whose distance fits the link.")
@click.option(
    "--cache",
    type=SIZE,
    help="How much of all the memory that the VM borrows may be on this host at a time; vmcoal tune changes it.",
)
@click.option(
    "--replicas",
    type=REPLICAS,
    help="In how many places each page is kept: 1, or 2 to survive a lender.  [default: 1]",
)
@click.option(
    "--replica-on",
    type=PLACE_OF_COPY,
    metavar="LENDER|local",
    help="Where the second place is: another lender, or a file on this host. Else the nearest other lender with room.",
)
@on_loss_option
@compress_option
@click.option("--deadline", type=SECONDS, help="How long it may take before everything is undone.  [default: 2m]")
@dry_run_option
@output_option
def attach(
    vm: str | None,
    lender: str | None,
    cpus: int | None,
    memory: int | None,
    gpu: str | None,
    granular: bool | None,
    engine: str | None,
    node: int | None,
    cache: int | None,
    replicas: int | None,
    replica_on: str | None,
    on_loss: str | None,
    compress: str | None,
    deadline: float | None,
    dry_run: bool,
    form: str,
) -> None:
    """Plug a lender's CPUs, memory and GPUs into a running VM.

    They appear in an empty NUMA node of the guest whose distance is the measured latency of the link. It is a
    transaction: what fails is undone, on both hosts.
    """
    if not cpus and not memory and not gpu:
        raise UsageError("nothing to attach", hint="give --cpus N, --memory SIZE, --gpu or several of them")
    own = gpu not in (None, ANY)
    if own and (cpus or memory or lender):
        raise UsageError("a GPU of this host comes from no lender", hint="attach what a lender lends by itself")
    if replicas == 1 and replica_on:
        raise UsageError("--replica-on is where a second place is", hint="leave out --replicas 1")
    defaults = load_config().attach
    if granular is None:
        granular = defaults.granular and memory is not None
    request = AttachRequest(
        lender=lender,
        cpus=cpus or 0,
        memory=memory or 0,
        gpu=gpu == ANY,
        pci=gpu if own else None,
        style=MemoryStyle.GRANULAR if granular else MemoryStyle.DIMM,
        engine=Engine(engine or defaults.engine),
        node=node,
        cache=cache,
        replicas=replicas or (1 if replica_on is None else 2),
        replica_on=replica_on,
        on_loss=None if on_loss is None else LossPolicy(on_loss),
        compress=None if compress is None else Compression(compress),
        deadline=deadline or defaults.deadline_seconds,
        dry_run=dry_run,
    )
    name = resolve_vm(vm)
    if dry_run:
        print_plan(vm_steps(name, "attach", request, result=Plan), form)
        return
    result = vm_steps(name, "attach", request, result=AttachResult)
    for text in result.notes:
        note(f"note: {text}")
    if form == "json":
        print_json(result)
        return
    click.echo(attached_line(name, result))
    device = "lspci -k" if own else "clinfo -l"
    look = "lscpu" if result.cpus_added else "free -m" if result.memory_added else device
    note(f"next: vmcoal exec {name} -- {look}   or   vmcoal status {name}")


def attached_line(name: str, result: AttachResult) -> str:
    """Return one sentence on what an attach did."""
    at = result.attachment
    engines = sorted({cpu.engine.value for cpu in at.cpus})
    gained = []
    if result.cpus_added:
        gained.append(f"{vcpus(result.cpus_added)} (engine {'/'.join(engines)})")
    if result.memory_added:
        gained.append(format_size(result.memory_added))
    if result.gpus_added:
        gained += [f"{gpu_name(gpu)} ({_where(gpu)})" for gpu in at.gpus[-result.gpus_added :]]
    took = f" in {format_duration(result.seconds['total'])}" if "total" in result.seconds else ""
    rtt = f", RTT {format_duration(at.link.rtt)}" if at.link else ""
    sure = "confirmed by the guest" if result.verified else "not confirmed by the guest"
    return (
        f"VM {name} gained {' and '.join(gained) or 'nothing'} from {_whose(at.lender)}: node {at.node}, "
        f"distance {at.distance}{rtt}; {sure}{took}"
    )


def _whose(lender: str) -> str:
    return "this host" if lender == HOME else lender


def _where(gpu: AttachedGpu) -> str:
    parts = (f"engine {gpu.engine}", gpu.host and f"{gpu.host} here", gpu.address and f"{gpu.address} there")
    return ", ".join(filter(None, parts if gpu.host else (parts[0], gpu.address)))


@click.command(
    cls=GpuCommand,
    example="""
    vmcoal detach --from attic
    vmcoal detach web --all --deadline 30s
    vmcoal detach --memory 256M --dry-run
    vmcoal detach --gpu
    vmcoal detach --gpu pci:0000:01:00.0
    """,
)
@vm_argument
@click.option("--from", "lender", type=PLACE, help="A lender, or home; needed only where several are attached.")
@click.option("--all", "everything", is_flag=True, help="From every lender.")
@click.option("--cpus", type=COUNT, help="Only so many vCPUs.")
@click.option("--memory", type=SIZE, help="Only so much memory.")
@click.option("--gpu", type=GPU, metavar="[pci:ADDRESS]", help="Only a GPU: the newest, or the one of this host.")
@click.option("--force", is_flag=True, help="Give it back even if the guest does not let go. What is in it is lost.")
@deadline_option(60.0, "the guest has to let go of it")
@dry_run_option
@output_option
def detach(
    vm: str | None,
    lender: str | None,
    everything: bool,
    cpus: int | None,
    memory: int | None,
    gpu: str | None,
    force: bool,
    deadline: float,
    dry_run: bool,
    form: str,
) -> None:
    """Drain, unplug and give back what a lender lent; all of it, unless --cpus, --memory or --gpu says what.

    What does not leave within the deadline stays attached and is told; only --force loses anything.
    """
    if everything and lender:
        raise UsageError("--all and --from exclude each other", hint="give one of them")
    own = gpu not in (None, ANY)
    if own and (everything or lender or cpus or memory):
        raise UsageError("--gpu pci:… names one thing of this host", hint="detach the rest with a command of its own")
    request = DetachRequest(
        lender=lender,
        everything=everything,
        cpus=cpus or 0,
        memory=memory or 0,
        gpu=gpu == ANY,
        pci=gpu if own else None,
        deadline=deadline,
        force=force,
        dry_run=dry_run,
    )
    name = resolve_vm(vm)
    if dry_run:
        print_plan(vm_steps(name, "detach", request, result=Plan), form)
        return
    result = vm_steps(name, "detach", request, result=DetachResult)
    for text in result.notes:
        note(f"note: {text}")
    if form == "json":
        print_json(result)
        return
    gave = []
    if result.cpus_removed:
        gave.append(vcpus(result.cpus_removed))
    if result.memory_removed:
        gave.append(format_size(result.memory_removed))
    if result.gpus_removed:
        gave.append(counted(result.gpus_removed, "GPU"))
    took = f" in {format_duration(result.seconds['total'])}" if "total" in result.seconds else ""
    click.echo(f"VM {name} gave back {' and '.join(gave) or 'nothing'}{took}")
    for at in result.remaining:
        left = [vcpus(len(at.cpus))] if at.cpus else []
        left += [format_size(size)] if (size := sum(memory.size for memory in at.memory)) else []
        left += [counted(len(at.gpus), "GPU")] if at.gpus else []
        if left:
            click.echo(f"still attached from {_whose(at.lender)}: {' and '.join(left)}")
