"""``vmcoal completion`` and ``vmcoal version``."""

from __future__ import annotations

import platform
import shutil
import subprocess

import click

from vmcoal import __version__
from vmcoal.cli.app import Command
from vmcoal.cli.output import print_json
from vmcoal.cli.params import output_option


@click.command(
    cls=Command,
    example="""
    eval "$(vmcoal completion bash)"
    vmcoal completion zsh > ~/.zfunc/_vmcoal
    vmcoal completion fish > ~/.config/fish/completions/vmcoal.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes vmcoal's commands, options and names in a shell."""
    from click.shell_completion import get_completion_class

    from vmcoal.cli.app import app

    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(app, {}, "vmcoal", "_VMCOAL_COMPLETE")
    click.echo(complete.source_template % complete.source_vars())


@click.command(cls=Command, example="vmcoal version -o json")
@output_option
def version(form: str) -> None:
    """Print the versions of vmcoal, Python, the kernel and the programs it runs."""
    versions = {
        "vmcoal": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        "nbdkit": _first_line("nbdkit", "--version"),
        "nbdfuse": _first_line("nbdfuse", "--version"),
    }
    if form == "json":
        print_json(versions)
        return
    for name, value in versions.items():
        click.echo(f"{name:<8} {value or 'not installed'}")


def _first_line(program: str, option: str) -> str | None:
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout or done.stderr).strip().partition("\n")[0]
