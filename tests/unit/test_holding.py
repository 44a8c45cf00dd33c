"""Packets, the exits file, and where executables are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcoal.errors import PrerequisiteError, UnreachableError, UsageError
from vmcoal.holding.binaries import find_binary
from vmcoal.holding.children import ChildSpec, ChildState, ChildStatus, ExitEvent, ExitRecord, Restart, read_exits
from vmcoal.holding.wire import PACKET_MAX, Packet, decode, encode, encode_spawn, parse_child, parse_exit

pytestmark = pytest.mark.unit


def test_a_spawn_request_field_by_field() -> None:
    spec = ChildSpec(
        id="nbd-1",
        argv=("nbdkit", "-f", ""),
        env={"PATH": "/bin", "EMPTY": ""},
        cwd=Path("/"),
        stdout=Path("/o"),
        stderr=Path("/e"),
        cgroup=Path("/c"),
        log_limit=4096,
        fds={3: 10, 5: 11},
        restart=Restart.ON_FAILURE,
        restart_max=2,
        main=True,
    )
    packet, fds = encode_spawn(spec)
    assert packet.decode().split("\0") == [
        *("spawn", "id=nbd-1", "arg=nbdkit", "arg=-f", "arg=", "env=PATH=/bin", "env=EMPTY="),
        *("cwd=/", "stdout=/o", "stderr=/e", "cgroup=/c"),
        *("log-limit=4096", "restart=on-failure", "restart-max=2", "main=1", "fd=3", "fd=5", ""),
    ]
    assert fds == [10, 11]


def test_no_environment_is_that_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMCOAL_UNIT", "x")
    assert b"\0env=VMCOAL_UNIT=x\0" in encode_spawn(ChildSpec(id="a", argv=("b",)))[0]
    assert b"\0env=" not in encode_spawn(ChildSpec(id="a", argv=("b",), env={}))[0]


def test_what_cannot_be_a_packet_is_refused() -> None:
    with pytest.raises(UsageError, match="arg of a spawn request holds a NUL byte"):
        encode_spawn(ChildSpec(id="a", argv=("b\0c",)))
    assert len(encode("x", ("k", "v" * (PACKET_MAX - 5)))) == PACKET_MAX
    with pytest.raises(UsageError, match="longer than 65536"):
        encode("x", ("k", "v" * (PACKET_MAX - 4)))


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_any_text_survives_the_way(values: list[str]) -> None:
    packet = decode(encode("ok", *(("k", value) for value in values)))
    assert packet.head == "ok"
    assert packet.all("k") == values


def test_bytes_that_are_no_text_survive_too() -> None:
    path = Path("/tmp/\udcff")
    assert decode(encode("ok", ("k", path))).get("k") == str(path)


@pytest.mark.parametrize("data", [b"", b"ok", b"ok\0x\0", b"ok\0\0"])
def test_answers_that_are_none(data: bytes) -> None:
    with pytest.raises(UnreachableError):
        decode(data)


def test_a_child_is_parsed() -> None:
    status = parse_child("nbd-1 42 signaled 3 0 9 12")
    expected = ChildStatus(id="nbd-1", pid=42, state=ChildState.SIGNALED, restarts=3, code=0, signal=9, dropped=12)
    assert status == expected
    assert not status.live
    assert parse_child("a 1 waiting 0 0 0 0").live
    for bad in ("", "a 1 running 0 0 0", "a x running 0 0 0 0", "a 1 asleep 0 0 0 0", "a 1 running 0 0 0 0 0"):
        with pytest.raises(UnreachableError):
            parse_child(bad)


def test_an_exit_event_is_parsed() -> None:
    fields = [("type", "exit"), ("id", "a"), ("pid", "7"), ("state", "exited"), ("code", "1"), ("signal", "0")]
    event = parse_exit(Packet("event", (*fields, ("restarting", "1"), ("later", "more"))))
    assert event == ExitEvent(id="a", pid=7, state=ChildState.EXITED, code=1, signal=0, restarting=True)
    assert event.exit_status() is None
    assert parse_exit(Packet("event", (("type", "news"),))) is None
    with pytest.raises(UnreachableError):
        parse_exit(Packet("event", tuple(fields)))
    with pytest.raises(UnreachableError):
        parse_exit(Packet("event", (("type", "exit"), ("id", "a"), ("pid", "x"))))


def test_the_exits_file_is_read_with_its_older_part(tmp_path: Path) -> None:
    exits = tmp_path / "exits.log"
    assert read_exits(exits) == []
    (tmp_path / "exits.log.1").write_text("2025-01-02T03:04:05.678Z qemu 7 exited 0\n")
    assert len(read_exits(exits)) == 1
    exits.write_text(
        "2025-01-02T03:04:06.000Z nbd-1 8 signaled 9\n"
        "2025-01-02T03:04:07.000Z nbd-1 8 running 9\n"
        "\n"
        "[vmcoal-holder: 80 bytes lost here]\n"
        "2025-01-02T03:04:08.000Z nbd-1 0 failed 2\n"
        "2025-01-02T03:0"
    )
    assert read_exits(exits) == [
        ExitRecord(at="2025-01-02T03:04:05.678Z", id="qemu", pid=7, state=ChildState.EXITED, code=0),
        ExitRecord(at="2025-01-02T03:04:06.000Z", id="nbd-1", pid=8, state=ChildState.SIGNALED, code=9),
        ExitRecord(at="2025-01-02T03:04:08.000Z", id="nbd-1", pid=0, state=ChildState.FAILED, code=2),
    ]


def test_executables_are_found_or_their_lack_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMCOAL_BINDIR", str(tmp_path))
    with pytest.raises(PrerequisiteError, match="is missing") as caught:
        find_binary("tool")
    assert "VMCOAL_BINDIR" in (caught.value.hint or "")
    (tmp_path / "tool").write_text("")
    with pytest.raises(PrerequisiteError, match="cannot be executed"):
        find_binary("tool")
    (tmp_path / "tool").chmod(0o755)
    assert find_binary("tool") == tmp_path / "tool"
    monkeypatch.delenv("VMCOAL_BINDIR")
    with pytest.raises(PrerequisiteError, match="_bin/no-such-tool is missing"):
        find_binary("no-such-tool")
