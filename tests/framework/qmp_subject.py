"""What the QMP contract is tested on: real QEMUs, recorded ones replayed, and the model in memory.

One suite runs on all three, so that neither the replays nor the model can promise what QEMU does not keep.
``pytest --regenerate`` records the real ones anew: ``tests/contract/transcripts/qemu-MAJOR.MINOR/TEST.jsonl``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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


def model(version: tuple[int, int] = (7, 2)) -> FakeMonitor:
    """Return the model of the machine that `framework.qemu.topology` describes."""
    return FakeMonitor(
        version=version,
        nodes=len(DISTANCES),
        cores=CORES,
        near_cpus=CORES,
        near_memory=NEAR_MEMORY,
        max_memory=MAXMEM,
        slots=SLOTS,
        ports={f"port{node}{port}": node for node in FAR_NODES for port in (1, 2)},
    )


def _recorded() -> list[str]:
    return sorted(path.name.removeprefix("qemu-") for path in TRANSCRIPTS.glob("qemu-*"))


def _parameters() -> list[Any]:
    found = [pytest.param(("real", binary), id=f"real-{qemu_version(binary)}") for binary in qemu_binaries()]
    if not found:
        why = pytest.mark.skip(reason="no qemu-system-x86_64: install qemu-system-x86 or set VMCOAL_QEMU_BINARIES")
        found = [pytest.param(("real", ""), id="real", marks=why)]
    for version in _recorded():
        found.append(pytest.param(("replay", version), id=f"replay-{version}"))
        found.append(pytest.param(("model", version), id=f"model-{version}"))
    return found


def _pair(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


@asynccontextmanager
async def _real(request: pytest.FixtureRequest, binary: str, folder: Path, tape: Path) -> AsyncIterator[Subject]:
    recorder = Tape(folder) if request.config.getoption("--regenerate") else Transcript(folder / "qmp.log")
    async with running_qemu(binary, folder, transcript=recorder) as qemu:
        yield Subject(qemu.client, qemu.client.version.triple[:2], folder, qemu)
        ended = qemu.client.disconnected.done()
    show(request, qemu)
    if isinstance(recorder, Tape):
        recorder.save(tape, ended_by_qemu=ended)


@asynccontextmanager
async def _replayed(version: str, folder: Path, tape: Path) -> AsyncIterator[Subject]:
    assert tape.exists(), f"no {tape}: tools/record-transcripts makes it"
    async with (
        qmp_server(folder / "qmp.sock", replay(tape, folder)) as path,
        await QmpClient.connect(path) as client,
    ):
        yield Subject(client, _pair(version), folder)


@pytest.fixture(params=_parameters())
async def subject(request: pytest.FixtureRequest, surroundings: Path) -> AsyncIterator[Subject]:
    """The machine of `framework.qemu.topology`, stopped: real, replayed or modelled."""
    kind, which = request.param
    folder = surroundings / "s" / "qemu"
    folder.mkdir()
    name = re.sub(r"\W+", "-", request.node.originalname).strip("-") + ".jsonl"
    if kind == "real":
        tape = TRANSCRIPTS / f"qemu-{qemu_version(which)}" / name
        async with _real(request, which, folder, tape) as made:
            yield made
    elif kind == "replay":
        async with _replayed(which, folder, TRANSCRIPTS / f"qemu-{which}" / name) as made:
            yield made
    else:
        yield Subject(model(_pair(which)), _pair(which), folder)


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
