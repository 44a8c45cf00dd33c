"""The machine that ``vmcoal boot`` boots: made of its options, or the one that the VM has already."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from vmcoal.cli.config import BootDefaults
from vmcoal.cli.output import note
from vmcoal.cli.vm import read_spec
from vmcoal.errors import ConflictError, PrerequisiteError, UsageError
from vmcoal.model.engine import MemoryEngineName
from vmcoal.model.machine import Accel, Disk, DiskBoot, KernelBoot, MachineSpec, Net

Report = Callable[..., None]
"""Called with a step's number, its text, and a fraction and detail where known."""

_MACHINE_OPTIONS = (
    *(
        "image",
        "image_size",
        "kernel",
        "initrd",
        "append",
        "firmware",
        "seed",
        "disks",
        "cpus",
        "memory",
        "accel",
        "qemu",
    ),
    *("far_nodes", "far_cpus", "far_memory", "gpu_window", "net", "ssh_port", "display", "metrics", "qemu_args"),
)
"""Options that make a machine; a VM that has one is booted again without them. The memory engine is none: the guest
does not see it."""

_ASKED_FOR = "asked for"
_CHOOSE = "choose image and machine"


def refuse_changes(name: str, options: dict[str, Any]) -> None:
    """Raise `ConflictError` where options would make another machine of a VM that exists."""
    given = [option for option in _MACHINE_OPTIONS if options[option] not in (None, ())]
    if given:
        flags = ", ".join("--disk" if option == "disks" else "--" + option.replace("_", "-") for option in given)
        raise ConflictError(
            f"VM {name} exists and has a machine of its own; {flags} would make another one",
            hint=f"vmcoal boot {name} boots it as it is; vmcoal delete {name} removes it with its disk layer",
        )


def same_machine(name: str, options: dict[str, Any]) -> MachineSpec:
    """Return the spec of a VM that is off, with what this host can do now."""
    spec = read_spec(name)
    if options["memory_engine"]:
        spec = msgspec.structs.replace(spec, memory_engine=MemoryEngineName(options["memory_engine"]))
    # what this host can do may have changed since, and the port may be taken by now
    accel, reason, _ = choose_accel("auto", spec.qemu)
    if spec.accel is not accel and not (spec.accel is Accel.TCG and spec.accel_reason == _ASKED_FOR):
        from vmcoal.machine.spec import choose_cpu_mode

        mode = choose_cpu_mode(accel, spec.boot.release)
        model = "host" if accel is Accel.KVM else "max"
        spec = msgspec.structs.replace(spec, accel=accel, accel_reason=reason, cpu_mode=mode, cpu_model=model)
    if spec.net.ssh_port is not None:
        spec = msgspec.structs.replace(
            spec, net=msgspec.structs.replace(spec.net, ssh_port=free_port(spec.net.ssh_port))
        )
    return spec


def new_machine(name: str, options: dict[str, Any], defaults: BootDefaults, step: Report, dry_run: bool) -> MachineSpec:
    """Return the spec of a new VM; builds the default image where it is needed, except for a dry run."""
    from vmcoal.machine.spec import make_spec

    def chosen(option: str, default: Any) -> Any:
        return default if options[option] is None else options[option]

    qemu = options["qemu"] or "qemu-system-x86_64"
    accel, reason, version = choose_accel(chosen("accel", defaults.accel), qemu)
    step(2, _CHOOSE)
    source = boot_source(name, options, chosen("firmware", defaults.firmware), step, dry_run)
    net = parse_net(chosen("net", defaults.net))
    if net.mode == "user":
        if (port := options["ssh_port"]) and free_port(port) != port:
            raise ConflictError(f"port {port} of 127.0.0.1 is in use", hint="another --ssh-port, or none: it is chosen")
        net = msgspec.structs.replace(net, ssh_port=options["ssh_port"] or free_port())
    elif options["ssh_port"]:
        raise UsageError("--ssh-port needs user-mode networking", hint="leave --net away, or reach the guest directly")
    return make_spec(
        name=name,
        accel=accel,
        accel_reason=reason,
        qemu=qemu,
        qemu_version=version,
        boot=source,
        cpus=chosen("cpus", defaults.cpus),
        memory=chosen("memory", defaults.memory_bytes),
        far_nodes=chosen("far_nodes", defaults.far_nodes),
        far_cpus=chosen("far_cpus", defaults.far_cpus),
        far_memory=chosen("far_memory", defaults.far_memory_bytes),
        gpu_window=chosen("gpu_window", defaults.gpu_window_bytes),
        disks=[parse_disk(text) for text in options["disks"]],
        net=net,
        display=chosen("display", defaults.display),
        metrics=options["metrics"],
        memory_engine=MemoryEngineName(chosen("memory_engine", defaults.memory_engine)),
        qemu_args=parse_qemu_args(options["qemu_args"] or ""),
    )


