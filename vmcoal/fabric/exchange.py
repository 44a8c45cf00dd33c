"""How a session's requests find their answers, and what the lender tells unasked. The connection is the caller's.

An answer that does not fit its request is a breach and ends the session.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar

import msgspec

from vmcoal.errors import DeadlineError, UnreachableError, VmcoalError
from vmcoal.fabric import messages as m
from vmcoal.fabric.wire import ProtocolBreach, check_version, clean, clean_error, decode_from_lender, encode

if TYPE_CHECKING:
    from vmcoal.fabric.channel import ClientChannel

EVENTS_LIMIT = 256
"""So much of what the lender tells waits for a reader."""

A = TypeVar("A", m.Pong, m.OfferReply, m.Granted, m.Renewed, m.LeaseReply)


class Exchange:
    """What is asked of the lender called ``name``, over ``channel``, whose lines go to `take`.

    ``refused`` is why the lender refused the whole session; ``ended`` is set by `end`; ``closed`` is done then, with
    the reason if there is one.
    """

    def __init__(self, name: str, *, software: str) -> None:
        self.name = name
        self.channel: ClientChannel[None] | None = None
        self.closed: asyncio.Future[VmcoalError | None] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.refused: VmcoalError | None = None
        self._software = software
        self._welcomed: asyncio.Future[m.Welcome | None] = asyncio.get_running_loop().create_future()
        self._next = 1
        self._pending: dict[int, tuple[asyncio.Future[m.FromLender | VmcoalError | None], type[m.FromLender]]] = {}
        self._events: deque[m.Revoke | m.Notice] = deque()
        self._event = asyncio.Event()
        self._why: VmcoalError | None = None

    def id(self) -> int:
        """Return the number of a new request."""
        number = self._next
        self._next += 1
        return number

    async def greet(self, hello: m.Hello) -> m.Welcome:
        """Say hello and return the lender's welcome; raises why there is none."""
        assert self.channel is not None
        self.channel.send(encode(hello))
        welcome = await self._welcomed
        if welcome is None:
            raise self._over("the greeting")
        return welcome

    async def call(self, message: m.FromBorrower, answer: type[A], what: str, deadline: float) -> A:
        """Send a request and return its ``answer``, which ``what`` names in errors.

        Raises the lender's own error when it refuses, `DeadlineError` and `UnreachableError`.
        """
        assert not isinstance(message, m.Hello)
        if self.channel is None or self.ended.is_set():
            raise self._over(what)
        line = encode(message)
        future: asyncio.Future[m.FromLender | VmcoalError | None] = asyncio.get_running_loop().create_future()
        self._pending[message.id] = future, answer
        try:
            self.channel.send(line)
            async with asyncio.timeout(deadline):
                reply = await future
        except TimeoutError:
            raise self.late(what, deadline) from None
        finally:
            self._pending.pop(message.id, None)
        if reply is None:
            raise self._over(what)
        if isinstance(reply, VmcoalError):
            raise reply
        assert isinstance(reply, answer)
        return reply

    async def events(self) -> AsyncIterator[m.Revoke | m.Notice]:
        """Yield what the lender tells unasked, until the session is over. One reader at a time.

        Of revocations that nobody reads the newest of each lease is kept; of notices the oldest are dropped.
        """
        while True:
            while self._events:
                yield self._events.popleft()
            if self.ended.is_set():
                return
            self._event.clear()
            await self._event.wait()

    def end(self, why: VmcoalError | None) -> None:
        """Nothing more comes, because of ``why`` if it was not wanted: whoever waits is told. Idempotent."""
        if self.ended.is_set():
            return
        self._why = why
        self.ended.set()
        if not self.closed.done():
            self.closed.set_result(why)
        for future, _ in self._pending.values():
            if not future.done():
                future.set_result(None)
        if not self._welcomed.done():
            self._welcomed.set_result(None)
        self._event.set()

    async def wait_ended(self) -> VmcoalError | None:
        """Wait until the session is over; return what `end` was given."""
        await self.ended.wait()
        return self._why

    def broke(self, breach: ProtocolBreach) -> UnreachableError:
        """Return the error of a lender that broke the protocol."""
        return UnreachableError(
            f"the lender broke the protocol: {breach.message}",
            host=self.name,
            hint="check that it runs the same version of vmcoal, and its log",
        )

    def breach(self, what: str) -> UnreachableError:
        """End the session because of ``what`` and return the error."""
        breach = ProtocolBreach(what)
        if self.channel is not None:
            self.channel.fail(breach)
        return self.broke(breach)

    def _over(self, what: str) -> VmcoalError:
        reason = self._why
        if reason is None:
            return UnreachableError(f"{what} broke off: the session was closed here", host=self.name)
        if isinstance(reason, UnreachableError):
            return UnreachableError(f"{what} broke off: {reason.message}", host=self.name, hint=reason.hint)
        return VmcoalError.from_wire(reason.to_wire())

    def late(self, what: str, seconds: float) -> DeadlineError:
        """Return the error of an answer that did not come in time."""
        return DeadlineError(
            f"{what} was not answered within {seconds:g} s",
            host=self.name,
            hint=f"check the link: vmcoal ping {self.name}",
        )

    def take(self, line: bytes) -> None:
        """Take a line from the lender; raises `ProtocolBreach`."""
        if not self._welcomed.done():
            check_version(line, "Welcome", peer="the lender", own="this host", software=self._software)
        message = decode_from_lender(line)
        match message:
            case m.Refuse(id=number, error=error):
                refusal = VmcoalError.from_wire(clean_error(error))
                refusal.host = self.name
                if number == 0 or not self._welcomed.done():
                    self.refused = refusal
                    assert self.channel is not None
                    self.channel.close()
                else:
                    self._answer(number, refusal)
            case m.Welcome():
                if self._welcomed.done():
                    raise ProtocolBreach("a second Welcome")
                self._welcomed.set_result(message)
            case _ if not self._welcomed.done():
                raise ProtocolBreach("the first message must be Welcome")
            case m.Revoke() | m.Notice():
                self._tell(message)
            case _:
                self._answer(message.id, message)

    def _answer(self, number: int, message: m.FromLender | VmcoalError) -> None:
        if number >= self._next:
            raise ProtocolBreach("an answer to a request that was not made")
        future, answer = self._pending.get(number, (None, None))
        if future is None or answer is None or future.done():
            return  # its caller did not wait that long
        if not isinstance(message, (answer, VmcoalError)):
            raise ProtocolBreach(f"a {type(message).__name__} where a {answer.__name__} belongs")
        future.set_result(message)

    def _tell(self, message: m.Revoke | m.Notice) -> None:
        if isinstance(message, m.Revoke):
            same = [event for event in self._events if isinstance(event, m.Revoke) and event.lease == message.lease]
            for event in same:  # told again: the newest counts
                self._events.remove(event)
        if len(self._events) >= EVENTS_LIMIT:
            oldest = next((event for event in self._events if isinstance(event, m.Notice)), None)
            if oldest is None:
                raise ProtocolBreach("a flood of revocations")
            self._events.remove(oldest)
        if isinstance(message, m.Notice):
            message = m.Notice(text=clean(message.text))
        else:
            message = msgspec.structs.replace(message, reason=clean(message.reason))
        self._events.append(message)
        self._event.set()
