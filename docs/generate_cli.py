"""Writes the command reference and the man page from the click commands, so that they cannot drift apart.

docs/reference/cli/index.md   the list of commands by section
docs/reference/cli/NAME.md    one page for each command, its own commands included
docs/reference/cli/man.md     the man page vmcoal(1)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from vmcoal.cli.app import Command, Group, app
from vmcoal.cli.catalog import ALIASES, COMMANDS, EXAMPLE, SECTIONS

INTRODUCTION = "vmcoal grows a running VM with CPUs, memory and GPUs borrowed from nearby hosts, while it runs."

ENVIRONMENT = {
    "XDG_STATE_HOME, XDG_CACHE_HOME, XDG_CONFIG_HOME, XDG_RUNTIME_DIR": "Where vmcoal keeps its folders named vmcoal.",
    "VMCOAL_SHM_DIR": "The tmpfs folder for lent bytes and for borrowed pages that are here, else /dev/shm/vmcoal-UID.",
    "VMCOAL_DEBUG": "1: show tracebacks, and let controllers and lenders log more.",
    "VMCOAL_BINDIR": "The folder of vmcoal's compiled parts, where they are not installed with it.",
}


def generate(folder: Path) -> list[Path]:
    """Write all pages into ``folder`` and return them; files that did not change are left alone, others are removed."""
    pages = {"index.md": _index(), "man.md": _man()}
    for name in COMMANDS:
        pages[f"{name}.md"] = _page(name)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in pages]


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[click.Context, click.Command]]:
    """Yield a command and the commands below it, each with a context of its full name."""
    ctx = click.Context(command, info_name=" ".join(path), max_content_width=200, terminal_width=200)
    yield ctx, command
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from commands(found, (*path, name))


def _top(name: str) -> click.Command:
    found = app.get_command(click.Context(app), name)
    assert found is not None
    return found


def _index() -> str:
    lines = ["# Commands", "", INTRODUCTION, ""]
    for section in SECTIONS:
        lines += [f"## {section}", ""]
        names = [name for name, entry in COMMANDS.items() if entry.section == section]
        lines += [f"- [`vmcoal {name}`]({name}.md): {_plain(COMMANDS[name].summary)}" for name in names]
        lines += ["", "```{toctree}", ":hidden:", "", *names, "```", ""]
    lines += [
        "Every command takes `--help`. Where there is something to read, `-o json` prints it for programs: JSON goes",
        "to stdout, what is meant for people to stderr. Where something changes, `--dry-run` prints the exact steps",
        "instead. The [exit codes](../../exit-codes.md) say what kind of failure it was.",
        "",
    ]
    return "\n".join(lines)


def _page(name: str) -> str:
    aliases = [alias for alias, target in ALIASES.items() if target == name]
    parts: list[str] = []
    for ctx, command in commands(_top(name), ("vmcoal", name)):
        parts.append(_description(ctx, command, "#" if not parts else "##"))
    if aliases:
        parts.append(f"`vmcoal {aliases[0]}` is the same command.\n")
    return "\n".join(parts)


def _man() -> str:
    lines = [
        "---",
        "orphan: true",
        "---",
        "",
        "# vmcoal",
        "",
        "## SYNOPSIS",
        "",
        "`vmcoal COMMAND [OPTIONS] [ARGS]`",
        "",
    ]
    lines += ["## DESCRIPTION", "", INTRODUCTION, "", "## COMMANDS", ""]
    for name in COMMANDS:
        for ctx, command in commands(_top(name), ("vmcoal", name)):
            lines += [_description(ctx, command, "###")]
    lines += ["## EXAMPLES", "", *_block(EXAMPLE), "", "## EXIT STATUS", ""]
    lines += _definitions({str(code): text for code, text in exit_codes()})
    lines += ["## ENVIRONMENT", "", *_definitions(ENVIRONMENT)]
    lines += ["## FILES", "", "`~/.config/vmcoal/config.toml`", ": Defaults of boot, lend and attach.", ""]
    lines += ["`~/.local/state/vmcoal/`", ": VMs, lenders, keys, logs.", "", "`~/.cache/vmcoal/`", ": Images.", ""]
    lines += ["## SEE ALSO", "", "qemu-system(1), nbdkit(1), nbdfuse(1), numactl(8)", ""]
    return "\n".join(lines)


def exit_codes() -> list[tuple[int, str]]:
    """Return every exit code with its meaning, from the error classes."""
    from vmcoal import errors
    from vmcoal.cli.outcome import BROKEN_PIPE, INTERRUPTED

    kinds = sorted({kind.exit_code: kind for kind in errors._KINDS.values()}.items())
    told = [(code, f"{kind.__name__}: {(kind.__doc__ or '').strip()}") for code, kind in kinds if code != 1]
    codes = [(0, "It is done."), (1, "An error of a newer vmcoal, of a kind that this one does not know."), *told]
    codes += [(INTERRUPTED, "Ctrl-C: the call was cancelled, and what it had begun undone.")]
    return [*codes, (BROKEN_PIPE, "Whoever read the output went away.")]


def _description(ctx: click.Context, command: click.Command, mark: str) -> str:
    assert isinstance(command, Command | Group)
    path = ctx.info_name or ""
    usage = " ".join([path, *command.collect_usage_pieces(ctx)])
    lines = [f"{mark} {path}", "", f"`{usage}`", ""]
    for paragraph in (command.help or "").split("\n\n"):
        lines += [_plain(" ".join(paragraph.split())), ""]
    options = [param.get_help_record(ctx) for param in command.params if isinstance(param, click.Option)]
    lines += _definitions(dict(record for record in options if record))
    lines += [*_block([line.strip() for line in command.example.strip().splitlines()]), ""]
    return "\n".join(lines)


def _definitions(items: dict[str, str]) -> list[str]:
    lines = []
    for name, text in items.items():
        lines += [f"`{name}`", f": {_plain(' '.join(text.split()))}", ""]
    return lines


def _block(lines: list[str] | tuple[str, ...]) -> list[str]:
    return ["```console", *(f"$ {line}" for line in lines), "```"]


def _plain(text: str) -> str:
    """Return ``text`` with Markdown's characters escaped, except in `code`."""
    parts = text.split("`")
    return "`".join(re.sub(r"([*_<\[\]$\\])", r"\\\1", part) if at % 2 == 0 else part for at, part in enumerate(parts))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parent / "reference" / "cli")
