#!/usr/bin/env python3
"""vmcoal GPU relay: makes a lent GPU usable in the guest while it is attached.

vmcoal's controller runs it in the guest through the agent, with what it starts and brings beside it:

    vmcoal_gpu.py up NAME --node N [--cuda] [--no-opencl]
                                      find the PCI function of port NAME, check it, start the relay; prints JSON
    vmcoal_gpu.py down NAME           end the relay of port NAME

The relay, vmcoal-gpu-relay (dataplane/gpu), carries the byte streams of programs (Unix sockets in /run/vmcoal) over one
virtio-serial port (docs/internals/gpu-protocol.md). It lives as long as the port's other side does: when the device is
unplugged, the lender is lost or the host ends it, every program's connection is closed, and the ICD file that OpenCL
loaders look for, or the libcuda.so.1 that the dynamic linker found, is gone with it. Needs Linux, Python 3.9 or later
and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import socket
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RUN = "/run/vmcoal"
DEVICES = RUN + "/opencl.d"
VENDORS = "/etc/OpenCL/vendors"
ICD = VENDORS + "/vmcoal.icd"
LIBRARY = "libvmcoal-pocl.so"
CUDA_DEVICES = RUN + "/cuda.d"
CUDA_LIBRARY = "libvmcoal-cuda.so"
CARRIER = "vmcoal-gpu-relay"
CUDA_LINKS = ("libcuda.so.1", "libcuda.so")
LINKER = "/etc/ld.so.conf.d/000-vmcoal-gpu.conf"  # it goes before a driver that the guest may have of its own
LDCONFIG = ("/sbin/ldconfig", "/usr/sbin/ldconfig", "/usr/bin/ldconfig")
LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")  # what the linker looks into without a cache
OPENCL, CUDA = (0, 1), (2,)  # the services of each
SERVICES = 3

GREETING = 10.0


class RelayError(Exception):
    """Why the GPU cannot be used, for people."""


def read(path: str) -> str:
    """Return a small file's text, or an empty one."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16).strip()
    except OSError:
        return ""


def remove(path: str) -> None:
    """Remove a file if it is there."""
    try:
        os.unlink(path)
    except OSError:
        pass


# ---------------------------------------------------------------- the device


def find_port(name: str, sysfs: str, until: float) -> str:
    """Return the sysfs folder of the virtio port called ``name``, once it has appeared."""
    folder = sysfs + "/class/virtio-ports"
    while True:
        for port in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if read(f"{folder}/{port}/name") == name:
                return f"{folder}/{port}"
        if time.monotonic() >= until:
            raise RelayError(f"the guest's kernel does not show port {name}")
        time.sleep(0.02)


def describe(port: str) -> dict[str, Any]:
    """Return the PCI function behind a port: address, class, numa_node, and the BARs that have no address.

    An unassigned BAR shows as a resource with flags and a size but no start (Linux, drivers/pci/pci-sysfs.c).
    """
    path = os.path.realpath(port)
    found = re.findall(r"/([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(?=/)", path)
    if not found:
        raise RelayError("the port is behind no PCI device")
    folder = path[: path.rindex(found[-1]) + len(found[-1])]
    unassigned = []
    for number, line in enumerate(read(folder + "/resource").splitlines()[:6]):
        start, end, flags = (int(word, 16) for word in line.split())
        if flags and (end == 0 or start == 0):
            unassigned.append(number)
    node = read(folder + "/numa_node")
    return {
        "address": found[-1],
        "class": read(folder + "/class"),
        "node": int(node) if node else -1,
        "unassigned": unassigned,
        "loader": has_loader(),
    }


def has_loader() -> bool:
    """Whether programs of this guest find an OpenCL loader."""
    folders = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/lib/x86_64-linux-gnu")
    return any(os.path.exists(f"{folder}/libOpenCL.so.1") for folder in folders)


def open_port(port: str, until: float) -> int:
    """Open a port whose host side is connected; makes its node where no udev does."""
    node = "/dev/" + os.path.basename(port)
    if not os.path.exists(node):
        major, _, minor = read(port + "/dev").partition(":")
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(int(major), int(minor)))
    while True:
        try:
            fd = os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= until:
                raise RelayError(f"{node}: {error.strerror}") from error
            time.sleep(0.05)
            continue
        try:
            return wait_host(fd, until)
        except BaseException:
            os.close(fd)
            raise


