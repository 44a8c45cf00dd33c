"""The guest through the vmcoal agent."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from vmcoal.errors import DeadlineError, RefusedError, UnreachableError, UsageError, VmcoalError
from vmcoal.guest import agent_answers as answers
from vmcoal.guest.agent_link import AgentError, Link, guest_words
from vmcoal.model.guest import (
    CommandEnd,
    CommandInput,
    CpuName,
    GuestCommand,
    GuestCpu,
    GuestInfo,
    GuestTopology,
    MemoryBlock,
    MemorySpan,
    Pressure,
    Room,
)

Progress = Callable[[int, int, str | None], None]
OnOutput = Callable[[int, bytes], Awaitable[None]]

_WINDOW = 128 * 1024
_INPUT_CHUNK = 32 * 1024
_COMMAND_MAX = 192 * 1024
_START = 60.0
_UNSEEN = "does the guest's kernel take hotplug? see `vmcoal doctor` and `vmcoal console`"
_UPDATE = "install the agent that comes with this vmcoal in the guest (guest-agent/README.md)"


def _inner(deadline: float) -> float:
    """Return the agent's share of a deadline, so that its own account of what it did arrives in time."""
    return max(deadline - 2.0, deadline * 0.8)


class VmcoalAgent:
    """The agent's calls, typed. Implements `vmcoal.guest.channel.Agent`, where they are described."""

    kind = "vmcoal"
    limits: tuple[str, ...] = ()

    def __init__(self, link: Link, hello: dict[str, Any]) -> None:
        self._link = link
        self.version = guest_words(hello.get("agent"), 40)

    async def _call(self, name: str, args: dict[str, Any], deadline: float, progress: Progress | None = None) -> Any:
        def on_event(event: dict[str, Any]) -> bool:
            try:
                step = answers.step(event)
            except RefusedError:
                return False
            if event.get("event") != "step":
                return False
            if progress:
                progress(*step)
            return True

        args = {**args, "deadline": _inner(deadline)}
        try:
            return await self._link.call(name, args, deadline=deadline, on_event=on_event, cancel=True)
        except AgentError as error:
            raise _translate(error, name, deadline) from error

    async def info(self, *, deadline: float = 10.0) -> GuestInfo:
        """See `Agent.info`."""
        return answers.info(await self._call("info", {}, deadline), self.kind, self.version)

    async def topology(self, *, deadline: float = 10.0) -> GuestTopology:
        """See `Agent.topology`."""
        return answers.topology(await self._call("topology", {}, deadline))

    async def _cpus(
        self, name: str, args: dict[str, Any], online: bool, deadline: float, progress: Progress | None
    ) -> tuple[GuestCpu, ...]:
        state = "online" if online else "offline"
        total = len(args["cpus"]) if "cpus" in args else None
        try:
            items = (await self._call(name, args, deadline, progress)).get("items", [])
        except (RefusedError, DeadlineError) as error:
            done, failed = answers.cpus(error.details.get("items", []))
            raise _told(error, done, failed, total, f"CPUs are {state}") from error
        done, failed = answers.cpus(items)
        unseen = [one for one in failed if one.error == "unseen"]
        if failed and len(unseen) == len(failed):
            late = DeadlineError(f"{unseen[0].what} has not appeared in the guest within {deadline:g} s", hint=_UNSEEN)
            raise _told(late, done, failed, total, f"CPUs are {state}")
        if failed:
            raise _refusal(done, failed, f"CPUs are {state}")
        return tuple(done)

    async def cpu_set(
        self, cpus: Sequence[CpuName], online: bool, *, deadline: float = 30.0, progress: Progress | None = None
    ) -> tuple[GuestCpu, ...]:
        """See `Agent.cpu_set`."""
        if not cpus:
            return ()
        names = [
            {"number": cpu.number} if cpu.number is not None else {"socket": cpu.socket, "core": cpu.core}
            for cpu in cpus
        ]
        return await self._cpus("cpu_set", {"cpus": names, "online": online}, online, deadline, progress)

    async def park_far(self, *, keep: int = 0, deadline: float = 30.0) -> tuple[GuestCpu, ...]:
        """See `Agent.park_far`."""
        return await self._cpus("park_far", {"keep": keep}, False, deadline, None)

    async def memory_set(
        self, where: int | MemorySpan, online: bool, *, deadline: float = 60.0, progress: Progress | None = None
    ) -> tuple[MemoryBlock, ...]:
        """See `Agent.memory_set`."""
        args = {**answers.where_args(where), "online": online}
        state = f"memory blocks are {'online' if online else 'offline'}"
        try:
            answer = await self._call("memory_set", args, deadline, progress)
        except (RefusedError, DeadlineError) as error:
            done, failed = answers.blocks(error.details.get("items", []))
            raise _told(error, done, failed, None, state) from error
        done, failed = answers.blocks(answer.get("items", []))
        if failed:
            raise _refusal(done, failed, state)
        return tuple(sorted(done, key=lambda block: block.number))

    async def room(self, where: int | MemorySpan, *, deadline: float = 10.0) -> Room:
        """See `Agent.room`."""
        return answers.room(await self._call("room", dict(answers.where_args(where)), deadline))

    async def pressure(self, *, deadline: float = 10.0) -> Pressure:
        """See `Agent.pressure`."""
        return answers.pressure(await self._call("pressure", {}, deadline))

    async def pci_fix_node(self, addresses: Sequence[str], node: int, *, deadline: float = 10.0) -> tuple[str, ...]:
        """See `Agent.pci_fix_node`."""
        answer = await self._call("pci_fix_node", {"addresses": list(addresses), "node": node}, deadline)
        items = [item for item in answer.get("items", []) if isinstance(item, dict)]
        for item in items:
            if item.get("error"):
                raise RefusedError(f"the guest refuses: {guest_words(item.get('message'))}")
        return tuple(guest_words(item.get("address"), 20) for item in items)

    async def pci_power_off(self, address: str, *, deadline: float = 15.0) -> None:
        """See `Agent.pci_power_off`."""
        await self._call("pci_power_off", {"address": address}, deadline)

    async def sysctl(self, name: str, value: str | None = None, *, deadline: float = 10.0) -> str:
        """See `Agent.sysctl`."""
        return guest_words((await self._call("sysctl", {"name": name, "value": value}, deadline)).get("value"))

    async def migrate(self, pid: int, source: Sequence[int], target: Sequence[int], *, deadline: float = 60.0) -> int:
        """See `Agent.migrate`."""
        args = {"pid": pid, "source": list(source), "target": list(target)}
        return answers.convert((await self._call("migrate", args, deadline)).get("left"), int)

    async def poweroff(self, *, force: bool = False, deadline: float = 10.0) -> None:
        """See `Agent.poweroff`."""
        with contextlib.suppress(UnreachableError):  # it may be ended before it can answer
            await self._call("poweroff", {"force": force}, deadline)

    async def ping(self, *, deadline: float = 5.0) -> float:
        """See `Agent.ping`."""
        start = time.perf_counter()
        await self._link.call("ping", {}, deadline=deadline)
        return time.perf_counter() - start

    async def wait_lost(self) -> VmcoalError:
        """See `Agent.wait_lost`."""
        return await self._link.wait_lost()

    async def close(self) -> None:
        """See `Agent.close`."""
        await self._link.close()

    # -- commands

    async def exec(
        self,
        command: GuestCommand,
        *,
        on_output: OnOutput,
        stdin: asyncio.Queue[CommandInput] | None = None,
        deadline: float | None = None,
    ) -> CommandEnd:
        """See `Agent.exec`."""
        check_command(command)
        args: dict[str, Any] = {
            "argv": list(command.argv),
            "env": command.env,
            "cwd": command.cwd,
            "tty": command.tty,
            "rows": command.rows,
            "columns": command.columns,
            "stdin": stdin is not None,
            "window": _WINDOW,
        }
        chunks: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        credit = _WINDOW
        started = asyncio.Event()

        def on_event(event: dict[str, Any]) -> bool:
            nonlocal credit
            first = not started.is_set()
            started.set()
            if event.get("event") == "started":
                return first
            try:
                data = base64.b64decode(event.get("data", ""), validate=True)
            except (binascii.Error, TypeError, ValueError):
                return False
            if not data or len(data) > credit or event.get("stream") not in (1, 2):
                return False
            credit -= len(data)
            chunks.put_nowait((event["stream"], data))
            return True

        rid, future = self._link.begin("exec", args, on_event, endless=True)
        future.add_done_callback(lambda _: chunks.put_nowait(None))
        future.add_done_callback(lambda _: started.set())
        feeder = asyncio.create_task(self._feed(rid, stdin)) if stdin is not None else None
        try:
            async with asyncio.timeout(deadline):
                await self._started(started)
                while (chunk := await chunks.get()) is not None:
                    await on_output(*chunk)
                    credit += len(chunk[1])
                    self._link.notify("exec_ack", {"exec": rid, "bytes": len(chunk[1])})
                answer = await future
        except TimeoutError as error:
            raise DeadlineError(
                f"{command.argv[0]} did not end within {deadline:g} s",
                left="it was told to end",
                hint="use a longer deadline",
            ) from error
        except AgentError as error:
            raise RefusedError(f"the guest cannot run it: {error.message}", code=error.code) from error
        finally:
            if not future.done() or future.cancelled():
                self._link.notify("cancel", {"id": rid})
            self._link.forget(rid)
            if feeder:
                feeder.cancel()
                await asyncio.gather(feeder, return_exceptions=True)
        return answers.end(answer)

    async def _started(self, started: asyncio.Event) -> None:
        """Wait until a command runs or failed; it may then take as long as it likes."""
        try:
            async with asyncio.timeout(_START):
                await started.wait()
        except TimeoutError:
            raise UnreachableError(
                f"the guest's agent did not start the command within {_START:g} s",
                hint="the guest or its agent hangs: see vmcoal status and vmcoal logs",
            ) from None

    async def _feed(self, rid: int, stdin: asyncio.Queue[CommandInput]) -> None:
        """Give a command its input; each piece waits until the command took it."""
        while True:
            part = await stdin.get()
            if part.rows and part.columns:
                self._link.notify("exec_resize", {"exec": rid, "rows": part.rows, "columns": part.columns})
            pieces = [part.data[at : at + _INPUT_CHUNK] for at in range(0, len(part.data), _INPUT_CHUNK)]
            if part.eof and not pieces:
                pieces = [b""]
            for index, piece in enumerate(pieces, 1):
                eof = part.eof and index == len(pieces)
                args = {"exec": rid, "data": base64.b64encode(piece).decode(), "eof": eof}
                try:
                    await self._link.call("exec_input", args, deadline=None)
                except (AgentError, UnreachableError):
                    return  # it reads no more, as commands may; its end is told by its own answer
            if part.eof:
                return


