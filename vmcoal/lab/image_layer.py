"""vmcoal itself on a host of the lab: a small read-only disk that lies over the distribution's.

It holds this vmcoal with its compiled parts, the Python packages that it needs in the versions that run here, the files
of a host's own init, and the default guest image, so that a VM boots inside without a network.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec

import vmcoal
import vmcoal_qmp
from vmcoal.errors import PrerequisiteError, VmcoalError
from vmcoal.guest.images import guest_files
from vmcoal.guest.packages import Progress, run_tool
from vmcoal.guest.store import Image
from vmcoal.holding.binaries import find_binary
from vmcoal.lab.image_base import Flavor, compile_python, write_disk

BUILDER = 1
"""Raised whenever the same files would now give another disk."""

REQUIRES = ("asyncssh", "click", "msgspec", "nvidia-ml-py", "prometheus-client", "qemu.qmp", "rich", "spake2")
"""vmcoal's own requirements (pyproject.toml)."""

BINARIES = ("vmcoal-holder", "vmcoal-pager", "libvmcoal-qemu.so")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)\0")
_MODES = {"init": "usr/sbin/init", "inittab": "etc/inittab", "vmcoal": "usr/local/bin/vmcoal"}
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_INSTALL_DEADLINE = 600.0


def requirements() -> dict[str, str]:
    """Return the versions of everything vmcoal needs, as they are installed here, by name.

    Raises `PrerequisiteError` where one is missing.
    """
    found: dict[str, str] = {}
    todo = list(REQUIRES)
    while todo:
        name = todo.pop()
        if (key := _canonical(name)) in found:
            continue
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if name not in REQUIRES:
                continue  # wanted only for another Python or platform
            raise PrerequisiteError(
                f"the Python package {name} is missing from this installation", hint="install vmcoal again"
            ) from error
        found[key] = package.version
        for line in package.requires or ():
            match = _NAME.match(line)
            if match and "extra ==" not in line:
                todo.append(match[0])
    return dict(sorted(found.items()))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _sources() -> list[tuple[Path, Path]]:
    """Return (place below dist-packages, file) of everything that is vmcoal."""
    found: list[tuple[Path, Path]] = []
    for package, module in ((Path("vmcoal"), vmcoal), (Path("vmcoal_qmp"), vmcoal_qmp)):
        folder = Path(str(module.__file__)).parent
        for path in sorted(folder.rglob("*")):
            place = path.relative_to(folder)
            if path.is_file() and place.parts[0] not in {"_bin", "_guest"} and path.suffix in {".py", ".typed", ".S"}:
                found.append((package / place, path))
    files = guest_files()
    for path in sorted(files.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.append((Path("vmcoal/_guest") / path.relative_to(files), path))
    found += [(Path("vmcoal/_bin", name), find_binary(name)) for name in BINARIES]
    return found


def recipe_parts(flavor: Flavor) -> list[str | bytes]:
    """Return what decides the disk, beside the default image in it, for its digest."""
    parts: list[str | bytes] = [str(BUILDER), repr(flavor), repr(requirements())]
    for place, path in _sources():
        parts += [str(place), path.read_bytes()]
    return parts


def check_binaries(flavor: Flavor) -> None:
    """Raise `PrerequisiteError` where vmcoal's compiled parts want a newer C library than the flavour has."""
    for name in BINARIES:
        newest = max(map(int, _GLIBC.findall(find_binary(name).read_bytes())), default=0)
        if newest > flavor.glibc[1]:
            raise PrerequisiteError(
                f"{name} was compiled for glibc 2.{newest}, and Debian {flavor.name} has 2.{flavor.glibc[1]}",
                hint="use a newer flavor of the lab's hosts, or compile vmcoal on an older system",
            )


def build(guest: Image, flavor: Flavor, python: Path, out: Path, work: Path, *, progress: Progress) -> None:
    """Write ``disk`` into ``out``; ``guest`` the default image to bring along, ``python`` what
    `vmcoal.lab.image_base.keep_python` kept, ``work`` an empty folder.

    Raises `PrerequisiteError` where Python packages cannot be had, `ExecutionError`, `DeadlineError`.
    """
    root = work / "root"
    packages = root / "usr/local/lib" / f"python{flavor.python}" / "dist-packages"
    packages.mkdir(parents=True)
    progress("collecting vmcoal and what it needs", 0.1)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here == flavor.python:
        _copy_packages(packages)
    else:
        _download_packages(packages, flavor)
    for place, path in _sources():
        target = packages / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o755 if path.stat().st_mode & 0o111 else 0o644)
    _own_files(root)
    progress("compiling vmcoal", 0.4)
    compile_python(python, flavor, [packages], strip=root)
    agent = root / "usr/lib/vmcoal"
    compile_python(python, flavor, [agent], strip=root, beside=True)
    images = root / "root/.cache/vmcoal/images"
    images.mkdir(parents=True)
    for folder in (root / "root", root / "root/.cache", root / "root/.cache/vmcoal"):
        folder.chmod(0o700)
    kept = images / f"default-{guest.digest}"
    shutil.copytree(guest.folder, kept)
    about = msgspec.structs.replace(guest, kind="default", folder="")
    (kept / "image.json").write_bytes(msgspec.json.encode(about))
    progress("writing vmcoal's disk", 0.8)
    write_disk(root, out / "disk", "vmcoal")
    shutil.rmtree(root)


def _own_files(root: Path) -> None:
    files = guest_files()
    for path in sorted((files / "lab").iterdir()):
        if path.name == "start":  # in the initramfs
            continue
        target = root / _MODES.get(path.name, f"usr/libexec/vmcoal/{path.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o755 if path.read_bytes().startswith(b"#!") else 0o644)
    (root / "usr/lib/vmcoal").mkdir(parents=True)
    shutil.copyfile(files / "vmcoal_agent.py", root / "usr/lib/vmcoal/vmcoal_agent.py")
    shutil.copyfile(files / "init/profile", root / "etc/profile")


def _copy_packages(target: Path) -> None:
    for name in requirements():
        package = importlib.metadata.distribution(name)
        for path in package.files or ():
            place = PurePosixPath(str(path))
            if place.parts[0] == ".." or path.suffix == ".pyc" or "tests" in place.parts:
                continue  # scripts, and what is compiled anew
            source, copy = Path(str(package.locate_file(path))), target / place
            if source.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)


def _download_packages(target: Path, flavor: Flavor) -> None:
    pins = [f"{name}=={version}" for name, version in requirements().items()]
    argv: Sequence[str] = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
        "--no-compile", "--target", str(target), "--only-binary=:all:", "--implementation", "cp", "--python-version",
        flavor.python, *(word for name in _PLATFORMS for word in ("--platform", name)), *pins,
    ]  # fmt: skip
    try:
        run_tool(argv, deadline=_INSTALL_DEADLINE, what="to get Python packages for a lab host", package="python3-pip")
    except VmcoalError as error:
        raise PrerequisiteError(
            f"the Python packages for Debian {flavor.name} cannot be fetched: {error.message}",
            hint="check the network and pip's settings, or use the flavor of this system's own Python",
            **error.details,
        ) from error
    shutil.rmtree(target / "bin", ignore_errors=True)
