"""Packets of the holder protocol (docs/internals/holder-protocol.md): a sequence of NUL-terminated fields."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from vmcoal.errors import UnreachableError, UsageError
from vmcoal.holding.children import ChildSpec, ChildState, ChildStatus, ExitEvent

PACKET_MAX = 64 * 1024
FDS_MAX = 32

Field = tuple[str, "str | int | os.PathLike[str]"]


@dataclass(frozen=True)
class Packet:
    """A received packet: its first field, the others as pairs, and the descriptors that came along."""

    head: str
    fields: tuple[tuple[str, str], ...]
    fds: tuple[int, ...] = ()

    def get(self, key: str) -> str:
        """Return the value of ``key``; raises `UnreachableError` where the holder left it out."""
        for name, value in self.fields:
            if name == key:
                return value
        raise UnreachableError(f"the holder's {self.head} has no {key}")

    def all(self, key: str) -> list[str]:
        """Return the values of every field ``key``."""
        return [value for name, value in self.fields if name == key]


def encode(verb: str, *fields: Field) -> bytes:
    """Return a request as bytes; raises `UsageError` where it cannot be one packet."""
    packet = bytearray(verb.encode() + b"\0")
    for key, value in fields:
        data = os.fsencode(value if isinstance(value, os.PathLike) else str(value))
        if b"\0" in data:
            raise UsageError(f"{key} of a {verb} request holds a NUL byte")
        packet += key.encode() + b"=" + data + b"\0"
    if len(packet) > PACKET_MAX:
        raise UsageError(
            f"a {verb} request of {len(packet)} bytes is longer than {PACKET_MAX}",
            hint="shorten the command line or the environment",
        )
    return bytes(packet)


def decode(data: bytes, fds: tuple[int, ...] = ()) -> Packet:
    """Return a received packet; raises `UnreachableError` where it is none."""
    if not data.endswith(b"\0"):
        raise UnreachableError("the holder sent a packet that does not end in NUL")
    head, *rest = [os.fsdecode(field) for field in data[:-1].split(b"\0")]
    fields = []
    for field in rest:
        key, equals, value = field.partition("=")
        if not equals:
            raise UnreachableError(f"the holder sent {field[:32]!r} where a key=value belongs")
        fields.append((key, value))
    return Packet(head, tuple(fields), fds)


def encode_spawn(spec: ChildSpec) -> tuple[bytes, list[int]]:
    """Return the spawn request of ``spec`` and the descriptors to send with it."""
    env: Mapping[str, str] = os.environ if spec.env is None else spec.env
    fields: list[Field] = [("id", spec.id)]
    fields += [("arg", argument) for argument in spec.argv]
    fields += [("env", f"{name}={value}") for name, value in env.items()]
    for key, path in (("cwd", spec.cwd), ("stdout", spec.stdout), ("stderr", spec.stderr), ("cgroup", spec.cgroup)):
        if path is not None:
            fields.append((key, path))
    fields += [("log-limit", spec.log_limit), ("restart", spec.restart.value), ("restart-max", spec.restart_max)]
    fields += [("main", int(spec.main))]
    fields += [("fd", target) for target in spec.fds]
    return encode("spawn", *fields), list(spec.fds.values())


def parse_child(text: str) -> ChildStatus:
    """Return the child that a ``child=`` field tells of."""
    try:
        id_, pid, state, restarts, code, signal, dropped = text.split(" ")
        return ChildStatus(
            id=id_,
            pid=int(pid),
            state=ChildState(state),
            restarts=int(restarts),
            code=int(code),
            signal=int(signal),
            dropped=int(dropped),
        )
    except ValueError as error:
        raise UnreachableError(f"the holder described a child as {text[:80]!r}") from error


def parse_exit(packet: Packet) -> ExitEvent | None:
    """Return the exit that an event packet tells of, or ``None`` for an event of a type this version does not know."""
    if packet.get("type") != "exit":
        return None
    try:
        return ExitEvent(
            id=packet.get("id"),
            pid=int(packet.get("pid")),
            state=ChildState(packet.get("state")),
            code=int(packet.get("code")),
            signal=int(packet.get("signal")),
            restarting=packet.get("restarting") == "1",
        )
    except ValueError as error:
        raise UnreachableError("the holder sent an exit event that makes no sense") from error
