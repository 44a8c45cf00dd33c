"""GPU servers of a lender under a holder of their own, without a daemon, a session or a guest."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import shutil
from collections.abc import AsyncIterator

import pytest

from framework.lent import holder_for
from vmcoal.host.opencl import choose, find_devices
from vmcoal.layout import lender_folders
from vmcoal.lending.entry import Entry
from vmcoal.lending.gpu_server import GpuServers, missing
from vmcoal.model.gpu import GpuDevice
from vmcoal.model.lease import Lease, LeaseState, ResourceKind

_epochs = itertools.count(1)


async def device() -> GpuDevice:
    """Return an OpenCL device of this host; the test is skipped where it cannot be lent."""
    if why := missing():
        pytest.skip(f"GPUs cannot be lent here: {why}; tools/setup installs what is needed")
    if shutil.which("clinfo") is None:
        pytest.skip("clinfo is not installed: tools/setup --test")
    return choose(await find_devices(), "auto")[0]


@contextlib.asynccontextmanager
async def gpu_servers() -> AsyncIterator[GpuServers]:
    """The servers of lender ``den``."""
    folders = lender_folders("den")
    async with holder_for(folders, "den") as holder:
        yield GpuServers(holder, folders, host="127.0.0.1")


def gpu_entry(gpu: GpuDevice) -> Entry:
    """Return a requested lease of ``gpu``."""
    lease = Lease(
        id=f"g{secrets.token_hex(4)}",
        kind=ResourceKind.GPU,
        amount=1,
        committed=1,
        state=LeaseState.REQUESTED,
        epoch=next(_epochs),
        lender="den",
        borrower="ann",
        vm="dev",
    )
    return Entry(lease=lease, token=lease.id, generation=secrets.token_hex(8), heard=0, since=0, gpu=gpu)
