"""What the QMP contract is tested on: real QEMUs, recorded ones replayed, and the model in memory.

One suite runs on all three, so that neither the replays nor the model can promise what QEMU does not keep.
``pytest --regenerate`` records the real ones anew: ``tests/contract/transcripts/qemu-MAJOR.MINOR/TEST.jsonl``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from framework.fake_machine import FakeGuest
from framework.fake_monitor import FakeMonitor
from framework.fake_qemu import Tape, qmp_server, replay
from framework.qemu import (
    CORES,
    DISTANCES,
    FAR_NODES,
    MAXMEM,
    NEAR_MEMORY,
    SLOTS,
    BareQemu,
    qemu_binaries,
    qemu_version,
    running_qemu,
    show,
)
from vmcoal_qmp import QmpClient, Transcript, commands

TRANSCRIPTS = Path(__file__).parents[1] / "contract" / "transcripts"


@dataclass
class Subject:
    """One QEMU, or something that stands for it. ``version``: (major, minor); ``qemu``: the real one, if it is."""

    monitor: QmpClient | FakeMonitor
    version: tuple[int, int]
    folder: Path
    qemu: BareQemu | None = None


def model(version: tuple[int, int] = (7, 2), guest: FakeGuest | None = None) -> FakeMonitor:
    """Return the model of the machine that `framework.qemu.topology` describes."""
    return FakeMonitor(
        version=version,
        guest=guest,
        nodes=len(DISTANCES),
        cores=CORES,
        near_cpus=CORES,
        near_memory=NEAR_MEMORY,
        max_memory=MAXMEM,
        slots=SLOTS,
        near_ports=["port01"],
        ports={"port01": 0} | {f"port{node}{port}": node for node in FAR_NODES for port in (1, 2)},
    )


def parameters(real: pytest.MarkDecorator) -> list[Any]:
    """Return a parameter for each real QEMU, marked ``real``, and each recorded version replayed and modelled."""
    found = [
        pytest.param(("real", binary), id=f"real-{qemu_version(binary)}", marks=real) for binary in qemu_binaries()
    ]
    if not found:
        why = pytest.mark.skip(reason="no qemu-system-x86_64: install qemu-system-x86 or set VMCOAL_QEMU_BINARIES")
        found = [pytest.param(("real", ""), id="real", marks=[real, why])]
    for path in sorted(TRANSCRIPTS.glob("qemu-*")):
        version = path.name.removeprefix("qemu-")
        found.append(pytest.param(("replay", version), id=f"replay-{version}", marks=pytest.mark.contract))
        found.append(pytest.param(("model", version), id=f"model-{version}", marks=pytest.mark.contract))
    return found


def pair(version: str) -> tuple[int, int]:
    """Return ``version`` as numbers."""
    major, minor = version.split(".")
    return int(major), int(minor)


def tape_of(request: pytest.FixtureRequest, version: str) -> Path:
    """Return where the session of the running test with QEMU ``version`` is recorded."""
    return TRANSCRIPTS / f"qemu-{version}" / f"{request.node.originalname}.jsonl"


@contextmanager
def recording(request: pytest.FixtureRequest, version: str, folder: Path) -> Iterator[Transcript]:
    """Give the transcript for a real session, and save it as the test's recording if that was asked for."""
    if not request.config.getoption("--regenerate"):
        yield Transcript(folder / "qmp.log")
        return
    tape = Tape(folder)
    yield tape
    tape.save(tape_of(request, version))


@asynccontextmanager
async def replayed(request: pytest.FixtureRequest, version: str, folder: Path) -> AsyncIterator[Subject]:
    """Play the recorded session of the running test."""
    tape = tape_of(request, version)
    assert tape.exists(), f"no {tape}: tools/record-transcripts makes it"
    server = qmp_server(folder / "qmp.sock", replay(tape, folder))
    async with server as path, await QmpClient.connect(path) as client:
        yield Subject(client, pair(version), folder)


@pytest.fixture(params=parameters(pytest.mark.contract))
async def subject(request: pytest.FixtureRequest, surroundings: Path) -> AsyncIterator[Subject]:
    """The machine of `framework.qemu.topology`, stopped: real, replayed or modelled."""
    kind, which = request.param
    folder = surroundings / "s" / "qemu"
    folder.mkdir()
    if kind == "real":
        with recording(request, qemu_version(which), folder) as transcript:
            async with running_qemu(which, folder, transcript=transcript) as qemu:
                yield Subject(qemu.client, qemu.client.version.triple[:2], folder, qemu)
        show(request, qemu)
    elif kind == "replay":
        async with replayed(request, which, folder) as made:
            yield made
    else:
        yield Subject(model(pair(which)), pair(which), folder)


@asynccontextmanager
async def nothing_changes(subject: Subject) -> AsyncIterator[None]:
    """Check that what happens inside changes neither the objects nor the devices nor the memory of the machine."""
    before = await _everything(subject.monitor)
    yield
    assert await _everything(subject.monitor) == before


async def _everything(monitor: commands.Executor) -> tuple[Any, ...]:
    queries: tuple[Callable[..., Any], ...] = (
        commands.object_ids,
        commands.device_ids,
        commands.query_memory_devices,
        commands.query_hotpluggable_cpus,
    )
    return tuple([await query(monitor) for query in queries])
