from __future__ import annotations

from typing import Any

import pytest

from vmcoal_qmp import Event, QmpProtocolError, commands, types
from vmcoal_qmp.types import OstStatus, decode_event

pytestmark = pytest.mark.unit


class Canned:
    """Answers every command with one value."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.sent: list[tuple[str, Any]] = []

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, deadline: float = 10.0) -> Any:
        self.sent.append((command, arguments))
        return self.answer


async def test_keys_of_a_newer_qemu_are_ignored() -> None:
    status = await commands.query_status(Canned({"running": True, "status": "running", "mood": "good"}))
    assert status == types.Status(running=True, status="running")


@pytest.mark.parametrize("answer", [{}, [], "x", {"running": 1, "status": "running"}, None])
async def test_an_answer_of_the_wrong_shape_names_its_command(answer: Any) -> None:
    with pytest.raises(QmpProtocolError, match="query-status: unexpected answer") as caught:
        await commands.query_status(Canned(answer))
    assert caught.value.command == "query-status"


async def test_memory_devices_by_kind() -> None:
    dimm = {
        "size": 1,
        "addr": 2,
        "slot": 0,
        "node": 1,
        "memdev": "/objects/m",
        "hotplugged": True,
        "hotpluggable": True,
    }
    grains = {"size": 1, "requested-size": 2, "max-size": 3, "block-size": 4, "node": 1, "memdev": "/m", "memaddr": 5}
    answer = [
        {"type": "dimm", "data": dimm},
        {"type": "virtio-mem", "data": grains | {"id": "v"}},
        {"type": "hv-balloon", "data": {"id": "h"}},
    ]
    found = await commands.query_memory_devices(Canned(answer))
    assert [type(device).__name__ for device in found] == ["Dimm", "VirtioMem", "OtherMemoryDevice"]
    assert [device.id for device in found if not isinstance(device, types.OtherMemoryDevice)] == [None, "v"]
    with pytest.raises(QmpProtocolError):
        await commands.query_memory_devices(Canned([{"type": "dimm", "data": {}}]))


async def test_properties_go_beside_type_and_id() -> None:
    qmp = Canned({})
    await commands.object_add(qmp, "memory-backend-file", "m", {"size": 4096, "mem-path": "/x", "share": True})
    await commands.device_add(qmp, "pc-dimm", "d", {"memdev": "m", "node": 1})
    await commands.qom_set(qmp, "d", "requested-size", 1)
    assert qmp.sent == [
        ("object-add", {"qom-type": "memory-backend-file", "id": "m", "size": 4096, "mem-path": "/x", "share": True}),
        ("device_add", {"driver": "pc-dimm", "id": "d", "memdev": "m", "node": 1}),
        ("qom-set", {"path": "d", "property": "requested-size", "value": 1}),
    ]


async def test_a_negative_size_is_refused() -> None:
    qmp = Canned({})
    with pytest.raises(ValueError, match="size of m is negative"):
        await commands.object_add(qmp, "memory-backend-ram", "m", {"size": -1})
    assert qmp.sent == []


def test_a_vcpu_is_plugged_by_its_place_without_the_node() -> None:
    props = types.CpuProperties(node_id=2, socket_id=2, core_id=1, thread_id=0)
    assert props.arguments() == {"socket-id": 2, "core-id": 1, "thread-id": 0}


def test_versions_compare_as_numbers() -> None:
    version = types.Version(qemu=types.VersionTriple(major=10, minor=0, micro=2))
    assert version.triple > (7, 2, 0)
    assert str(version) == "10.0.2"


OST = {"slot": "0", "slot-type": "DIMM", "source": 3, "status": 130, "device": "d"}


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("DEVICE_DELETED", {"path": "/p"}, types.DeviceDeleted(path="/p")),
        ("DEVICE_DELETED", {"path": "/p", "device": "d"}, types.DeviceDeleted(path="/p", device="d")),
        ("DEVICE_UNPLUG_GUEST_ERROR", {"path": "/p"}, types.DeviceUnplugGuestError(path="/p")),
        ("MEM_UNPLUG_ERROR", {"device": "d", "msg": "m"}, types.MemUnplugError(device="d", msg="m")),
        (
            "ACPI_DEVICE_OST",
            {"info": OST},
            types.AcpiDeviceOst(slot="0", slot_type="DIMM", source=3, status=130, device="d"),
        ),
        (
            "MEMORY_DEVICE_SIZE_CHANGE",
            {"id": "v", "size": 5, "qom-path": "/p"},
            types.MemoryDeviceSizeChange(id="v", size=5, qom_path="/p"),
        ),
        ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}, types.Shutdown(guest=True, reason="guest-shutdown")),
        ("RESET", {"guest": True, "reason": "guest-reset"}, types.Reset(guest=True, reason="guest-reset")),
        ("STOP", {}, types.Stop()),
        ("RESUME", {}, types.Resume()),
        ("GUEST_PANICKED", {"action": "pause"}, types.GuestPanicked(action="pause")),
        ("VSERPORT_CHANGE", {"id": "agent", "open": True}, types.VserportChange(id="agent", open=True)),
    ],
)
def test_events_by_name(name: str, data: dict[str, Any], expected: types.KnownEvent) -> None:
    assert decode_event(Event(name, data | {"new-key": 1})) == expected


def test_an_unknown_event_stays_as_it_is() -> None:
    event = Event("RTC_CHANGE", {"offset": 1})
    assert decode_event(event) is event


@pytest.mark.parametrize("name", ["DEVICE_DELETED", "ACPI_DEVICE_OST", "SHUTDOWN"])
def test_an_event_of_the_wrong_shape(name: str) -> None:
    with pytest.raises(QmpProtocolError):
        decode_event(Event(name, {}))


@pytest.mark.parametrize(
    ("source", "status", "refused"),
    [
        (3, OstStatus.SUCCESS, False),
        (3, OstStatus.IN_PROGRESS, False),
        (3, OstStatus.DEVICE_BUSY, True),
        (3, OstStatus.FAILURE, True),
        (0x103, OstStatus.DEVICE_BUSY, True),
        (1, OstStatus.DEVICE_BUSY, False),
        (0x200, OstStatus.FAILURE, False),
    ],
)
def test_what_counts_as_a_refused_ejection(source: int, status: int, refused: bool) -> None:
    ost = types.AcpiDeviceOst(slot="0", slot_type="DIMM", source=source, status=status)
    assert ost.refused is refused


def test_event_times() -> None:
    message = {"event": "E", "timestamp": {"seconds": 3, "microseconds": 250000}}
    assert Event.from_message(message).timestamp == 3.25
    assert Event.from_message({"event": "E", "timestamp": {"seconds": -1, "microseconds": -1}}).timestamp == -1
    assert Event.from_message({"event": "E"}) == Event("E")
