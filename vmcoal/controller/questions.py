"""What is asked through a controller and changes nothing of its VM: the lenders, a link, a command in the guest."""

from __future__ import annotations

import msgspec

from vmcoal.control.server import Client
from vmcoal.controller.api import (
    ExecRequest,
    ExecResult,
    LenderView,
    PingRequest,
    PingResult,
)
from vmcoal.controller.paging import page_fetch
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, UnreachableError, VmcoalError
from vmcoal.fabric.identity import LenderRecord, lender_store
from vmcoal.model.guest import GuestCommand
from vmcoal.policy.distance import link_distance
from vmcoal.policy.placement import choose_node
from vmcoal.together import together


async def run(vm: Vm, request: ExecRequest, client: Client) -> ExecResult:
    """Run a command in the guest; its output goes to ``client``, and what that sends goes in.

    Raises `UnreachableError` where no agent answers, and as `Agent.exec`.
    """
    if vm.agent is None:
        name = vm.spec.name
        raise UnreachableError(f"no agent answers in {name}", hint=f"vmcoal logs {name} console, or vmcoal ssh")
    command = GuestCommand(
        argv=request.argv,
        env=request.env,
        cwd=request.cwd,
        tty=request.tty,
        rows=request.rows,
        columns=request.columns,
    )
    end = await vm.agent.exec(
        command,
        on_output=client.output,
        stdin=client.inputs if request.stdin or request.tty else None,
        deadline=request.deadline,
    )
    return ExecResult(code=end.code, signal=end.signal)


async def offers(vm: Vm) -> list[LenderView]:
    """Return every paired lender: what it offers and where it would be, or why it does not answer."""
    return await together(*(_view(vm, record) for record in lender_store().load()))


async def _view(vm: Vm, record: LenderRecord) -> LenderView:
    view = LenderView(name=record.name, address=record.address, grants=record.grants, reachable=False)
    try:
        session = await vm.keeper.session(record.name, deadline=5.0)
        link = await vm.keeper.measure(record.name, 5)
        offer = await session.offer()
        far = choose_node(vm.spec, vm.book.bound(), record.name, link_distance(link), None)
    except ConflictError as error:
        return msgspec.structs.replace(view, reachable=True, error=str(error))
    except VmcoalError as error:
        return msgspec.structs.replace(view, error=str(error))
    return msgspec.structs.replace(
        view, reachable=True, offer=offer, link=link, distance=link_distance(link), node=far.node
    )


async def ping(vm: Vm, request: PingRequest) -> PingResult:
    """Measure the link to a lender, and how long a page takes.

    Raises `NotFoundError`, `UsageError`, and what the session raises.
    """
    record = vm.keeper.record(request.lender)
    link = await vm.keeper.measure(record.name, max(1, min(1000, request.count)))
    try:
        far = choose_node(vm.spec, vm.book.bound(), record.name, link_distance(link), None)
    except ConflictError:
        far = None
    fetch, no_fetch = await page_fetch(vm, record.name, request.count)
    return PingResult(
        lender=record.name,
        link=link,
        distance=link_distance(link),
        node=far.node if far else None,
        node_distance=far.distance if far else None,
        fetch=fetch,
        no_fetch=no_fetch,
    )
