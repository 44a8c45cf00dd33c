"""``python -m vmcoal.controller NAME``: the controller process."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import sys
import time

from vmcoal.control.log import log_to
from vmcoal.controller.daemon import Controller
from vmcoal.controller.lifecycle import load_spec
from vmcoal.errors import ConflictError, VmcoalError
from vmcoal.layout import vm_folders

_END_DEADLINE = 3.0


def main() -> int:
    """Run the controller of one VM until the VM ends; returns the exit code."""
    parser = argparse.ArgumentParser(prog="vmcoal controller", description="run the controller of one VM")
    parser.add_argument("name")
    parser.add_argument("--boot", action="store_true", help="start a new QEMU instead of finding the running one")
    parser.add_argument("--ready-fd", type=int, help="descriptor that gets one byte when commands are answered")
    options = parser.parse_args()

    def listening() -> None:
        if options.ready_fd is not None:
            os.write(options.ready_fd, b"1")
            os.close(options.ready_fd)

    try:
        folders = vm_folders(options.name)
        log_to(folders.controller_log)
        spec = load_spec(folders)
        folders.make()
        lock = os.open(folders.state / "controller.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        _take(lock, options.name)
        return asyncio.run(Controller(spec, folders).run(boot=options.boot, listening=listening))
    except VmcoalError as error:
        print(f"vmcoal: error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code


def _take(lock: int, name: str) -> None:
    """Take the lock of the one controller of a VM. One that is just ending is waited for."""
    until = time.monotonic() + _END_DEADLINE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise ConflictError(
                    f"the controller of {name} runs already", hint=f"see it: vmcoal status {name}"
                ) from None
            time.sleep(0.05)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
