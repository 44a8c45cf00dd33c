"""Which far node a lender's resources go into."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vmcoal.errors import ConflictError, UsageError
from vmcoal.model.machine import FarNode, MachineSpec
from vmcoal.model.units import format_size


def choose_node(spec: MachineSpec, bound: Mapping[int, str], lender: str, distance: int, wanted: int | None) -> FarNode:
    """Return the far node for ``lender``: the one it has already, the one ``wanted``, or the free one whose tier lies
    nearest to ``distance`` (the farther one of two equally near: better to promise too little).

    ``bound`` maps node ids to the lender they are bound to. Raises `UsageError` for a node the machine does not have,
    `ConflictError` if it is another lender's or none is free.
    """
    mine = next((node for node, owner in bound.items() if owner == lender), None)
    if mine is not None:
        if wanted is not None and wanted != mine:
            raise ConflictError(
                f"{lender} is bound to node {mine} already, not {wanted}",
                hint=f"leave out --node, or first: vmcoal detach --from {lender}",
            )
        return spec.far_node(mine)
    if wanted is not None:
        try:
            node = spec.far_node(wanted)
        except KeyError:
            known = ", ".join(str(far.node) for far in spec.far_nodes) or "none"
            raise UsageError(f"{spec.name} has no far node {wanted}", hint=f"its far nodes are: {known}") from None
        if wanted in bound:
            raise ConflictError(
                f"node {wanted} is bound to {bound[wanted]}", hint="choose another, or leave out --node"
            )
        return node
    free = [far for far in spec.far_nodes if far.node not in bound]
    if not free:
        raise ConflictError(
            f"all {len(spec.far_nodes)} far nodes of {spec.name} are bound to lenders",
            hint="detach one, or boot with more --far-nodes",
        )
    return min(free, key=lambda far: (abs(far.distance - distance), -far.distance))


def free_cores(far: FarNode, taken: Collection[int], count: int) -> list[int]:
    """Return the ``count`` lowest free vCPU slots of ``far``; raises `ConflictError` if there are fewer."""
    free = [core for core in range(far.cpus) if core not in taken]
    if count > len(free):
        raise ConflictError(
            f"node {far.node} has {len(free)} of {far.cpus} vCPU slots free, {count} were asked for",
            hint="ask for fewer, or boot with more --far-cpus",
        )
    return free[:count]


def check_headroom(far: FarNode, used: int, size: int) -> None:
    """Raise `ConflictError` unless ``size`` more bytes fit into the memory headroom of ``far``."""
    if used + size > far.memory:
        raise ConflictError(
            f"node {far.node} has {format_size(max(0, far.memory - used))} of {format_size(far.memory)} headroom left, "
            f"{format_size(size)} were asked for",
            hint="ask for less, or boot with more --far-memory",
        )


def pick_dimms(sizes: Mapping[str, int], amount: int) -> list[str]:
    """Return devices out of ``sizes`` (id → bytes, oldest first) that sum up to exactly ``amount``, newest first.

    DIMMs leave whole. Raises `UsageError` naming the sums that are possible.
    """
    total = sum(sizes.values())
    if amount > total:
        raise UsageError(
            f"{format_size(amount)} is more than the {format_size(total)} attached", hint="see: vmcoal status"
        )
    reachable: dict[int, tuple[str, ...]] = {0: ()}
    for device in reversed(list(sizes)):
        for total_so_far, chosen in list(reachable.items()):
            reachable.setdefault(total_so_far + sizes[device], (*chosen, device))
    if amount not in reachable:
        choices = ", ".join(format_size(size) for size in sorted(reachable) if size)
        raise UsageError(
            f"DIMMs are detached whole: {format_size(amount)} is no sum of them",
            hint=f"possible: {choices}; for finer steps attach with --granular",
        )
    return list(reachable[amount])
