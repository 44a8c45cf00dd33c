"""How a command ends: its exit code, and what is said of an error.

The codes are those of `vmcoal.errors`, besides 0, 130 (Ctrl-C), 141 (the reader of stdout went away) and, for commands
in a guest, the code of that command.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import click

from vmcoal.errors import ExecutionError, InternalError, UsageError, VmcoalError

INTERRUPTED = 130
BROKEN_PIPE = 141
_KEPT_CRASHES = 20
_STDERR_LINES = 10
_NO_DEFECT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})


def guarded(arguments: list[str]) -> int:
    """Run one command line, report how it failed on stderr, and return the exit code. Never a traceback, unless
    ``VMCOAL_DEBUG=1`` asks for it."""
    from vmcoal.cli.app import app

    try:
        code = app.main(arguments, prog_name="vmcoal", standalone_mode=False)
        sys.stdout.flush()
    except VmcoalError as error:
        _debug_traceback()
        return report(error)
    except click.ClickException as error:
        return report(_from_click(error))
    except (KeyboardInterrupt, click.Abort) as error:
        cause = error.__cause__ if isinstance(error, click.Abort) else error
        return _interrupted(cause)
    except OSError as error:
        return report_os_error(error)
    except Exception as error:
        return _defect(error)
    return code if isinstance(code, int) else 0


def report(error: VmcoalError) -> int:
    """Print an error to stderr, and return its exit code."""
    click.echo(describe(error), err=True)
    return error.exit_code


def describe(error: VmcoalError) -> str:
    """Return an error as people read it: what failed where, the tail of its stderr, what is left, the next step."""
    lines = [f"vmcoal: error: {printable(str(error))}"]
    stderr = error.details.get("stderr")
    if isinstance(stderr, str) and stderr.strip() and stderr.strip() not in str(error):
        lines += [f"  | {printable(line)}" for line in stderr.strip().splitlines()[-_STDERR_LINES:]]
    if error.left:
        lines.append(f"  left: {printable(error.left)}")
    if error.hint:
        lines.append(f"  hint: {printable(error.hint)}")
    return "\n".join(lines)


def printable(text: str) -> str:
    """Return ``text`` with control characters made visible: it may come from another host or a guest."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def report_os_error(error: OSError) -> int:
    """Report what the system refused: a closed stdout quietly, a full disk as such, the rest as a defect."""
    if isinstance(error, BrokenPipeError):
        _hush_stdout()
        return BROKEN_PIPE
    if error.errno not in _NO_DEFECT:
        return _defect(error)
    _debug_traceback()
    if error.filename is None:
        _hush_stdout()
    where = f"cannot write {error.filename or 'stdout'}: "
    return report(ExecutionError(where + (error.strerror or str(error)), hint="check the disk's space and its mode"))


def _hush_stdout() -> None:
    """Keep the interpreter from writing again what it could not write, when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _from_click(error: click.ClickException) -> VmcoalError:
    from vmcoal.cli.params import name_of

    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "vmcoal"
        if isinstance(error, click.BadParameter) and error.param and not isinstance(error, click.MissingParameter):
            message = f"{name_of(error.param)}: {error.message.rstrip('.')}"
        else:
            message = error.format_message().rstrip(".")
            message = message[:1].lower() + message[1:]
        return UsageError(message, hint=f"{command} --help")
    return UsageError(error.format_message())


def _interrupted(error: BaseException | None) -> int:
    said = getattr(error, "error", None)
    if isinstance(said, VmcoalError):
        click.echo(f"vmcoal: cancelled: {printable(str(said))}", err=True)
        if said.left:
            click.echo(f"  left: {printable(said.left)}", err=True)
    else:
        click.echo("vmcoal: cancelled", err=True)
    return INTERRUPTED


def _defect(error: Exception) -> int:
    _debug_traceback()
    import traceback

    where = _write_crash(error)
    said = traceback.format_exception_only(error)[-1].strip()
    return report(
        InternalError(
            f"this is a defect of vmcoal: {said}",
            hint=f"the traceback is in {where}; please report it" if where else "VMCOAL_DEBUG=1 shows the traceback",
        )
    )


def _debug_traceback() -> None:
    if os.environ.get("VMCOAL_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exc()


def _write_crash(error: Exception) -> Path | None:
    import traceback

    from vmcoal import __version__
    from vmcoal.layout import crash_home, make_private

    try:
        make_private(crash_home().parent)
        folder = make_private(crash_home())
        for old in sorted(folder.glob("*.txt"))[: 1 - _KEPT_CRASHES]:
            old.unlink(missing_ok=True)
        path = folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.txt"
        head = f"vmcoal {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n"
        path.write_text(head + "".join(traceback.format_exception(error)), encoding="utf-8")
    except (VmcoalError, OSError):
        return None
    return path
