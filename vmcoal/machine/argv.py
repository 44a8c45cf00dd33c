"""From a machine's spec to QEMU's command line: pure, and the same for the same spec.

Decisions that are not obvious from the line itself:

- Node 0 is private anonymous memory: it keeps transparent huge pages, which shared memory on most hosts does not get.
  Paging of far memory needs shared files only for the DIMMs, and those come from the memory engine.
- There is no balloon, so no free-page reporting either: both punch holes behind the back of an engine that pages.
- Far vCPUs of a parked machine are ``-device`` arguments, not a larger ``-smp``: so exactly the slots that a far node
  offers are present, under the same ids as hot-plugged ones.
- The guest may reboot (no ``-no-reboot``). QEMU keeps what was plugged: DIMMs and vCPUs are then part of the machine
  that the firmware describes, and the guest comes up with all of them; the agent's boot id tells the controller.
- The user's own arguments come before the far nodes' buses: QEMU would put a device that names no bus on one of them.
- PCI addresses are fixed, so that adding a disk renames no network interface.
- The serial console is a socket and is logged to QEMU's stdout, a pipe that the holder drains into a bounded file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vmcoal.layout import VmFolders
from vmcoal.machine import names
from vmcoal.machine.spec import cores_per_socket
from vmcoal.model.machine import CpuMode, DiskBoot, FarNode, KernelBoot, MachineSpec
from vmcoal.model.units import MIB
from vmcoal.policy.distance import LOCAL, slit

CHANNELS = ("qmp", "agent", "qga", "console")
"""The names of the listening sockets that QEMU is given, keys of ``fds``."""

_AGENT_PORT = "org.vmcoal.agent.0"
_KEYS_FILE = "opt/org.vmcoal/authorized_keys"  # vmcoal.guest.images.FW_CFG_KEYS
_QGA_PORT = "org.qemu.guest_agent.0"
_VGA, _NET, _SERIAL, _RNG, _USB, _BOOT_DISK, _SEED, _FIRST_DISK = 1, 2, 3, 4, 5, 6, 7, 8
_FIRST_MEMORY_PORT, _FIRST_EXPANDER = 0x0E, 0x10
_MEMORY_CHASSIS = 0x80
_MMIO_MAX = 64  # MiB of 32-bit window for each root port
_MMIO_TOTAL = 768  # what of the gap below 4 GiB (about 1004 MiB on q35) the root ports may share


def qemu_argv(spec: MachineSpec, folders: VmFolders, fds: Mapping[str, int]) -> list[str]:
    """Return QEMU's argv; ``fds`` are the descriptor numbers of the listening sockets named in `CHANNELS`."""
    return [
        spec.qemu,
        *_process(spec),
        *_machine(spec),
        *_cpus(spec),
        *_memory(spec),
        *_numa(spec),
        *_channels(fds),
        *_boot(spec, folders),
        *_disks(spec, folders),
        *_net(spec),
        *_display(spec),
        *spec.qemu_args,
        *_memory_ports(spec),
        *_expanders(spec),
    ]


def mmio_reserve(ports: int) -> int:
    """Return the MiB of 32-bit window that each of ``ports`` root ports reserves: a power of two, 64 at most."""
    size = _MMIO_MAX
    while size > 1 and size * ports > _MMIO_TOTAL:
        size //= 2
    return size


def mac_address(identity: str) -> str:
    """Return a MAC address in QEMU's range that follows from the machine's UUID, so that it survives a new start."""
    tail = identity.replace("-", "")[-6:]
    return f"52:54:00:{tail[0:2]}:{tail[2:4]}:{tail[4:6]}"


def _blockdev(node: dict[str, Any]) -> list[str]:
    return ["-blockdev", json.dumps(node, separators=(",", ":"))]  # JSON: a file name may hold a comma


def _process(spec: MachineSpec) -> list[str]:
    # qemu-bridge-helper is a set-uid program that QEMU runs; graphics libraries start threads where they please
    helper = "allow" if spec.net.mode == "bridge" else "deny"
    window = "allow" if spec.display in {"gtk", "sdl"} else "deny"
    spawn = "allow" if "allow" in (helper, window) else "deny"
    return [
        "-name",
        f"guest={spec.name},debug-threads=on",
        "-uuid",
        spec.uuid,
        "-nodefaults",
        "-no-user-config",
        "-msg",
        "timestamp=on",
        "-sandbox",
        f"on,obsolete=deny,elevateprivileges={helper},spawn={spawn},resourcecontrol={window}",
    ]