def choose_accel(wanted: str, qemu: str) -> tuple[Accel, str, tuple[int, int]]:
    """Return the acceleration, why, and QEMU's version; raises `PrerequisiteError` where KVM was wanted and fails."""
    from vmcoal.host.accel import find_qemu, probe_accel, qemu_version

    if wanted == "tcg":
        return Accel.TCG, _ASKED_FOR, qemu_version(find_qemu(qemu))[:2]
    probe = probe_accel(qemu)
    if probe.kvm:
        return Accel.KVM, probe.reason, probe.qemu_version[:2]
    if wanted == "kvm":
        raise PrerequisiteError(f"KVM does not run guests here: {probe.reason}", hint=probe.remedy or "--accel tcg")
    return Accel.TCG, f"no KVM: {probe.reason}", probe.qemu_version[:2]


def boot_source(
    name: str, options: dict[str, Any], firmware: str, step: Report, dry_run: bool
) -> KernelBoot | DiskBoot:
    """Return what is booted: the image or kernel that was given, else the default image."""
    image, kernel = options["image"], options["kernel"]
    if image and kernel:
        raise UsageError("--image and --kernel exclude each other", hint="give one of them, or none")
    if (options["initrd"] or options["append"]) and not kernel:
        raise UsageError("--initrd and --append need --kernel", hint="give --kernel FILE")
    if not image and (options["firmware"] or options["seed"] or options["image_size"]):
        raise UsageError("--firmware, --seed and --image-size need --image", hint="give --image FILE")
    if image:
        from vmcoal.guest.overlay import inspect_image
        from vmcoal.guest.seed import should_seed
        from vmcoal.guest.store import Store

        found = inspect_image(image)
        built = Store().owner(Path(found.path))
        seed, why = options["seed"], "as you said"
        if seed is None:
            seed, why = should_seed(Path(found.path))
        if not seed:
            note(f"no cloud-init seed is attached: {why}")
        return DiskBoot(
            image=found.path,
            format=found.format,
            firmware=firmware,
            seed=seed,
            release=built.release if built else None,
        )
    if kernel:
        return KernelBoot(kernel, options["initrd"], options["append"] or "console=ttyS0")
    return default_source(name, step, dry_run)


def default_source(name: str, step: Report, dry_run: bool) -> KernelBoot:
    """Return the default image, built if there is none; raises `PrerequisiteError` in a dry run without one."""
    from vmcoal.guest.images import default_boot, ensure_default_image, list_images

    if dry_run:
        built = [image for image in list_images() if image.kind == "default"]
        if not built:
            raise PrerequisiteError("the default image is not built yet", hint="vmcoal image build")
        found = default_boot(built[0])
    else:
        found = ensure_default_image(lambda text, fraction: step(2, _CHOOSE, fraction, text))
    append = f"{found.append} hostname={name}"
    return KernelBoot(str(found.kernel), str(found.initrd), append, found.release)


def parse_qemu_args(text: str) -> list[str]:
    """Return the arguments in ``text``, quoted as for a shell; raises `UsageError`. `make_spec` checks them."""
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--qemu-args: {error}", hint="quote it as for a shell") from error


def parse_net(text: str) -> Net:
    """Return the network of ``user``, ``none``, ``tap=DEVICE`` or ``bridge=DEVICE``; `make_spec` checks it."""
    mode, _, device = text.partition("=")
    return Net(mode=mode, device=device or None)


def parse_disk(text: str) -> Disk:
    """Return the disk of ``FILE[,ro][,format=raw|qcow2]``; without a format its header says which it is.

    Raises `UsageError`, and what `vmcoal.guest.overlay.inspect_image` raises.
    """
    path, *words = text.split(",")
    readonly, form = False, None
    for word in words:
        if word == "ro":
            readonly = True
        elif word in ("format=raw", "format=qcow2"):
            form = word.removeprefix("format=")
        else:
            raise UsageError(f"--disk: {word!r} is not known", hint="write it as FILE, FILE,ro or FILE,format=qcow2")
    if form is None:
        from vmcoal.guest.overlay import inspect_image

        form = inspect_image(path, bootable=False).format
    return Disk(path, form, readonly)


def free_port(wanted: int = 0) -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses now: ``wanted`` if it is free, else another one."""
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", wanted))
        except OSError:
            return free_port()
        return int(sock.getsockname()[1])
