"""vmcoal-cuda on its own: no sandbox, no lease, no guest."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from framework.cuda import program
from framework.native import helper
from vmcoal.holding.binaries import find_binary


class Server:
    """vmcoal-cuda without a sandbox, and the folder that tells programs of it."""

    def __init__(self, folder: Path, memory: int = 256 << 20) -> None:
        self.path = folder / "cuda"
        self.log = folder / "log"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(16)
        (folder / "cuda.d").mkdir()
        (folder / "cuda.d/gpu-1").write_text(f"{self.path}\n")
        self.env = {**os.environ, "VMCOAL_CUDA_FOLDER": str(folder / "cuda.d")}
        argv = [str(find_binary("vmcoal-cuda")), "serve", "--listen-fd", str(self.listener.fileno()), "--device", "0"]
        argv += ["--memory", str(memory), "--driver", str(helper("libvmcoal-cuda-standin.so"))]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(argv, pass_fds=[self.listener.fileno()], stderr=log)

    def run(self, *what: str) -> subprocess.CompletedProcess[str]:
        """Run the program to its end."""
        return subprocess.run(program(*what), env=self.env, capture_output=True, text=True, timeout=60, check=False)

    def start(self, *what: str) -> subprocess.Popen[str]:
        """Start the program."""
        return subprocess.Popen(
            program(*what),
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def connect(self) -> socket.socket:
        """Connect as a program does."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(str(self.path))
        return client

    def close(self) -> None:
        """End it; the programs' processes end with it."""
        self.process.kill()
        self.process.wait()
        self.listener.close()