def _machine(spec: MachineSpec) -> list[str]:
    machine = "q35,vmport=off,dump-guest-core=off"
    if isinstance(spec.boot, DiskBoot) and spec.boot.firmware == "uefi":
        machine += ",pflash0=uefi-code,pflash1=uefi-vars"
    return [
        "-machine",
        machine,
        "-accel",
        f"{spec.accel},thread=multi" if spec.accel == "tcg" else str(spec.accel),
        "-global",
        "ICH9-LPC.disable_s3=1",  # a sleeping guest answers neither agent nor hotplug
        "-global",
        "ICH9-LPC.disable_s4=1",
        "-rtc",
        "base=utc",
    ]


def _cpus(spec: MachineSpec) -> list[str]:
    cores, sockets = cores_per_socket(spec), len(spec.far_nodes) + 1
    argv = [
        "-cpu",
        spec.cpu_model,
        "-smp",
        f"{spec.cpus},sockets={sockets},dies=1,cores={cores},threads=1,maxcpus={cores * sockets}",
    ]
    if spec.cpu_mode is CpuMode.PARKED:
        driver = f"{spec.cpu_model.split(',')[0]}-x86_64-cpu"
        for far in spec.far_nodes:
            for core in range(far.cpus):
                where = f"socket-id={far.node},die-id=0,core-id={core},thread-id=0"
                argv += ["-device", f"{driver},id={names.cpu_id(far.node, core)},{where}"]
    return argv


def _memory(spec: MachineSpec) -> list[str]:
    headroom = sum(far.memory for far in spec.far_nodes)
    size = f"{spec.memory // MIB}M"
    limit = f",slots={spec.dimm_slots},maxmem={(spec.memory + headroom) // MIB}M" if headroom else ""
    return ["-m", f"size={size}{limit}", "-object", f"memory-backend-ram,id=near-ram,size={size}"]


def _numa(spec: MachineSpec) -> list[str]:
    argv = ["-numa", "node,nodeid=0,memdev=near-ram"]
    for far in spec.far_nodes:
        argv += ["-numa", f"node,nodeid={far.node}"]
    nodes = [0, *(far.node for far in spec.far_nodes)]
    # a socket for each node, also for one that will only get memory: without an entry in the SRAT it has no Linux node
    for node in nodes:
        argv += ["-numa", f"cpu,node-id={node},socket-id={node}"]
    matrix = slit([LOCAL, *(far.distance for far in spec.far_nodes)])
    for i, source in enumerate(nodes):
        for j, target in enumerate(nodes):
            if i != j:
                argv += ["-numa", f"dist,src={source},dst={target},val={matrix[i][j]}"]
    return argv


def _channels(fds: Mapping[str, int]) -> list[str]:
    argv: list[str] = []
    for channel in CHANNELS:
        log = ",logfile=/dev/stdout,logappend=on" if channel == "console" else ""
        argv += ["-chardev", f"socket,id={channel},fd={fds[channel]},server=on,wait=off{log}"]
    return [
        *argv,
        "-mon",
        "chardev=qmp,mode=control",
        "-serial",
        "chardev:console",
        "-device",
        f"virtio-serial-pci,id=ports,addr={_SERIAL:#x}",
        "-device",
        f"virtserialport,id={names.AGENT_PORT},bus=ports.0,nr=1,chardev=agent,name={_AGENT_PORT}",
        "-device",
        f"virtserialport,id=qga-port,bus=ports.0,nr=2,chardev=qga,name={_QGA_PORT}",
        "-object",
        "rng-builtin,id=rng",
        "-device",
        f"virtio-rng-pci,rng=rng,addr={_RNG:#x}",
    ]


def kernel_arguments(spec: MachineSpec, boot: KernelBoot) -> str:
    """Return the guest kernel's command line: ours first, so that the user's own ``append`` wins."""
    words = ["console=ttyS0"]
    if spec.cpu_mode is CpuMode.PARKED:
        words.append(f"maxcpus={spec.cpus}")
    if any(far.memory for far in spec.far_nodes):
        # Far memory takes only movable pages. Without these two, a small node 0 fills up with movable pages while far
        # memory is free, and the kernel's own allocations end in the OOM killer.
        words += ["memhp_default_state=online_movable", "movablecore=60%"]
        words.append('sysctl.vm.lowmem_reserve_ratio="256 4 4 0 0"')
    return " ".join([*words, boot.append]).rstrip()


def _boot(spec: MachineSpec, folders: VmFolders) -> list[str]:
    boot = spec.boot
    if isinstance(boot, KernelBoot):
        initrd = [] if boot.initrd is None else ["-initrd", boot.initrd]
        # a comma in the key's comment is doubled, as QEMU wants it
        key = None if spec.ssh_key is None else spec.ssh_key.replace(",", ",,")
        keys = [] if key is None else ["-fw_cfg", f"name={_KEYS_FILE},string={key}"]
        return ["-kernel", boot.kernel, *initrd, "-append", kernel_arguments(spec, boot), *keys]
    argv: list[str] = []
    if boot.firmware == "uefi":
        for node, path, readonly in (
            ("uefi-code", boot.uefi_code, True),
            ("uefi-vars", str(folders.uefi_vars), False),
        ):
            file = {"driver": "file", "filename": path}
            argv += _blockdev({"driver": "raw", "node-name": node, "read-only": readonly, "file": file})
    return argv


