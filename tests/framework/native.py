"""Builds of the compiled parts that tests need besides the one that is installed."""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_BUILDS = _ROOT / ".cache" / "native"
_DEADLINE = 240.0


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a build tool of this Python's environment in the source tree."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        list(map(str, command)),
        cwd=_ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
    )


@functools.cache
def build(name: str, *options: str) -> Path:
    """Build the compiled parts with Meson ``options`` and return the build folder, which later runs use again."""
    folder = _BUILDS / name
    _BUILDS.mkdir(parents=True, exist_ok=True)
    with (_BUILDS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        steps: list[list[str | Path]] = [["ninja", "-C", folder]]
        if not (folder / "build.ninja").exists():
            steps.insert(0, ["meson", "setup", folder, *options])
        for step in steps:
            done = run(*step)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


def sanitized_bindir() -> Path:
    """Return the folder of executables that the address and undefined-behaviour sanitizers watch."""
    return build("sanitized", "-Db_sanitize=address,undefined") / "dataplane"


def helper(name: str) -> Path:
    """Return a program of dataplane/tests: of the build that ``VMCOAL_BINDIR`` names, else of one made for it."""
    chosen = os.environ.get("VMCOAL_BINDIR")
    if chosen and (Path(chosen) / "tests" / name).exists():
        return Path(chosen) / "tests" / name
    return build("release", "--buildtype=release") / "dataplane" / "tests" / name
