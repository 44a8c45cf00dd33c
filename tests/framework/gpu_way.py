"""The way of a GPU's calls without a guest: a pump, and the guest's relay in a mount namespace of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from vmcoal.backends import nbd
from vmcoal.guest.images import guest_files
from vmcoal.holding.binaries import find_binary
from vmcoal.model.gpu import GpuServer

RELAY = """
import os, select, socket, sys
sys.path.insert(0, sys.argv[1])
import vmcoal_gpu as relay
listener = socket.socket(fileno=int(sys.argv[2]))
fd = listener.accept()[0].detach()
os.set_blocking(fd, False)
relay.CARRIER, relay.LIBRARY, relay.CUDA_LIBRARY = sys.argv[3:6]
relay.LDCONFIG = relay.CUDA_LINKS = relay.LIBRARIES = ()  # the machine's own cache and this checkout are not touched
services = tuple(map(int, sys.argv[6].split(",")))
carrier = relay.Relay(fd, relay.listen("gpu-test", services))
carrier.greet(20)
relay.show("gpu-test", services)
print("ready", flush=True)
carrier.run(os.pipe()[0])
carrier.close()
relay.hide("gpu-test")
print("ended:", carrier.why, flush=True)
"""


class Way:
    """A pump and a relay in front of a lent GPU, and programs that use it: what a guest would have, without one. They
    live in a mount namespace of their own, because the relay's places are fixed."""

    def __init__(self, tmp_path: Path, server: GpuServer, *, port: int | None = None) -> None:
        """``port`` is that of a relay before the lender's, if there is one."""
        services = ",".join(
            (["0,1"] if server.device.opencl else []) + (["2"] if server.device.cuda is not None else [])
        )
        key = tmp_path / "key"
        nbd.write_psk(key, server.psk_identity, server.psk)
        self.port = tmp_path / "port"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.port))
        self.listener.listen(1)
        self.relay = subprocess.Popen(
            [
                *("unshare", "-m", "sh", "-c"),
                'for place in /run /etc/OpenCL /etc/ld.so.conf.d; do mount -t tmpfs t $place || exit; done; exec "$@"',
                *("sh", sys.executable, "-B", "-c", RELAY, str(guest_files()), str(self.listener.fileno())),
                str(find_binary("vmcoal-gpu-relay")),
                str(find_binary("libvmcoal-pocl.so")),
                str(find_binary("libvmcoal-cuda.so")),
                services,
            ],
            pass_fds=[self.listener.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        to = ("--address", "127.0.0.1", "--port", str(port or server.port))
        self.check = [str(find_binary("vmcoal-gpu")), "check", "--key", str(key), *to]
        argv = [str(find_binary("vmcoal-gpu")), "pump", "--key", str(key), *to, "--socket", str(self.port)]
        self.pump = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert self.relay.stdout
        assert self.relay.stdout.readline() == "ready\n"

    def program(self, *arguments: str) -> subprocess.Popen[str]:
        """Start an OpenCL program where the relay is."""
        inside = ["nsenter", "-t", str(self.relay.pid), "-m", "--", *arguments]
        return subprocess.Popen(
            inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str) -> str:
        """Run an OpenCL program to its end and return what it printed."""
        with self.program(*arguments) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        return out

    def close(self) -> None:
        """End everything."""
        self.listener.close()
        for process in (self.pump, self.relay):
            process.kill()
            process.communicate()
