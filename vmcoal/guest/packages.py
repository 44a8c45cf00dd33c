"""The distribution's packages, resolved and fetched by apt without root and without touching the system.

apt-get runs against an empty dpkg status in a private folder, with the host's sources and keyrings, so the closure of a
few packages comes out as if they were to be installed on an empty machine. The host's package lists are used while they
are good; when they are missing or stale, lists are fetched into the private folder (apt-get(8), apt.conf(5)).
"""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote

from vmcoal.errors import DeadlineError, ExecutionError, PrerequisiteError

Progress = Callable[[str, float | None], None]
"""Called with what is being done and how far it is, 0.0 to 1.0, or ``None`` where that is unknown."""

_URI_LINE = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) ?(?P<hash>\S*)")
_FILE_NAME = re.compile(r"(?P<name>[a-z0-9][a-z0-9+.-]*)_(?P<version>[A-Za-z0-9.+~%:-]+)_(?P<arch>[a-z0-9-]+)\.deb")
_MAX_PACKAGES = 2000
_FETCH_BATCH = 12


@dataclass(frozen=True)
class Package:
    """One package of a closure. ``file`` its name in the archive folder; ``size`` in bytes; ``digest`` is
    ``KIND:HEX`` as apt prints it, or empty."""

    name: str
    version: str
    file: str
    size: int
    digest: str


