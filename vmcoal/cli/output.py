"""What commands print: tables and JSON on stdout, numbered steps and notes on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click
import msgspec

from vmcoal.cli.outcome import printable
from vmcoal.control.wire import Progress
from vmcoal.model.attachment import AttachedGpu, Plan
from vmcoal.model.gpu import GpuDevice
from vmcoal.model.units import format_duration, format_size

_BAR_WIDTH = 24


def print_json(value: Any) -> None:
    """Print ``value`` (any structure msgspec knows) as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of left-aligned columns, two spaces apart, no trailing space."""
    cells = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """Return ``1 lease``, ``2 leases``."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def device_words(device: GpuDevice) -> str:
    """Return an OpenCL device in words: its name, what it is where that is no GPU, memory, driver and place."""
    kind = "" if device.kind == "gpu" else f" ({device.kind.value})"
    parts = [f"{device.name}{kind}", format_size(device.memory) if device.memory else ""]
    parts += [f"driver {device.driver}" if device.driver else "", device.address]
    return printable(", ".join(part for part in parts if part))


def gpu_name(gpu: AttachedGpu) -> str:
    """Return the name of a GPU, and what it is where that is no GPU."""
    kind = gpu.gpu.kind.value
    return gpu.gpu.name if kind == "gpu" else f"{gpu.gpu.name} ({kind})"


def vcpus(count: int) -> str:
    """Return ``1 vCPU``, ``2 vCPUs``."""
    return counted(count, "vCPU")


def note(text: str) -> None:
    """Tell people something on stderr."""
    click.echo(printable(text), err=True)


def print_plan(plan: Plan, form: str) -> None:
    """Print what a command would do."""
    if form == "json":
        print_json(plan)
        return
    click.echo(printable(plan.summary))
    for number, step in enumerate(plan.steps, 1):
        click.echo(f"[{number}/{len(plan.steps)}] {printable(step.summary)}  ({printable(step.where)})")
        for command in step.commands:
            click.echo(f"      {_command_text(command)}")
    for warning in plan.warnings:
        note(f"warning: {warning}")
    note("nothing was changed")


def _command_text(command: dict[str, Any]) -> str:
    import shlex

    argv = command.get("argv")
    if isinstance(argv, list | tuple) and len(command) == 1:
        return "$ " + shlex.join(map(str, argv))
    return msgspec.json.encode(command).decode()


class Steps:
    """Numbered steps on stderr, each with the time it took: ``[2/5] plug 512 MiB … 0.41 s``.

    A step's fraction is shown on a terminal only, as a bar that the next report replaces.
    """

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._open: tuple[int, str] | None = None
        self._head = ""
        self._began = 0.0
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        """Show one report."""
        if self._open != (progress.step, progress.text):
            self.close()
            self._open = (progress.step, progress.text)
            self._head = f"[{progress.step}/{progress.steps}] {printable(progress.text)} …"
            self._began = time.monotonic()
            self._write(self._head)
        if self._live and progress.fraction is not None:
            fraction = max(0.0, min(1.0, progress.fraction))
            filled = round(fraction * _BAR_WIDTH)
            bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
            line = f"{self._head} {bar} {fraction:4.0%} {printable(progress.detail or '')}"[: _columns() - 1]
            self._write("\r" + line.ljust(self._width))
            self._width = len(line)

    def close(self, error: BaseException | None = None) -> None:
        """End the open step's line; ``error`` is what ended the step."""
        if self._open is None:
            return
        if self._width:
            self._write("\r" + " " * self._width + "\r" + self._head)
        end = "failed" if error else format_duration(time.monotonic() - self._began)
        if isinstance(error, KeyboardInterrupt):
            end = "cancelled"
        self._write(f" {end}\n")
        self._open = None
        self._width = 0

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


@contextlib.contextmanager
def steps() -> Iterator[Steps]:
    """Give a `Steps` and end its last line, whatever happens."""
    shown = Steps()
    try:
        yield shown
    except BaseException as error:
        shown.close(error)
        raise
    shown.close()
