"""QMP where the process matters: who is connected, what ends QEMU, what happens when it hangs or dies."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from framework.qemu import BareQemu, bare_qemu, qemu_binary, running_qemu, spawn, topology
from vmcoal_qmp import QmpClient, QmpCommandError, QmpDisconnectedError, QmpTimeoutError, commands

__all__ = ["bare_qemu", "qemu_binary"]
pytestmark = pytest.mark.contract


async def test_a_monitor_serves_one_client_at_a_time(bare_qemu: BareQemu) -> None:
    await commands.object_add(bare_qemu.client, "memory-backend-ram", "bytes", {"size": 1 << 20})
    with pytest.raises(QmpTimeoutError) as caught:
        await QmpClient.connect(bare_qemu.socket, deadline=0.2)
    assert caught.value.command == "connect"
    await bare_qemu.client.close()
    async with await QmpClient.connect(bare_qemu.socket) as second:
        assert "bytes" in await commands.object_ids(second)


async def test_many_clients_in_turn(bare_qemu: BareQemu) -> None:
    await bare_qemu.client.close()
    for _ in range(10):
        async with await QmpClient.connect(bare_qemu.socket) as client:
            assert not (await commands.query_status(client)).running


async def test_a_hanging_qemu_costs_the_deadline_and_carries_out_the_command_later(bare_qemu: BareQemu) -> None:
    qmp = bare_qemu.client
    signal.pidfd_send_signal(bare_qemu.pidfd, signal.SIGSTOP)
    try:
        with pytest.raises(QmpTimeoutError):
            await commands.object_add(qmp, "memory-backend-ram", "late", {"size": 1 << 20}, deadline=0.1)
    finally:
        signal.pidfd_send_signal(bare_qemu.pidfd, signal.SIGCONT)
    assert "late" in await commands.object_ids(qmp)


async def test_closing_does_not_wait_for_a_hanging_qemu(bare_qemu: BareQemu) -> None:
    signal.pidfd_send_signal(bare_qemu.pidfd, signal.SIGSTOP)
    big = {"text": "x" * (4 << 20)}  # more than the socket takes
    task = asyncio.create_task(bare_qemu.client.execute("qom-list", big))
    await asyncio.sleep(0)
    async with asyncio.timeout(8):
        await bare_qemu.client.close()
    with pytest.raises(QmpDisconnectedError):
        await task


async def test_a_dying_qemu_fails_the_command_under_way(bare_qemu: BareQemu) -> None:
    signal.pidfd_send_signal(bare_qemu.pidfd, signal.SIGSTOP)
    task = asyncio.create_task(commands.query_status(bare_qemu.client))
    await asyncio.sleep(0)
    bare_qemu.kill()
    with pytest.raises(QmpDisconnectedError) as caught:
        await task
    assert caught.value.command == "query-status"
    await bare_qemu.client.disconnected
    assert await bare_qemu.exited() == -signal.SIGKILL


async def test_a_negative_size_ends_qemu(bare_qemu: BareQemu) -> None:
    # Why commands.object_add refuses it.
    arguments = {"qom-type": "memory-backend-ram", "id": "bytes", "size": -1}
    with pytest.raises(QmpDisconnectedError):
        await bare_qemu.client.execute("object-add", arguments)
    assert await bare_qemu.exited() == -signal.SIGABRT


async def test_what_qemu_cannot_parse_is_not_sent(bare_qemu: BareQemu) -> None:
    with pytest.raises(ValueError):
        await bare_qemu.client.execute("qom-list", {"path": "\ud800"})
    for path in ("/\0", "/ü", "/" + "x" * 100_000):
        with pytest.raises(QmpCommandError):
            await bare_qemu.client.execute("qom-list", {"path": path})
    assert not (await commands.query_status(bare_qemu.client)).running


async def test_the_pci_tree_has_the_far_nodes_expanders(bare_qemu: BareQemu) -> None:
    qmp = bare_qemu.client
    await commands.device_add(qmp, "virtio-rng-pci", "rng", {"bus": "port21", "addr": "0"})
    buses = {bus.bus: bus for bus in await commands.query_pci(qmp)}
    assert set(buses) == {0, 32, 64, 96}
    ports = {device.qdev_id: device for device in buses[64].devices}
    assert set(ports) == {"port21", "port22"}
    assert {device.class_info.class_ for device in ports.values()} == {0x0604}
    # What is behind a port shows only once firmware or guest have numbered its bus.
    assert ports["port21"].pci_bridge is not None
    assert ports["port21"].pci_bridge.bus.secondary == 0
    assert ports["port21"].pci_bridge.devices == []


async def test_the_chardev_tells_whether_somebody_is_connected(bare_qemu: BareQemu) -> None:
    [chardev] = await commands.query_chardev(bare_qemu.client)
    assert (chardev.label, chardev.frontend_open) == ("qmp", True)


async def test_the_transcript_of_a_real_session(bare_qemu: BareQemu) -> None:
    await commands.query_kvm(bare_qemu.client)
    await bare_qemu.client.close()
    lines = [json.loads(line) for line in bare_qemu.transcript.read_text().splitlines()]
    assert [line["dir"] for line in lines] == ["in", "out", "in", "out", "in"]
    assert lines[-1]["msg"]["return"]["enabled"] is False


async def refuses_to_start(binary: str, folder: Path, argv: list[str]) -> str:
    """Check that QEMU does not start with ``argv``, and return what it says."""
    qemu = spawn(binary, folder, argv)
    try:
        assert await qemu.exited() == 1
    finally:
        qemu.close()
    return qemu.stderr.read_text()


async def test_numa_cpus_need_the_number_of_sockets(qemu_binary: str, surroundings: Path) -> None:
    argv = [word.replace("sockets=4,dies=1,cores=2,threads=1,", "") for word in topology()]
    said = await refuses_to_start(qemu_binary, surroundings / "q", argv)
    assert "-numa cpu,node-id=1,socket-id=1: no match found" in said


@pytest.mark.parametrize(("value", "says"), [("9", "shouldn't be less than 10"), ("256", "'val' expects uint8_t")])
async def test_distances_are_10_to_255(qemu_binary: str, surroundings: Path, value: str, says: str) -> None:
    argv = [word.replace("val=80", f"val={value}") for word in topology()]
    assert says in await refuses_to_start(qemu_binary, surroundings / "q", argv)


async def test_the_largest_distances_are_ordinary(qemu_binary: str, surroundings: Path) -> None:
    argv = [word.replace("val=40", "val=254").replace("val=80", "val=255") for word in topology()]
    async with running_qemu(qemu_binary, surroundings / "q", argv) as qemu:
        assert not (await commands.query_status(qemu.client)).running
