"""Where vmcoal's own executables are."""

from __future__ import annotations

import os
from pathlib import Path

from vmcoal.errors import PrerequisiteError

_INSTALLED = Path(__file__).resolve().parent.parent / "_bin"


def find_binary(name: str) -> Path:
    """Return the path of vmcoal's executable ``name``: in ``$VMCOAL_BINDIR`` where that is set, else in the package.

    Raises `PrerequisiteError` where it is missing or cannot be executed.
    """
    chosen = os.environ.get("VMCOAL_BINDIR")
    folder = Path(chosen) if chosen else _INSTALLED
    path = folder / name
    if path.is_file() and os.access(path, os.X_OK):
        return path.absolute()
    if chosen:
        hint = "VMCOAL_BINDIR must name the folder of the compiled parts (dataplane in the build folder)"
    else:
        hint = (
            "install vmcoal from its wheel; in a source tree: meson setup build && ninja -C build, "
            "then set VMCOAL_BINDIR to build/dataplane there"
        )
    problem = "cannot be executed" if path.exists() else "is missing"
    raise PrerequisiteError(f"{path} {problem}", hint=hint)
