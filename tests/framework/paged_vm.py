"""A fake VM whose memory engine pages, and two lenders for its pages."""

from __future__ import annotations

from framework.fake_pager import FakePager
from framework.fake_vm import FakeLender, FakeVm
from vmcoal.controller.attach import attach
from vmcoal.controller.vm import Vm
from vmcoal.model.attachment import AttachRequest


class Paged:
    """The page engine in front of ``world``'s guest; the lenders are attic, and cellar, which is further away."""

    def __init__(self, world: FakeVm) -> None:
        self.world = world
        self.pager = world.engine = FakePager(world.fuse)
        world.lenders["cellar"] = FakeLender("cellar", rtt=60e-6)
        world.qemu.version = (9, 0)

    async def attached(self, request: AttachRequest) -> Vm:
        """Return a controller of a VM that has what ``request`` says."""
        vm = self.world.controller()
        await attach(vm, request, self.world.report)
        return vm
