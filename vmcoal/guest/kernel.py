"""A distribution's kernel out of its package, with those of its modules that are wanted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vmcoal.guest.initramfs import module_closure, module_data, module_name
from vmcoal.guest.packages import inside, members


def take_kernel(deb: Path, root: Path, out: Path, modules: Iterable[str]) -> str:
    """Put the kernel of a package into ``out`` as ``vmlinuz``, and ``modules`` with what they depend on under ``root``.

    Modules are uncompressed: an emulated processor would take seconds for it. Returns the kernel's release, empty for a
    package that holds none. Raises `ExecutionError` for a compression that vmcoal cannot read.
    """
    release = ""
    raw: dict[str, tuple[PurePosixPath, bytes]] = {}
    for info, reader in members(deb):
        path = inside(info.name)
        if path is None or reader is None:
            continue
        if path.parts[0] == "boot" and path.name.startswith("vmlinuz-"):
            release = path.name.removeprefix("vmlinuz-")
            (out / "vmlinuz").write_bytes(reader.read())
            (out / "vmlinuz").chmod(0o644)
        elif ".ko" in path.name:
            raw[module_name(path.name)] = (path, reader.read())
        elif path.name.startswith("modules."):
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(reader.read())

    def read(name: str) -> bytes | None:
        return module_data(raw[name][0].name, raw[name][1]) if name in raw else None

    for name in module_closure(modules, read):
        path, data = raw[name]
        target = root / path.with_name(path.name.split(".ko")[0] + ".ko")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(module_data(path.name, data))
    return release
