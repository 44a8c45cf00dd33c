"""``vmcoal image build``, ``list`` and ``prune``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vmcoal.cli.app import Group
from vmcoal.cli.output import note, print_json, steps, table
from vmcoal.cli.params import SIZE, dry_run_option, output_option
from vmcoal.control.wire import Progress
from vmcoal.errors import UsageError
from vmcoal.model.units import GIB, format_size


@click.group(
    cls=Group,
    example="""
    vmcoal image build
    vmcoal image list
    """,
)
def image() -> None:
    """Build guest images from the distribution's packages, and list them."""


@image.command(
    "build",
    short_help="Build the default image or a bootable Debian disk",
    example="""
    vmcoal image build
    vmcoal image build debian --size 4G
    """,
)
@click.argument("kind", type=click.Choice(["default", "debian"]), default="default")
@click.option("--size", type=SIZE, help="Size of the Debian disk.  [default: 2G]")
@click.option("--suite", metavar="NAME", help="Debian's release, such as trixie.  [default: this host's]")
@output_option
def build(kind: str, size: int | None, suite: str | None, form: str) -> None:
    """Build the default image (kernel and initramfs) or a bootable Debian disk, from packages as they are now.

    An image that would come out the same is not built again.
    """
    from vmcoal.guest.images import build_debian, build_default

    if kind == "default":
        if size or suite:
            raise UsageError("--size and --suite are for the Debian disk", hint="vmcoal image build debian --size 4G")
        made = with_progress("build the default image", build_default)
    else:
        made = with_progress(
            "build a Debian disk", lambda report: build_debian(report, size=size or 2 * GIB, suite=suite)
        )
    if form == "json":
        print_json(made)
        return
    click.echo(made.folder)
    note(f"next: vmcoal boot{'' if kind == 'default' else ' NAME --image ' + str(made.path('disk'))}")


def with_progress(what: str, work: Callable[[Callable[[str, float | None], None]], Any]) -> Any:
    """Run ``work`` as one step whose details it reports itself, and return its result."""
    with steps() as shown:
        shown(Progress(1, 1, what))
        return work(lambda text, fraction: shown(Progress(1, 1, what, fraction, text)))


@image.command("list", example="vmcoal image list -o json")
@output_option
def list_(form: str) -> None:
    """List the images that vmcoal built, newest first."""
    from vmcoal.guest.images import list_images

    images = list_images()
    if form == "json":
        print_json(images)
        return
    if not images:
        click.echo("there is no image; vmcoal boot builds the default one")
        return
    rows = [
        (
            one.kind,
            one.digest,
            one.release,
            one.system or "-",
            format_size(one.size),
            one.created[:16].replace("T", " "),
        )
        for one in images
    ]
    click.echo(table(("KIND", "DIGEST", "KERNEL", "SYSTEM", "SIZE", "BUILT"), rows))


@image.command(
    "prune",
    example="""
    vmcoal image prune --dry-run
    vmcoal image prune --all
    """,
)
@click.option("--all", "everything", is_flag=True, help="Also the newest of each kind.")
@dry_run_option
@output_option
def prune(everything: bool, dry_run: bool, form: str) -> None:
    """Remove old images and fetched packages. Images that a VM boots from stay."""
    from vmcoal.guest.images import fetched_packages, prune_images

    packages = fetched_packages()
    removed, kept = prune_images(everything=everything, dry_run=dry_run)
    if form == "json":
        print_json({"removed": removed, "kept": kept})
        return
    verb = "remove" if dry_run else "removed"
    for one in removed:
        click.echo(f"{verb} {one.kind} {one.digest}  ({format_size(one.size)})")
    if packages is not None and (dry_run or fetched_packages() is None):
        click.echo(f"{verb} the fetched packages  ({packages})")
    for digest, vms in kept.items():
        note(f"kept {digest}: {', '.join(vms)} boot from it")
    if dry_run:
        note("nothing was changed")
    elif not removed and packages is None:
        note("there was nothing to remove")
