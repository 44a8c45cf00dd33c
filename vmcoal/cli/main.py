"""Entry point of the ``vmcoal`` command.

``vmcoal --help`` and ``vmcoal --version`` are answered from plain data, before click is imported.
"""

from __future__ import annotations

import os
import sys


def run() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    if "_VMCOAL_COMPLETE" in os.environ:  # a shell asks for completions; the words are in the environment
        arguments = ["completion"]
    if arguments in ([], ["--help"], ["-h"], ["help"]):
        from vmcoal.cli.catalog import help_text

        return _write(help_text())
    if arguments in (["--version"], ["-V"]):
        from vmcoal import __version__

        return _write(f"vmcoal {__version__}\n")
    from vmcoal.cli.outcome import guarded

    return guarded(arguments)


def _write(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        from vmcoal.cli.outcome import report_os_error

        return report_os_error(error)
    return 0


if __name__ == "__main__":
    run()
