"""What a lender that does not run has left, and how it is freed."""

from __future__ import annotations

from pathlib import Path

from vmcoal import layout
from vmcoal.cli.lender_process import still_serves
from vmcoal.cli.output import counted
from vmcoal.errors import PrerequisiteError
from vmcoal.lending.api import LenderStatus
from vmcoal.lending.journal import read_entries
from vmcoal.model.lease import Lease, Offer
from vmcoal.model.units import format_size


def lent_files(folders: layout.LenderFolders) -> list[Path]:
    """Return the tmpfs files with the bytes of a lender's leases, sorted."""
    home = layout.shm_home()
    return sorted(home.glob(folders.memory("*", "*").name)) if home.is_dir() else []


def stopped_status(name: str) -> LenderStatus:
    """Return what is known of a lender of this host that does not run. Nothing is written, nobody is asked."""
    folders = layout.lender_folders(name)
    held = sum(_allocated(path) for path in lent_files(folders))
    leases: tuple[Lease, ...] = ()
    broken = []
    try:
        leases = tuple(entry.lease for entry in read_entries(folders.journal) if entry.live)
    except PrerequisiteError as error:
        broken.append(f"{error}; {error.hint}")
    return LenderStatus(
        name=name,
        addresses=(),
        offer=Offer(name, 0, 0, 0, 0),
        leases=leases,
        degraded=(*_left(name, held, len(leases), serves=still_serves(folders)), *broken),
        running=False,
        held=held,
    )


def _left(name: str, held: int, leases: int, *, serves: bool) -> tuple[str, ...]:
    parts = [f"{format_size(held)} in {layout.shm_home()}"] if held else []
    parts += [f"{counted(leases, 'lease')} on record"] if leases else []
    what = " and ".join(parts)
    again = f"vmcoal lend --name {name}"
    if serves:
        more = f" ({what})" if what else ""
        return (
            f"it was killed, and what it lent is still served{more}; go on with: {again}; "
            f"to free it, then: vmcoal lend stop --name {name}",
        )
    if not what:
        return ()
    return (f"it still holds {what}; go on with: {again}; or free it: vmcoal lend delete {name}",)


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
