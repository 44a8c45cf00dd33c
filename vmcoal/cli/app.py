"""The click application: command and group classes, and the root group that imports a command when it is used."""

from __future__ import annotations

import importlib
from typing import Any

import click

from vmcoal import __version__
from vmcoal.cli.catalog import ALIASES, COMMANDS, help_text
from vmcoal.errors import UsageError

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _WithExample(click.Command):
    """A command whose help ends in an example."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        kwargs["context_settings"] = _SETTINGS | kwargs.get("context_settings", {})
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example as it stands."""
        if self.example:
            with formatter.section("Example"):
                for line in self.example.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n")


class Command(_WithExample):
    """One command."""


class Group(_WithExample, click.Group):
    """A group of commands that are defined beside it."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or say which one was probably meant."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f"did you mean {ctx.command_path} {close[0]}?" if close else f"{ctx.command_path} --help lists them"
            raise UsageError(f"{ctx.command_path} has no command {name!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with a summary that is no sentence, as ``vmcoal --help`` does."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, one.get_short_help_str(85).removesuffix(".")) for name, one in found if one is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class _Root(Group):
    """``vmcoal`` itself."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        entry = COMMANDS.get(ALIASES.get(name, name))
        if entry is None:
            return None
        module, attribute = entry.target.split(":")
        command: click.Command = getattr(importlib.import_module(f"vmcoal.cli.{module}"), attribute)
        return command

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(help_text())

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: `format_help` lists them."""


@click.group(cls=_Root, name="vmcoal", context_settings=_SETTINGS, invoke_without_command=True)
@click.version_option(__version__, "-V", "--version", message="vmcoal %(version)s")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Grow a running VM with CPUs, memory and GPUs borrowed from nearby hosts."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
