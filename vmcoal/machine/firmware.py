"""Finds UEFI firmware by the descriptors that distributions install (QEMU docs/interop/firmware.json)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vmcoal.errors import UNREADABLE, PrerequisiteError

_MACHINE = "pc-q35-7.2"
_UNWANTED = frozenset({"requires-smm", "secure-boot", "enrolled-keys"})


class Uefi(NamedTuple):
    """``code``: the program, read-only; ``variables``: the template of its variable store, copied for each VM."""

    code: str
    variables: str


def _folders() -> list[Path]:
    config = os.environ.get("XDG_CONFIG_HOME", "")
    user = Path(config) if config.startswith("/") else Path.home() / ".config"
    return [user / "qemu/firmware", Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware")]


def _parse(path: Path) -> Uefi | None:
    try:
        data: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict)
        mapping = data["mapping"]
        fits = (
            "uefi" in data["interface-types"]
            and mapping["device"] == "flash"
            and mapping["executable"]["format"] == "raw"
            and mapping["nvram-template"]["format"] == "raw"
            and not _UNWANTED & set(data["features"])
            and any(
                target["architecture"] == "x86_64" and any(fnmatchcase(_MACHINE, glob) for glob in target["machines"])
                for target in data["targets"]
            )
        )
        uefi = Uefi(mapping["executable"]["filename"], mapping["nvram-template"]["filename"])
    except (OSError, *UNREADABLE, KeyError, TypeError):
        return None
    return uefi if fits and Path(uefi.code).is_file() and Path(uefi.variables).is_file() else None


def find_uefi(folders: Sequence[Path] | None = None) -> Uefi:
    """Return the first UEFI firmware for q35 that needs neither Secure Boot nor SMM.

    Descriptors are taken in the order of their file names; one in an earlier folder (the user's, /etc, /usr) hides
    one of the same name in a later folder. Raises `PrerequisiteError` if there is none.
    """
    found: dict[str, Path] = {}
    for folder in _folders() if folders is None else folders:
        for path in folder.glob("*.json"):
            found.setdefault(path.name, path)
    for name in sorted(found):
        uefi = _parse(found[name])
        if uefi:
            return uefi
    raise PrerequisiteError("there is no UEFI firmware for QEMU on this host", hint="install it: apt install ovmf")
