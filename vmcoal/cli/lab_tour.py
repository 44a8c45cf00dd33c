"""``vmcoal lab tour``."""

from __future__ import annotations

import asyncio
import time

import click

from vmcoal.cli.app import Command
from vmcoal.cli.lab_text import ready_line, reporting
from vmcoal.cli.outcome import printable
from vmcoal.cli.output import note, steps
from vmcoal.cli.params import LAB
from vmcoal.model.units import format_duration


@click.command(
    "tour",
    cls=Command,
    short_help="See a guest grow by memory of two other hosts",
    example="""
    vmcoal lab tour
    vmcoal lab tour --keep
    """,
)
@click.option("--name", type=LAB, default="tour", show_default=True, help="The lab it makes.")
@click.option("--flavor", type=click.Choice(["12", "13"]), default="12", show_default=True, help="Debian's release.")
@click.option("--keep", is_flag=True, help="Leave the lab at the end, to look around in.")
def tour(name: str, flavor: str, keep: bool) -> None:
    """Make a lab of three hosts, boot a guest under KVM on the first, give it memory of the other two over two links,
    look at it from inside, and take everything away.

    Each step is explained, and everything it runs can be typed.
    """
    from vmcoal.lab.lab import LabRequest, lab_down, lab_up
    from vmcoal.lab.tour import CHAPTERS, take_tour

    narrator = _Narrator()
    total = len(CHAPTERS) + 2
    narrator.chapter(
        *(1, total, "Three hosts"),
        "Three virtual hosts, each with Debian's own kernel and a KVM of its own. The first time their image is built.",
    )
    narrator.command("", f"vmcoal lab up --name {name}")
    with steps() as shown:
        status = lab_up(LabRequest(name=name, flavor=flavor), reporting(shown))
    narrator.output(ready_line(status))
    try:
        asyncio.run(take_tour(name, narrator, first=2, of=total))
    finally:
        if keep:
            note(f"lab {name} is left: vmcoal lab shell host1 --name {name}, vmcoal lab down --name {name}")
        else:
            narrator.chapter(total, total, "Nothing is left", "The hosts end, and what they had on disk with them.")
            narrator.command("", f"vmcoal lab down --name {name}")
            asyncio.run(lab_down(name))
    if not keep:
        note("next: vmcoal lab up, and try it yourself")


class _Narrator:
    """Prints the tour."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def chapter(self, number: int, of: int, title: str, text: str) -> None:
        """Print its title and what it is about."""
        head = f"[{number}/{of}] {title}"
        took = format_duration(time.monotonic() - self._began) if number > 1 else ""
        click.echo("\n" + click.style(head, bold=True) + (f"  ({took})" if took else ""))
        click.echo(click.wrap_text(text, width=100, initial_indent="  ", subsequent_indent="  "))

    def command(self, where: str, command: str) -> None:
        """Print it as if it had been typed."""
        click.echo(click.style(f"{where}$ {command}", fg="cyan"))

    def output(self, text: str) -> None:
        """Print it as it is, made safe for a terminal."""
        for line in text.splitlines():
            click.echo(printable(line))
