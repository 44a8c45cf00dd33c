"""Real programs for measurements: memcached with its load, and HPC Challenge's kernels built from its own sources."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from framework.native import build

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "programs"
_BENCH = ROOT / "dataplane" / "bench"
_HPCC = "hpcc-1.5.0"
_HPCC_SHA256 = "0a6fef7ab9f3347e549fed65ebb98234feea9ee18aea0c8f59baefbe3cf7ffb8"
_START = 10.0
STREAM_PASSES = 2


@functools.cache
def release() -> Path:
    """Return the folder of the compiled parts: the one that ``VMCOAL_BINDIR`` names, else of an optimized build."""
    chosen = os.environ.get("VMCOAL_BINDIR")
    if chosen and (Path(chosen) / "bench" / "mc-load").exists():
        return Path(chosen)
    return build("release", "--buildtype=release") / "dataplane"


def built(name: str) -> Path:
    """Return a program of dataplane/bench."""
    return release() / "bench" / name


def preload() -> Path:
    """Return the library that hands mapped files over to the pager."""
    return release() / "libvmcoal-qemu.so"


def _sources() -> Path:
    """Fetch HPC Challenge's sources as Debian keeps them, once."""
    folder = CACHE / _HPCC
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory() as work:
        keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
        Path(work, "lists", "partial").mkdir(parents=True)
        Path(work, "sources.list").write_text(
            f"deb-src [signed-by={keyring}] http://deb.debian.org/debian bookworm main\n"
        )
        options = [
            *("-qq", "-o", f"Dir::Etc::SourceList={work}/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null"),
            *("-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}", "-o", "APT::Sandbox::User="),
        ]
        for command in (["update"], ["source", "--tar-only", "hpcc"]):
            subprocess.run(["apt-get", *options, *command], cwd=work, check=True, capture_output=True, timeout=300)
        (archive,) = Path(work).glob("*.orig.tar.gz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != _HPCC_SHA256:
            raise RuntimeError(f"{archive.name} is another one than expected: {found}")
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-xzf", archive, "-C", CACHE, _HPCC], check=True, timeout=60)
    return folder


def hpcc(*, static: bool = True) -> Path:
    """Build hpcc-kernels (dataplane/bench/hpcc) if need be; not ``static`` where libraries are preloaded."""
    source, shim = _sources(), _BENCH / "hpcc"
    program = CACHE / f"hpcc-kernels-{'static' if static else 'dynamic'}"
    parts = [shim / "hpcc_kernels.c", shim / "mpi.h"]
    if program.exists() and program.stat().st_mtime > max(part.stat().st_mtime for part in parts):
        return program
    generated = CACHE / "generated"
    generated.mkdir(exist_ok=True)
    stock = (source / "RandomAccess/core_single_cpu.c").read_text()
    stock = stock.replace("#define NUPDATE (4 * TableSize)", "#define NUPDATE BENCH_UPDATES")
    stock = stock.replace("HPCC_starts (", "HPCC_starts (BENCH_FIRST + ")
    (generated / "core_single_cpu_bench.c").write_text(stock)
    stock = (source / "STREAM/stream.c").read_text().replace("define NTIMES 10", f"define NTIMES {STREAM_PASSES}")
    (generated / "stream_bench.c").write_text(stock)
    folders = [shim, source / "include", source / "hpl/include", source / "RandomAccess", generated]
    subprocess.run(
        [
            *("cc", "-O2", "-w", "-DHPCC_MEMALLCTR", "-DLONG_IS_64BITS", *(f"-I{folder}" for folder in folders)),
            *(["-static"] if static else []),
            *("-o", program, shim / "hpcc_kernels.c", generated / "stream_bench.c"),
            *(source / "RandomAccess/utility.c", "-lm"),
        ],
        check=True,
        timeout=120,
    )
    return program


class Memcached:
    """memcached on a Unix socket, its items in ``file`` if there is one; ``prefix`` goes before its command line."""

    def __init__(
        self,
        file: Path | None,
        megabytes: int,
        environment: Mapping[str, str] | None = None,
        *,
        prefix: Sequence[str] = (),
        threads: int = 4,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vmc-")
        self.socket = Path(self._folder.name) / "s"
        self._command = [
            *prefix,
            *("memcached", "-s", str(self.socket), "-u", "root", "-m", str(megabytes), "-t", str(threads)),
            *("-o", "no_slab_reassign,no_lru_maintainer,hashpower=20", "-M", *(["-e", str(file)] if file else [])),
        ]
        self._environment = os.environ | dict(environment or {})

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, env=self._environment)
        end = time.monotonic() + _START
        while not self.socket.exists() or self._dial() is None:
            if time.monotonic() > end or self.process.poll() is not None:
                self.process.kill()
                raise RuntimeError("memcached did not start")
            time.sleep(0.02)
        return self

    def __exit__(self, *reason: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()

    def kill(self) -> None:
        """End it at once: it need not read its memory again."""
        self.process.kill()

    def resident(self) -> int:
        """Return the bytes of memory that it has now."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _dial(self) -> socket.socket | None:
        one = socket.socket(socket.AF_UNIX)
        try:
            one.connect(str(self.socket))
        except OSError:
            one.close()
            return None
        return one

    def fill(self, keys: int, size: int) -> None:
        """Store ``keys`` values of ``size`` bytes."""
        command = [built("mc-load"), self.socket, "fill", str(keys), str(size)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)

    def start_load(self, keys: int, size: int, *, threads: int, seconds: float, sets: int) -> subprocess.Popen[bytes]:
        """Start the load generator, whose one line of output is in its standard output."""
        numbers = (keys, size, threads, seconds, sets)
        return subprocess.Popen([built("mc-load"), self.socket, "run", *map(str, numbers)], stdout=subprocess.PIPE)

    def load(self, keys: int, size: int, *, threads: int, seconds: float, sets: int) -> dict[str, float]:
        """Run the load generator and return its figures."""
        process = self.start_load(keys, size, threads=threads, seconds=seconds, sets=sets)
        out, _ = process.communicate(timeout=seconds + 300)
        if process.returncode:
            raise ConnectionError("memcached hung up")
        return numbers(out.decode())

    def dump(self) -> None:
        """Have every item walked over, as a backup of the keys does."""
        one = self._dial()
        assert one
        with one, one.makefile("rwb") as stream:
            stream.write(b"lru_crawler metadump all\r\n")
            stream.flush()
            while (line := stream.readline()) and line.strip() not in (
                b"END",
                b"BUSY currently processing crawler request",
            ):
                pass


def numbers(line: str) -> dict[str, float]:
    """Return the pairs of a line like ``p50 1.0 p99 2.0``."""
    words = line.split()
    return dict(zip(words[::2], map(float, words[1::2]), strict=True))
