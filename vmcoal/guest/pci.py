"""What the guest makes of a PCI function that was plugged into one of its slots, asked through the agent's `exec`."""

from __future__ import annotations

import msgspec

from vmcoal.errors import UNREADABLE, ExecutionError, RefusedError
from vmcoal.guest.agent_link import guest_words
from vmcoal.guest.channel import Agent
from vmcoal.model.guest import GuestCommand
from vmcoal.model.pci import GuestFunction

_OUTPUT_MAX = 16 * 1024
LOOK = """
import json, os, sys, time
slot, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
def read(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
while True:
    address = read("/sys/bus/pci/slots/%s/address" % slot) + ".0"
    folder = "/sys/bus/pci/devices/" + address
    if os.path.exists(folder + "/resource"):
        break
    if time.monotonic() > until:
        print(json.dumps({"error": "its kernel shows nothing in slot %s; dmesg there may say why" % slot}))
        sys.exit(1)
    time.sleep(0.05)
bars = []
for line in read(folder + "/resource").splitlines()[:6]:
    start, end, flags = (int(word, 16) for word in line.split())
    bars.append((start, end - start + 1 if start or end else 0))
driver = os.path.basename(os.readlink(folder + "/driver")) if os.path.exists(folder + "/driver") else ""
print(json.dumps({
    "address": address, "vendor": int(read(folder + "/vendor"), 16), "device": int(read(folder + "/device"), 16),
    "node": int(read(folder + "/numa_node") or -1), "driver": driver, "bars": bars,
}))
"""
"""The program that runs there. Linux shows a hot-plugged function only when its BARs have their addresses, or could not
be given any."""


class _Answer(msgspec.Struct):
    error: str | None = None


async def look(agent: Agent, slot: int, *, deadline: float) -> GuestFunction:
    """Return the function in the guest's slot ``slot`` as soon as it is there.

    Raises `RefusedError` with the guest's reason, `ExecutionError` for an answer that is none, and as `Agent.exec`.
    """
    out, err = bytearray(), bytearray()

    async def on_output(stream: int, chunk: bytes) -> None:
        kept = out if stream == 1 else err
        kept.extend(chunk[: _OUTPUT_MAX - len(kept)])

    inner = max(1.0, deadline - 5.0)
    argv = ("python3", "-IS", "-c", LOOK, str(slot), f"{inner:g}")
    end = await agent.exec(GuestCommand(argv=argv), on_output=on_output, deadline=deadline)
    try:
        if end.code == 0:
            return msgspec.json.decode(out, type=GuestFunction)
        said = msgspec.json.decode(out, type=_Answer).error
    except UNREADABLE as error:
        if end.code == 0:
            raise ExecutionError(f"the guest said of slot {slot}: {guest_words(str(error))}") from error
        said = (err.decode(errors="replace").strip().splitlines() or [""])[-1]
    how = f"exit code {end.code}" if end.signal is None else f"signal {end.signal}"
    raise RefusedError(
        f"the guest does not have the function: {guest_words(said or how)}",
        hint="the guest's kernel needs hotplug of PCI Express, and its agent Python 3.9 or newer",
    )