def wait_host(fd: int, until: float) -> int:
    """Return ``fd`` once the host side of the port is connected."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while True:
        events = dict(poll.poll(100)).get(fd, 0)
        if events & select.POLLOUT and not events & select.POLLHUP:
            return fd
        if time.monotonic() >= until:
            raise RelayError("the host's side of the port is not connected")
        if events:
            time.sleep(0.02)


# ---------------------------------------------------------------- the streams


class Relay:
    """The process that carries the streams of all programs over the port ``fd``: vmcoal-gpu-relay, which is beside this
    file. It ends with us; ``listeners`` are by the service that they are for, and become its own."""

    def __init__(self, fd: int, listeners: dict[int, socket.socket]) -> None:
        said, tell = os.pipe()
        os.set_inheritable(tell, True)
        words = [here(CARRIER), str(fd)]
        for service, listener in listeners.items():
            os.set_inheritable(listener.fileno(), True)
            words.append(f"{service}:{listener.fileno()}")
        os.set_inheritable(fd, True)
        self.said = said
        self.why = ""
        self.pid = os.fork()
        if not self.pid:
            try:
                os.dup2(tell, 1)
                os.execv(words[0], words)
            finally:
                os._exit(127)
        for listener in listeners.values():
            listener.close()
        os.close(fd)
        os.close(tell)

    def line(self, seconds: float | None = None) -> str:
        """Return the next line that it says, or nothing once it has ended. Raises `RelayError` after ``seconds``."""
        line = b""
        until = None if seconds is None else time.monotonic() + seconds
        while not line.endswith(b"\n"):
            if until is not None and not select.select([self.said], [], [], max(0.0, until - time.monotonic()))[0]:
                raise RelayError("the lender does not answer")
            byte = os.read(self.said, 1)
            if not byte:
                break
            line += byte
        return line.decode("utf-8", "replace").strip()

    def greet(self, seconds: float) -> None:
        """Return once the lender has answered; raises `RelayError`."""
        said = self.line(seconds)
        if said != "ready":
            raise RelayError(said or "vmcoal-gpu-relay does not run here")

    def run(self, wake: int) -> None:
        """Return when it has ended, and say `why`, or when ``wake`` can be read."""
        if self.said in select.select([self.said, wake], [], [])[0]:
            self.why = self.line()

    def close(self) -> None:
        """End it: programs get an error at once."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.said)


# ---------------------------------------------------------------- what programs find


def sockets_of(name: str) -> list[str]:
    """Return the paths of a port's sockets, one for each service."""
    return [f"{RUN}/{name}.{number}" for number in range(1, SERVICES + 1)]


