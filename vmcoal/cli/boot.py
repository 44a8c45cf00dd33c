"""``vmcoal boot``: check this host, find the image, describe the machine, start it."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click
import msgspec

from vmcoal import layout
from vmcoal.cli.app import Command
from vmcoal.cli.boot_machine import Report, new_machine, refuse_changes, same_machine
from vmcoal.cli.config import load_config
from vmcoal.cli.output import Steps, counted, note, print_json, print_plan, steps, vcpus
from vmcoal.cli.params import COUNT, COUNT_OR_NONE, DEFAULT_VM, PORT, SECONDS, SIZE, VM, dry_run_option, output_option
from vmcoal.cli.vm import holder_lives, read_spec, vm_call
from vmcoal.control.wire import Progress
from vmcoal.controller.api import WaitRequest
from vmcoal.errors import ConflictError, DeadlineError, DegradedError, PrerequisiteError
from vmcoal.model.attachment import Plan, Step
from vmcoal.model.engine import EngineChoice, MemoryEngineName
from vmcoal.model.machine import DiskBoot, MachineSpec
from vmcoal.model.status import VmStatus
from vmcoal.model.units import format_duration, format_size

_STEPS = 4


@click.command(
    cls=Command,
    example="""
    vmcoal boot
    vmcoal boot web --image debian-12-genericcloud-amd64.qcow2 --seed --memory 2G
    vmcoal boot lab --far-nodes 2 --far-memory 16G --dry-run
    """,
)
@click.argument("vm", required=False, type=VM, metavar="[NAME]")
@click.option("--image", metavar="FILE", help="A bootable disk image, qcow2 or raw; it is never written to.")
@click.option("--image-size", type=SIZE, help="Make the guest's disk larger than the image.")
@click.option("--kernel", metavar="FILE", help="A Linux kernel to boot directly.")
@click.option("--initrd", metavar="FILE", help="Its initial RAM disk.")
@click.option("--append", metavar="TEXT", help="Its arguments.")
@click.option("--cpus", type=COUNT, help="vCPUs of the near node.  [default: 2]")
@click.option("--memory", type=SIZE, help="Memory of the near node.  [default: 1G]")
@click.option("--far-nodes", type=COUNT_OR_NONE, help="Empty NUMA nodes to plug into later.  [default: 4]")
@click.option("--far-cpus", type=COUNT_OR_NONE, help="vCPU slots of each.  [default: 4]")
@click.option("--far-memory", type=SIZE, help="Memory headroom of each.  [default: 8G]")
@click.option(
    "--gpu-window",
    type=SIZE,
    help="Room for a GPU's memory at each of their PCI ports: 64G for one that shows 32G at once.  [default: 512M]",
)
@click.option("--net", metavar="MODE", help="user, tap=DEVICE, bridge=DEVICE or none.  [default: user]")
@click.option("--ssh-port", type=PORT, help="Port of 127.0.0.1 for the guest's SSH.  [default: free]")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="FILE[,ro][,format=F]",
    help="An extra disk, written to unless ro; repeatable.",
)
@click.option("--display", metavar="WHAT", help="none, gtk, sdl, vnc=127.0.0.1:1, spice=port=5900,…  [default: none]")
@click.option("--firmware", type=click.Choice(["bios", "uefi"]), help="What starts a disk image.  [default: bios]")
@click.option(
    "--seed/--no-seed",
    default=None,
    help="Attach a cloud-init seed that installs the agent.  [default: for images that vmcoal built]",
)
@click.option(
    "--accel", type=click.Choice(["auto", "kvm", "tcg"]), help="auto: KVM if a probe guest runs.  [default: auto]"
)
@click.option("--qemu", metavar="PROGRAM", help="The QEMU to run.  [default: qemu-system-x86_64]")
@click.option(
    "--memory-engine",
    type=click.Choice([engine.value for engine in MemoryEngineName]),
    help="What brings borrowed memory: auto is pager where this host can run it, else fuse.  [default: auto]",
)
@click.option("--qemu-args", metavar="TEXT", help="Further arguments for QEMU, quoted as for a shell.")
@click.option("--metrics", metavar="ADDRESS", help="Serve Prometheus metrics on HOST:PORT.")
@click.option(
    "--wait",
    "until",
    type=click.Choice(["agent", "qemu"]),
    default="agent",
    show_default=True,
    help="Return when the guest answers, or as soon as QEMU runs.",
)
@click.option("--deadline", type=SECONDS, help="How long the guest may take to answer.  [default: 5m]")
@click.option(
    "--foreground", is_flag=True, help="Run the controller in the foreground; Ctrl-C ends it, the VM runs on."
)
@dry_run_option
@output_option
def boot(
    vm: str | None, until: str, deadline: float | None, foreground: bool, dry_run: bool, form: str, **options: Any
) -> None:
    """Boot a VM with empty far NUMA nodes, into which CPUs and memory can be plugged while it runs.

    Without an image it boots the default one, which is built from the distribution's packages the first time. A VM that
    was shut down is booted again by its name alone.
    """
    name = vm or DEFAULT_VM
    defaults = load_config().boot
    if holder_lives(name):
        raise ConflictError(f"VM {name} runs already", hint=f"vmcoal status {name}; another one: vmcoal boot NAME")
    exists = name in layout.known_vms() and has_run(name)
    if exists:
        refuse_changes(name, options)
    with steps() as shown:

        def step(number: int, text: str, fraction: float | None = None, detail: str | None = None) -> None:
            shown(Progress(number, _STEPS, text, fraction, detail))

        step(1, "check this host")
        preflight()
        spec = same_machine(name, options) if exists else new_machine(name, options, defaults, step, dry_run)
        engine = memory_engine(spec)
        if spec.metrics:
            check_metrics(spec.metrics)
        if dry_run:
            shown.close()
            print_plan(boot_plan(spec, engine), form)
            return
        folders = layout.vm_folders(name)
        folders.make()
        if not exists:
            folders.overlay.unlink(missing_ok=True)
        spec = prepare_files(spec, folders, options["image_size"])
        if foreground:
            shown.close()
            _become_controller(spec, folders)
        status = _start(spec, until, deadline or defaults.deadline_seconds, step, shown)
    if form == "json":
        print_json(status)
        return
    click.echo(ready_line(status))
    if engine.remedy and spec.far_nodes:
        note(f"memory is borrowed through {engine.name.value}: {engine.reason}; mend it: vmcoal doctor --for attach")
    note(f"next: vmcoal shell {name}   or, to grow it: vmcoal lend --help, vmcoal attach --help")


def has_run(name: str) -> bool:
    """Return whether QEMU ever came up for a VM. One whose first boot failed has nothing to keep: the next command
    line makes it anew. Raises `PrerequisiteError` if its spec cannot be read."""
    from vmcoal.controller.journal import has_booted

    read_spec(name)
    return has_booted(layout.vm_folders(name).journal)


def preflight() -> None:
    """Check what booting cannot do without; raises `PrerequisiteError` with the first remedy."""
    from vmcoal.host.checks import CHECKS, Duty, Level, run_checks
    from vmcoal.host.facts import Host

    for finding in run_checks(CHECKS, Host(), frozenset({Duty.BOOT})):
        if finding.level is Level.FAIL:
            raise PrerequisiteError(
                f"this host cannot boot a VM: {finding.description}: {finding.found}",
                hint=f"{finding.remedy}; all of it: vmcoal doctor --for boot",
            )


def prepare_files(spec: MachineSpec, folders: layout.VmFolders, size: int | None = None) -> MachineSpec:
    """Make what the machine needs on disk, where it is not there already: SSH key, disk layer, seed.

    ``size`` in bytes of the guest's disk, ``None`` for the image's own. Returns the spec with the SSH key.
    """
    from vmcoal.fabric.identity import load_identity

    key = load_identity(folders.ssh_key).public
    if isinstance(spec.boot, DiskBoot):
        from vmcoal.guest.overlay import make_overlay
        from vmcoal.guest.seed import make_seed

        if not folders.overlay.exists():
            make_overlay(spec.boot.image, spec.boot.format, folders.overlay, size=size)
        if spec.boot.seed:
            make_seed(folders.seed, name=spec.name, identity=spec.uuid, ssh_key=key)
    return msgspec.structs.replace(spec, ssh_key=key)


def _start(spec: MachineSpec, until: str, deadline: float, step: Report, shown: Steps) -> VmStatus:
    """Start the controller and wait until the guest answers; Ctrl-C leaves the VM running and says so."""
    import asyncio

    from vmcoal.controller.start import start_controller

    name = spec.name
    ends = time.monotonic() + deadline
    step(3, f"start QEMU with {spec.accel.value} ({spec.accel_reason})")
    status = asyncio.run(
        start_controller(name, spec, on_progress=lambda _: None, until="qemu", deadline=min(60.0, deadline))
    )
    if until == "qemu":
        return status
    step(4, "wait for the guest")
    try:
        left = max(1.0, ends - time.monotonic())
        return vm_call(name, "wait", WaitRequest(until="agent", deadline=left), result=VmStatus, deadline=left + 10)
    except KeyboardInterrupt as interrupt:
        shown.close(interrupt)
        note(f"VM {name} runs on; vmcoal status {name} shows it, vmcoal shutdown {name} ends it")
        raise
    except DeadlineError as error:
        raise DegradedError(
            f"VM {name} runs, but no agent answered in it within {format_duration(deadline)}",
            left=f"VM {name}",
            hint=f"vmcoal logs {name} console; without an agent nothing in the guest can be verified",
        ) from error


def _become_controller(spec: MachineSpec, folders: layout.VmFolders) -> None:
    from vmcoal.controller.lifecycle import save_spec

    save_spec(spec, folders)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "vmcoal.controller", spec.name, "--boot"])  # noqa: S606


def memory_engine(spec: MachineSpec) -> EngineChoice:
    """Return the engine that ``spec`` gets on this host; raises `PrerequisiteError` or `ConflictError` where the one
    that was asked for cannot be had."""
    from vmcoal.backends.choose import engine_choice

    return engine_choice(spec)


def check_metrics(address: str) -> None:
    """Raise what `vmcoal.metrics.http.check_address` does, before anything is started."""
    from vmcoal.metrics.http import check_address

    check_address(address)


def boot_plan(spec: MachineSpec, engine: EngineChoice) -> Plan:
    """Return what booting ``spec`` does, with QEMU's exact argv; descriptors of its sockets are numbered from 20."""
    from vmcoal.machine.argv import CHANNELS, qemu_argv

    folders = layout.vm_folders(spec.name)
    argv = qemu_argv(spec, folders, {channel: 20 + number for number, channel in enumerate(CHANNELS)})
    made: list[Step] = [Step("folders", f"make {folders.state} and {folders.runtime}", "this host")]
    if isinstance(spec.boot, DiskBoot):
        made.append(Step("overlay", f"make the disk layer {folders.overlay} over {spec.boot.image}", "this host"))
    preload = ", libvmcoal-qemu.so preloaded" if engine.name is MemoryEngineName.PAGER else ""
    made.append(Step("qemu", f"start QEMU under the VM's holder{preload}", "this host", ({"argv": argv},)))
    made.append(Step("wait", "wait for the guest's agent", "the guest"))
    headroom = counted(len(spec.far_nodes), "far node")
    if spec.far_nodes:
        far = spec.far_nodes[0]
        distances = ", ".join(str(each.distance) for each in spec.far_nodes)
        headroom += f" of {far.cpus} vCPU slots and {format_size(far.memory)} each, at distances {distances}"
    less = engine.name is MemoryEngineName.FUSE and engine.remedy is not None
    warning = (f"memory engine fuse: {engine.reason}; next: {engine.remedy}",) if less and spec.far_nodes else ()
    return Plan(
        "boot",
        f"boot VM {spec.name}: {vcpus(spec.cpus)}, {format_size(spec.memory)}, {headroom}; "
        f"{spec.accel.value} ({spec.accel_reason}); memory engine {engine.name.value} ({engine.reason})",
        tuple(made),
        warning,
    )


def ready_line(status: VmStatus) -> str:
    """Return one sentence on a VM that has booted."""
    far = len(status.nodes) - 1
    extras = [counted(far, "empty far node")] if far > 0 else []
    if status.ssh_port is not None:
        extras.append(f"ssh on port {status.ssh_port}")
    guest = f": {status.guest}" if status.guest else ""
    return (
        f"VM {status.name} is {status.state}{guest}; {vcpus(status.cpus)}, {format_size(status.memory)}, "
        f"{', '.join([*extras, status.accel.value])}"
    )
