"""One borrower's VM as the lender sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from vmcoal.errors import VmcoalError
from vmcoal.fabric.channel import ServerChannel
from vmcoal.fabric.identity import BorrowerRecord
from vmcoal.fabric.messages import FromBorrower, FromLender, Hello, Refuse
from vmcoal.fabric.wire import encode


class Peer:
    """One borrower's VM in one session.

    ``borrower`` its record; ``vm`` the VM's name there; ``address`` the IP address it came from and ``local_address``
    the one it came to; ``same_host`` whether both ends run on one kernel. Iterating yields its messages until it ends;
    `Ping` is answered here and does not appear. While nobody iterates, at most a few dozen messages wait, then the peer
    is slowed down; a message out of range is refused here.
    """

    def __init__(
        self,
        channel: ServerChannel[FromBorrower],
        borrower: BorrowerRecord,
        hello: Hello,
        *,
        address: str,
        local_address: str,
        same_host: bool,
    ) -> None:
        self.borrower = borrower
        self.vm = hello.vm
        self.software = hello.software
        self.address = address
        self.local_address = local_address
        self.same_host = same_host
        self._channel = channel

    def __repr__(self) -> str:
        return f"Peer({self.borrower.name}/{self.vm} from {self.address})"

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._channel.closing

    def send(self, message: FromLender) -> None:
        """Send a message; it is dropped if the session is over.

        A peer that lets a megabyte of them wait is cut off. Raises `InternalError` for a message of more than a line.
        """
        self._channel.send(encode(message))

    def refuse(self, request: int, error: VmcoalError) -> None:
        """Answer ``request`` with an error; the session goes on."""
        self.send(Refuse(id=request, error=error.to_wire()))

    def __aiter__(self) -> AsyncIterator[FromBorrower]:
        return self

    async def __anext__(self) -> FromBorrower:
        message = await self._channel.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def close(self, error: VmcoalError | None = None, *, deadline: float = 3.0) -> None:
        """End the session, telling ``error`` to the borrower if given. Idempotent."""
        if error is None:
            self._channel.close()
        else:
            self._channel.fail(error)
        await self._channel.wait_ended(deadline)