def check_command(command: GuestCommand) -> None:
    """Raise `UsageError` for a command that no system can run."""
    words = [*command.argv, *command.env, *command.env.values(), command.cwd or ""]
    if not command.argv or not command.argv[0]:
        raise UsageError("there is no command to run", hint="vmcoal exec NAME -- COMMAND [ARGUMENT…]")
    if any("\0" in word for word in words) or any("=" in name or not name for name in command.env):
        raise UsageError("an argument or variable holds a character that none may hold")
    if sum(len(word.encode("utf-8", "surrogateescape")) * 2 for word in words) > _COMMAND_MAX:
        raise UsageError("the command line is too long", hint="give long data on standard input")


def _translate(error: AgentError, name: str, deadline: float) -> VmcoalError:
    """Return the agent's error as the caller is to see it; ``items`` is what was done before it."""
    if error.code == "ETIMEDOUT":
        return DeadlineError(
            f"the guest did not finish {name} within {deadline:g} s",
            hint="try again with a longer deadline, or look at `vmcoal console`",
            items=error.items,
        )
    if error.code == "unseen":
        return DeadlineError(f"{error.message} in the guest within {deadline:g} s", hint=_UNSEEN)
    hint = {"unknown_call": _UPDATE, "unsupported": "this guest's kernel cannot do it"}.get(error.code)
    return RefusedError(f"the guest refuses: {error.message}", hint=hint, code=error.code, items=error.items)


def _told(
    error: VmcoalError, done: Sequence[Any], failed: Sequence[answers.Failed], total: int | None, state: str
) -> VmcoalError:
    """Add to ``error`` what was done before it."""
    if done:
        error.left = f"{len(done)}{f' of {total}' if total else ''} {state}"
    error.details["done"] = [item.number for item in done]
    error.details["failed"] = {one.what: f"{one.error}: {one.message}" for one in failed[:64]}
    error.details.pop("items", None)
    return error


def _refusal(done: Sequence[Any], failed: Sequence[answers.Failed], state: str) -> VmcoalError:
    """Return the error of a call in which the guest refused some items."""
    first = failed[0]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    hint = "something in the guest holds on to it" if first.error in ("EBUSY", "EAGAIN") else None
    error = RefusedError(f"the guest refuses {first.what}: {first.error}, {first.message}{more}", hint=hint)
    return _told(error, done, failed, len(done) + len(failed), state)