def search_path() -> str:
    """Return PATH with the folders of system programs, which Debian leaves out for ordinary users."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def quiet(text: str, fraction: float | None) -> None:
    """Progress that nobody watches."""


def run_tool(
    argv: Sequence[str],
    *,
    deadline: float,
    what: str,
    package: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    text_input: bytes | None = None,
) -> bytes:
    """Run a program to its end and return its stdout.

    ``what`` says in an error what it was for, ``package`` which distribution package brings it. Raises
    `PrerequisiteError` where it is not installed, `DeadlineError` after ``deadline`` seconds, `ExecutionError` where it
    fails, with the tail of its stderr.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            input=text_input if text_input is not None else b"",
            capture_output=True,
            timeout=deadline,
            env={**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8", **(env or {})},
            check=False,
        )
    except FileNotFoundError as error:
        raise PrerequisiteError(
            f"{argv[0]} is needed {what} and is not installed", hint=f"apt install {package}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DeadlineError(f"{argv[0]} {what} took longer than {deadline:.0f} s", argv=list(argv)) from error
    if done.returncode != 0:
        tail = done.stderr.decode(errors="replace").strip()[-2000:]
        hint = "free some space" if os.strerror(errno.ENOSPC) in tail else None
        last = tail.splitlines()[-1] if tail else "no message"
        raise ExecutionError(
            f"{argv[0]} {what} failed with exit code {done.returncode}: {last}",
            hint=hint,
            argv=list(argv),
            code=done.returncode,
            stderr=tail,
        )
    return done.stdout


def parse_uris(text: str) -> list[Package]:
    """Parse the output of ``apt-get --print-uris install``; raises `ExecutionError` for names it cannot understand."""
    packages = []
    for line in text.splitlines():
        match = _URI_LINE.fullmatch(line.strip())
        if match is None:
            continue
        # The file name is not percent-encoded the same way everywhere, except for the epoch's colon.
        named = _FILE_NAME.fullmatch(match["file"])
        if named is None:
            raise ExecutionError(f"apt named a package file {match['file'][:100]!r}, which vmcoal does not understand")
        packages.append(
            Package(named["name"], unquote(named["version"]), match["file"], int(match["size"]), match["hash"])
        )
    if len(packages) > _MAX_PACKAGES:
        raise ExecutionError(f"apt wants {len(packages)} packages for a small guest, which cannot be right")
    return packages


class Apt:
    """apt-get over an empty machine.

    ``state`` is a folder of apt's own (lists, empty status), ``archives`` where packages are kept; both are created.
    ``sources`` replaces the host's package sources by these lines.
    """

    def __init__(self, state: Path, archives: Path, *, sources: Sequence[str] = ()) -> None:
        self.archives = archives
        self._state = state
        self._own_lists = state / "lists"
        self._use_own_lists = bool(sources)
        self._sources = state / "sources.list" if sources else None
        for folder in (state, archives, self._own_lists / "partial", state / "cache" / "archives" / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        if self._sources is not None:
            self._sources.write_text("".join(f"{line}\n" for line in sources))

    def resolve(self, names: Sequence[str], *, progress: Progress = quiet) -> list[Package]:
        """Return the closure of ``names`` without recommended packages, sorted by name.

        Raises `PrerequisiteError` where there is no apt, no network for missing lists, or no such package.
        """
        progress("looking up the distribution's packages", None)
        try:
            return self._resolve(names)
        except ExecutionError:
            self._update(progress)
        try:
            return self._resolve(names)
        except ExecutionError as error:
            raise PrerequisiteError(
                f"the package sources of this host cannot give {' '.join(names)}: {error.details.get('stderr', error)}",
                hint="use Debian 12 or newer, or boot your own: vmcoal boot --image FILE, or --kernel and --initrd",
            ) from error

    def _resolve(self, names: Sequence[str]) -> list[Package]:
        out = self._apt(["-qq", "--no-install-recommends", "--print-uris", "install", *names], deadline=120)
        packages = parse_uris(out.decode(errors="replace"))
        if not packages:
            raise ExecutionError("apt printed no packages", stderr="nothing to fetch")
        return sorted(packages, key=lambda package: package.name)

    def fetch(self, packages: Iterable[Package], *, progress: Progress = quiet) -> dict[str, Path]:
        """Bring ``packages`` into the archive folder, verified by apt against the signed lists; return their files.

        Raises `PrerequisiteError` when the network or the mirror does not give them.
        """
        packages = list(packages)
        files = {package.name: self.archives / package.file for package in packages}
        total = sum(package.size for package in packages) or 1
        missing = [package for package in packages if not _intact(files[package.name], package)]
        done = total - sum(package.size for package in missing)
        for start in range(0, len(missing), _FETCH_BATCH):
            batch = missing[start : start + _FETCH_BATCH]
            progress(f"fetching packages, {done >> 20} of {total >> 20} MiB", done / total)
            try:
                self._download(batch)
            except ExecutionError:
                # The host's lists may name a version that the mirror no longer has under that checksum.
                self._update(progress)
                try:
                    self._download(batch)
                except ExecutionError as error:
                    raise PrerequisiteError(
                        f"the distribution's packages cannot be fetched: {error.details.get('stderr', error)}",
                        hint="check the network and run `apt-get update`, then try again",
                    ) from error
            for package in batch:
                if not _intact(files[package.name], package):
                    raise ExecutionError(
                        f"apt did not bring {package.file} intact", hint="run `apt-get update`, then try again"
                    )
            done += sum(package.size for package in batch)
        return files

    def mirrors(self) -> list[str]:
        """Return the addresses of the Debian mirrors that the host uses."""
        wanted = ["Created-By: Packages", "Origin: Debian"]
        out = self._apt(["indextargets", "--format", "$(REPO_URI)", *wanted], deadline=60)
        return list(dict.fromkeys(line.rstrip("/") for line in out.decode(errors="replace").split()))

    def _download(self, packages: Sequence[Package]) -> None:
        for package in packages:
            (self.archives / package.file).unlink(missing_ok=True)
        wanted = [f"{package.name}={package.version}" for package in packages]
        self._apt(["-qq", "download", *wanted], deadline=900, cwd=self.archives)

    def _update(self, progress: Progress) -> None:
        progress("fetching the distribution's package lists", None)
        self._use_own_lists = True
        try:
            self._apt(["-qq", "update"], deadline=300)
        except ExecutionError as error:
            raise PrerequisiteError(
                f"the package lists cannot be fetched: {error.details.get('stderr', error)}",
                hint="check the network and the package sources: apt-get update",
            ) from error

    def _apt(self, arguments: Sequence[str], *, deadline: float, cwd: Path | None = None) -> bytes:
        user = pwd.getpwuid(os.geteuid()).pw_name
        options = {
            "Dir::State": str(self._state),
            "Dir::State::status": str(self._state / "status"),
            "Dir::State::lists": str(self._own_lists if self._use_own_lists else _host_lists()),
            "Dir::Cache": str(self._state / "cache"),
            "Dir::Log": str(self._state),
            "Debug::NoLocking": "true",
            "APT::Sandbox::User": user,
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "APT::Update::Error-Mode": "any",
            "Binary::apt-get::DPkg::Use-Pty": "false",
        }
        if self._sources is not None:
            options |= {"Dir::Etc::sourcelist": str(self._sources), "Dir::Etc::sourceparts": "/dev/null"}
        argv = ["apt-get", *(part for key, value in options.items() for part in ("-o", f"{key}={value}")), *arguments]
        return run_tool(
            argv,
            deadline=deadline,
            what="to get the distribution's packages",
            package="apt (vmcoal builds its guest images from Debian's packages)",
            cwd=cwd,
            env={"DEBIAN_FRONTEND": "noninteractive"},
        )


def _host_lists() -> Path:
    return Path("/var/lib/apt/lists")


def _intact(path: Path, package: Package) -> bool:
    """Whether a fetched file is the package that the lists describe."""
    try:
        if path.stat().st_size != package.size:
            return False
        kind, _, value = package.digest.partition(":")
        if kind not in {"SHA256", "SHA512", "SHA1", "MD5Sum"}:
            return True
        with path.open("rb") as file:
            name = {"MD5Sum": "md5"}.get(kind, kind.lower())
            return hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest() == value
    except OSError:
        return False


def members(deb: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Iterate over the files of a package in their order: header, and an open reader for regular files.

    Raises `PrerequisiteError` without dpkg-deb, `ExecutionError` for a broken package.
    """
    try:
        unpack = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise PrerequisiteError("dpkg-deb is needed to read packages", hint="apt install dpkg") from error
    with unpack:
        assert unpack.stdout is not None
        try:
            with tarfile.open(fileobj=unpack.stdout, mode="r|") as archive:
                for info in archive:
                    yield info, archive.extractfile(info) if info.isreg() else None
        except tarfile.TarError as error:
            unpack.kill()
            raise ExecutionError(f"{deb.name} cannot be read: {error}", hint="vmcoal image build default") from error
        except GeneratorExit:
            unpack.kill()
            raise
    if unpack.returncode != 0:
        raise ExecutionError(f"{deb.name} cannot be unpacked: dpkg-deb ended with {unpack.returncode}")


def inside(name: str) -> PurePosixPath | None:
    """Return a package member's place under a merged /usr, or ``None`` for one that must not be unpacked."""
    path = PurePosixPath("/", name)
    if ".." in path.parts:
        return None
    path = path.relative_to("/")
    if path.parts and path.parts[0] in {"bin", "sbin", "lib", "lib64"}:
        path = PurePosixPath("usr", path)
    return path