def listen(name: str, services: tuple[int, ...] = OPENCL) -> dict[int, socket.socket]:
    """Return listening sockets that every user of the guest may connect to, by service."""
    os.makedirs(RUN, 0o755, exist_ok=True)
    listeners = {}
    for service in services:
        path = sockets_of(name)[service]
        remove(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        os.chmod(path, 0o666)  # noqa: S103
        sock.listen(16)
        sock.setblocking(False)
        listeners[service] = sock
    return listeners


def write(path: str, text: str) -> None:
    """Write a file that everybody may read, whole or not at all."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    with open(path + ".new", "w") as file:
        file.write(text)
    os.chmod(path + ".new", 0o644)
    os.rename(path + ".new", path)


def here(name: str) -> str:
    """Return the path of a file beside this one."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), name)


def show(name: str, services: tuple[int, ...] = OPENCL) -> None:
    """Let programs find the device: OpenCL's by an ICD file, CUDA's by the dynamic linker."""
    if set(OPENCL) <= set(services):
        write(f"{DEVICES}/{name}", f"@{name}:1/0\n")
        write(ICD, here(LIBRARY) + "\n")
    if set(CUDA) <= set(services):
        write(f"{CUDA_DEVICES}/{name}", sockets_of(name)[CUDA[0]] + "\n")
        os.makedirs(here("lib"), 0o755, exist_ok=True)
        for link in CUDA_LINKS:
            symlink(here("lib/" + link))
        try:
            show_linker()
        except OSError:
            pass  # an image that cannot be written to: programs need LD_LIBRARY_PATH then


def symlink(path: str) -> None:
    """Make ``path`` lead to the CUDA library; what is there already stays."""
    if not os.path.lexists(path):
        os.symlink(here(CUDA_LIBRARY), path)


def show_linker() -> None:
    """Let the dynamic linker find libcuda.so.1: by its configuration, or without an ldconfig in one of its folders."""
    if ldconfig():
        write(LINKER, here("lib") + "\n")
        tell_linker()
        return
    for folder in LIBRARIES:
        if os.path.isdir(folder):
            for link in CUDA_LINKS:
                symlink(f"{folder}/{link}")
            return


def hide_linker() -> None:
    """Undo `show_linker`. Idempotent."""
    if os.path.exists(LINKER):
        remove(LINKER)
        tell_linker()
    for path in (f"{folder}/{link}" for folder in LIBRARIES for link in CUDA_LINKS):
        if os.path.islink(path) and os.readlink(path) == here(CUDA_LIBRARY):
            remove(path)


def ldconfig() -> str:
    """Return the path of the guest's ldconfig, or nothing."""
    return next((path for path in LDCONFIG if os.path.exists(path)), "")


def tell_linker() -> None:
    """Have the dynamic linker read its configuration."""
    program = ldconfig()
    if not program:
        return
    pid = os.fork()
    if not pid:
        try:
            os.execv(program, [program, "-X"])
        finally:
            os._exit(1)
    os.waitpid(pid, 0)


def hide(name: str) -> None:
    """Let nobody find the device; with the last one the ICD file and libcuda.so.1 go too."""
    remove(f"{DEVICES}/{name}")
    remove(f"{CUDA_DEVICES}/{name}")
    for path in sockets_of(name):
        remove(path)
    if not entries(DEVICES):
        remove(ICD)
    if not entries(CUDA_DEVICES):
        hide_linker()


def entries(folder: str) -> list[str]:
    """Return what is in a folder, or nothing."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def pid_file(name: str) -> str:
    """Return where the relay of a port writes its pid."""
    return f"{RUN}/{name}.pid"


# ---------------------------------------------------------------- commands


def up(
    name: str, node: int, sysfs: str, seconds: float, keep: bool = False, services: tuple[int, ...] = OPENCL
) -> dict[str, Any]:
    """Check the device of port ``name`` and start its relay for ``services``; returns what the device is.

    ``keep`` leaves a relay alone that runs already; ``node`` the NUMA node it must be in. Raises `RelayError`; nothing
    is left behind then.
    """
    until = time.monotonic() + seconds
    port = find_port(name, sysfs, until)
    device = describe(port)
    if device["unassigned"]:
        raise RelayError(f"BAR {device['unassigned'][0]} of {device['address']} got no address")
    if device["node"] != node:
        device["wrong_node"] = True
    if keep and running(name):
        return device
    down(name)
    ours, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        with os.fdopen(ours) as file:
            said = file.read()
        os.wait()
        if said != "ready":
            raise RelayError(said or "the relay ended at its start")
        return device
    os.close(ours)
    os.setsid()
    if os.fork():
        os._exit(0)
    serve(name, port, theirs, until, services)
    os._exit(0)


def serve(name: str, port: str, told: int, until: float, services: tuple[int, ...]) -> None:
    """Be the relay; writes ``ready`` to ``told``, or why not."""
    relay = None
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # to be woken by it: the relay ends then
        wake, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.chdir("/")
        fd = open_port(port, until)
        relay = Relay(fd, listen(name, services))
        relay.greet(min(until - time.monotonic(), GREETING))
        with open(pid_file(name), "w") as file:
            file.write(str(os.getpid()))
        show(name, services)
        os.write(told, b"ready")
        os.close(told)
        told = -1
        relay.run(wake)
    except (RelayError, OSError) as error:
        if told >= 0:
            os.write(told, str(error).encode("utf-8", "replace")[:500])
    finally:
        hide(name)
        remove(pid_file(name))
        if relay is not None:
            relay.close()


def running(name: str) -> int:
    """Return the pid of the relay of a port, or 0. The pid in its file may be another program's by now."""
    pid = read(pid_file(name))
    return int(pid) if pid.isdigit() and name in read(f"/proc/{pid}/cmdline").split("\0") else 0


def down(name: str) -> None:
    """End the relay of port ``name`` and take away what it showed. Idempotent."""
    pid = running(name)
    if pid:
        process = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        if not select.select([process], [], [], 5.0)[0]:
            os.kill(pid, signal.SIGKILL)
            select.select([process], [], [], 5.0)
        os.close(process)
    hide(name)
    remove(pid_file(name))


def main(argv: list[str]) -> int:
    """Run a command; the answer is one line of JSON."""
    import argparse

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["up", "down"])
    parser.add_argument("name")
    parser.add_argument("--node", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=20.0)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--sysfs", default="/sys")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--no-opencl", action="store_true")
    options = parser.parse_args(argv)
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,47}", options.name):
        parser.error(f"{options.name!r} is no name of a port")
    try:
        answer: dict[str, Any] = {}
        if options.command == "up":
            services = (() if options.no_opencl else OPENCL) + (CUDA if options.cuda else ())
            answer = up(options.name, options.node, options.sysfs, options.deadline, options.keep, services)
        else:
            down(options.name)
    except (RelayError, OSError) as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