def _disk(
    node: str, driver: str, path: str, address: int, *, readonly: bool = False, bootindex: bool = False
) -> list[str]:
    file = {"driver": "file", "filename": path, "discard": "unmap"}
    argv = _blockdev({"driver": driver, "node-name": node, "read-only": readonly, "discard": "unmap", "file": file})
    device = f"virtio-blk-pci,id={node}-device,drive={node},iothread=io,addr={address:#x}"
    return [*argv, "-device", device + (",bootindex=0" if bootindex else "")]


def _disks(spec: MachineSpec, folders: VmFolders) -> list[str]:
    argv: list[str] = []
    if isinstance(spec.boot, DiskBoot):
        argv += _disk("root", "qcow2", str(folders.overlay), _BOOT_DISK, bootindex=True)
        if spec.boot.seed:
            argv += _disk("seed", "raw", str(folders.seed), _SEED, readonly=True)
    for index, disk in enumerate(spec.disks):
        argv += _disk(f"disk{index}", disk.format, disk.path, _FIRST_DISK + index, readonly=disk.readonly)
    # its own thread: a request that waits on a lost far page must not hold the monitor
    return ["-object", "iothread,id=io", *argv] if argv else []


def _net(spec: MachineSpec) -> list[str]:
    net = spec.net
    if net.mode == "none":
        return []
    if net.mode == "user":
        backend = "user,id=net"
        if net.ssh_port is not None:
            backend += f",hostfwd=tcp:127.0.0.1:{net.ssh_port}-:22"
    elif net.mode == "tap":
        backend = f"tap,id=net,ifname={net.device},script=no,downscript=no"
    else:
        backend = f"bridge,id=net,br={net.device}"
    # an empty romfile: the machine boots from its disk or kernel, and iPXE would cost a second
    device = f"virtio-net-pci,netdev=net,mac={mac_address(spec.uuid)},romfile=,addr={_NET:#x}"
    return ["-netdev", backend, "-device", device]


def _display(spec: MachineSpec) -> list[str]:
    if spec.display == "none":
        return ["-display", "none"]
    kind, _, options = spec.display.partition("=")
    screen = {"vnc": ["-vnc", options], "spice": ["-spice", options]}.get(kind, ["-display", kind])
    return [
        *screen,
        "-device",
        f"VGA,addr={_VGA:#x}",
        "-device",
        f"qemu-xhci,id=usb,addr={_USB:#x}",
        "-device",
        "usb-tablet,bus=usb.0",  # absolute pointer: no grabbing
    ]


def _memory_ports(spec: MachineSpec) -> list[str]:
    """A root port for each far node's virtio-mem device, eight to a slot of pcie.0.

    Not behind the expander: QEMU's virtio-mem has had MSI-X only lately, and legacy interrupts from behind an expander
    do not arrive, so the guest would never hear of a new size. The device names its node itself.
    """
    argv: list[str] = []
    for index, far in enumerate(far for far in spec.far_nodes if far.memory):
        address = f"{_FIRST_MEMORY_PORT + index // 8:#x}.{index % 8}"
        where = f"bus=pcie.0,chassis={_MEMORY_CHASSIS},slot={index + 1},addr={address},multifunction=on"
        argv += ["-device", f"pcie-root-port,id={names.memory_port_id(far.node)},{where},io-reserve=0"]
    return argv


def _expanders(spec: MachineSpec) -> list[str]:
    argv: list[str] = []
    ports = sum(far.ports for far in spec.far_nodes)
    low = f"io-reserve=0,mem-reserve={mmio_reserve(ports)}M"
    slot = len(spec.far_nodes)
    for index, far in enumerate(spec.far_nodes):
        argv += ["-device", _expander(far, _FIRST_EXPANDER + index)]
        window = far.gpu_window // MIB
        for port in range(far.ports):
            slot += 1  # guests name hotplug slots by this number alone, so it is unique in the machine
            where = f"bus={names.expander_id(far.node)},chassis={far.node},slot={slot},addr={port:#x}"
            argv += [
                "-device",
                f"pcie-root-port,id={names.port_id(far.node, port)},{where},{low},pref64-reserve={window}M",
            ]
    return argv


def _expander(far: FarNode, address: int) -> str:
    where = f"bus=pcie.0,bus_nr={far.bus_nr},numa_node={far.node},addr={address:#x}"
    return f"pxb-pcie,id={names.expander_id(far.node)},{where}"
