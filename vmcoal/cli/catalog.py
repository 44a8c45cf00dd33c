"""Every command by name: where it is and what it is for. Plain data, so that ``vmcoal --help`` imports nothing else."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One command: its section in the help, ``module:attribute`` below vmcoal.cli, and its summary."""

    section: str
    target: str
    summary: str


MACHINES = "Machines"
GUEST = "Inside a machine"
RESOURCES = "Borrowed resources"
LENDING = "Lending"
HOST = "This host"
SECTIONS = (MACHINES, RESOURCES, GUEST, LENDING, HOST)

COMMANDS: dict[str, Entry] = {
    "boot": Entry(MACHINES, "boot:boot", "Boot a VM that can grow"),
    "status": Entry(MACHINES, "status:status", "Show the VMs, or one of them with its nodes and attachments"),
    "shutdown": Entry(MACHINES, "lifecycle:shutdown", "Power a VM off and give everything back"),
    "delete": Entry(MACHINES, "lifecycle:delete", "Remove a stopped VM: its disk layer, keys and logs"),
    "logs": Entry(MACHINES, "lifecycle:logs", "Print a VM's logs"),
    "metrics": Entry(MACHINES, "status:metrics", "Print a VM's metrics in Prometheus' text format"),
    "controller": Entry(MACHINES, "lifecycle:controller", "Run a VM's controller in the foreground"),
    "attach": Entry(RESOURCES, "attach:attach", "Plug a lender's CPUs, memory and GPUs into a running VM"),
    "detach": Entry(RESOURCES, "attach:detach", "Drain, unplug and give back what a lender lent"),
    "move": Entry(RESOURCES, "move:move", "Move borrowed memory to another lender, or home, while it is used"),
    "tune": Entry(RESOURCES, "tune:tune", "Show or change how a VM's borrowed memory behaves"),
    "pair": Entry(RESOURCES, "lenders:pair", "Make a lender and this user known to each other"),
    "unpair": Entry(RESOURCES, "lenders:unpair", "Forget a lender"),
    "lenders": Entry(RESOURCES, "lenders:lenders", "List the paired lenders, what they offer and how far they are"),
    "ping": Entry(RESOURCES, "lenders:ping", "Measure the link to a lender and the distance it stands for"),
    "exec": Entry(GUEST, "guest:exec_", "Run a command in a VM"),
    "shell": Entry(GUEST, "guest:shell", "Open a shell in a VM"),
    "console": Entry(GUEST, "guest:console", "Connect the terminal to a VM's serial console"),
    "ssh": Entry(GUEST, "guest:ssh", "Log in to a VM over SSH"),
    "lend": Entry(LENDING, "lend:lend", "Lend this host's CPUs, memory and GPUs"),
    "cordon": Entry(LENDING, "lend:cordon", "Lend nothing new; what is lent stays lent"),
    "drain": Entry(LENDING, "lend:drain", "Ask borrowers for everything back, and take it after a deadline"),
    "uncordon": Entry(LENDING, "lend:uncordon", "Lend again"),
    "lab": Entry(HOST, "lab:lab", "Run several virtual hosts with KVM and bad links on this machine"),
    "doctor": Entry(HOST, "doctor:doctor", "Check what this host can do and say how to mend what is missing"),
    "image": Entry(HOST, "image:image", "Build and list guest images"),
    "completion": Entry(HOST, "about:completion", "Print a shell's completion script"),
    "version": Entry(HOST, "about:version", "Print the versions of vmcoal and of what it uses"),
}

ALIASES = {"rm": "delete"}

EXAMPLE = (
    "vmcoal boot",
    "vmcoal lend --cpus 2 --memory 1G",
    "vmcoal lend pair",
    "vmcoal pair 127.0.0.1",
    "vmcoal attach --cpus 2 --memory 512M",
)


def help_text() -> str:
    """Return what ``vmcoal --help`` prints."""
    lines = [
        "Usage: vmcoal [--help] [--version] COMMAND [ARGS]...",
        "",
        "  Grow a running VM with CPUs, memory and GPUs borrowed from nearby hosts.",
    ]
    for section in SECTIONS:
        lines += ["", f"{section}:"]
        lines += [f"  {name:<11} {entry.summary}" for name, entry in COMMANDS.items() if entry.section == section]
    lines += ["", "Example:", *(f"  {line}" for line in EXAMPLE)]
    lines += ["", "vmcoal COMMAND --help says more."]
    return "\n".join(lines) + "\n"
