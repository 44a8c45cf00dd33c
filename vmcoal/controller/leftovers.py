"""What a VM left whose processes were all killed, or what could not be given back when it ended.

Its files tell; nothing here changes anything. Whoever starts it again, or shuts it down, has it taken away by the
controller that is started for that (`vmcoal.controller.lifecycle.clean_up`).
"""

from __future__ import annotations

from dataclasses import dataclass

from vmcoal.controller.api import ShutdownRequest, ShutdownResult
from vmcoal.controller.journal import read_items
from vmcoal.controller.loans import Loan, amounts, loans_of
from vmcoal.layout import VmFolders
from vmcoal.model.attachment import Plan, Step


@dataclass(frozen=True)
class Leftovers:
    """What is left of a VM that does not run: ``killed`` with its holder, and ``loans`` that are not given back."""

    name: str
    killed: bool
    loans: tuple[Loan, ...]

    @property
    def text(self) -> str:
        """What it is, for people."""
        lenders = dict.fromkeys(loan.lease.lender for loan in self.loans if loan.leased)
        parts = []
        for lender in lenders:
            mine = [loan for loan in self.loans if loan.lease.lender == lender]
            size = sum(loan.size for loan in mine if loan.is_memory)
            what = amounts(sum(loan.is_cpu for loan in mine), size, sum(loan.is_gpu for loan in mine))
            parts.append(f"{what} of {lender}")
        parts += [f"{loan.host} of this host" for loan in self.loans if loan.host]
        return ", ".join(parts) or "no more than its sockets"

    @property
    def remedy(self) -> str:
        """The next step, for people."""
        return f"vmcoal shutdown {self.name} gives it back, and so does vmcoal boot {self.name}"

    def plan(self) -> Plan:
        """Return what giving it back would do."""
        steps = [Step("release", f"give lease {loan.id} back", loan.lease.lender) for loan in self.loans if loan.leased]
        steps += [
            Step("give back", f"give {loan.host} back to this host", "this host") for loan in self.loans if loan.host
        ]
        steps.append(Step("clean", "remove its sockets, and its pages on this host", "this host"))
        return Plan("shutdown", f"take away what {self.name} left", tuple(steps))


def leftovers(folders: VmFolders) -> Leftovers | None:
    """Return what is left of a VM that has no holder, or ``None`` if nothing is.

    Raises `PrerequisiteError` for a journal that cannot be read.
    """
    loans = tuple(loans_of(read_items(folders.journal), folders.journal).values())
    killed = folders.holder_socket.exists()  # whoever ends in order takes it away
    return Leftovers(folders.state.name, killed, loans) if killed or loans else None


def ended_already(name: str, request: ShutdownRequest, released: list[str], notes: list[str]) -> ShutdownResult | Plan:
    """Return what a shutdown says of a VM whose QEMU ended by itself, and whose controller gave back what it had."""
    if request.dry_run:
        return Plan("shutdown", f"{name} has ended already, and has nothing left to give back", ())
    return ShutdownResult(how="ended", exit_code=None, released=tuple(released), notes=tuple(notes))
