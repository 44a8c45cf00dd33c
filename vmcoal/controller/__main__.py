"""``python -m vmcoal.controller NAME``: the controller process."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import sys

from vmcoal.control.log import log_to
from vmcoal.controller.daemon import Controller
from vmcoal.controller.lifecycle import load_spec
from vmcoal.errors import ConflictError, VmcoalError
from vmcoal.layout import vm_folders


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
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"the controller of {options.name} runs already") from None
        return asyncio.run(Controller(spec, folders).run(boot=options.boot, listening=listening))
    except VmcoalError as error:
        print(f"vmcoal: error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
