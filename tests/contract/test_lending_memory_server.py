"""Memory servers with a real holder and a real nbdkit."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path

import msgspec
import pytest

from framework.lent import entry, lend, memory_servers
from vmcoal.backends import nbd
from vmcoal.errors import ConflictError, ExecutionError, NotFoundError, RefusedError, UnreachableError
from vmcoal.holding.client import Holder
from vmcoal.host.facts import Host
from vmcoal.layout import lender_folders
from vmcoal.lending.memory_server import MemoryServers
from vmcoal.model.lease import MemoryServer
from vmcoal.model.units import MIB

pytestmark = pytest.mark.contract


async def check(server: MemoryServer, size: int, tmp_path: Path, **changes: object) -> None:
    server = msgspec.structs.replace(server, **changes)
    key = tmp_path / "key"
    nbd.write_psk(key, server.psk_identity, server.psk)
    argv = nbd.info_argv("127.0.0.1", server.port, server.export, server.psk_identity, key)
    await nbd.check_export(argv, size, host="den", deadline=10)


async def pid_of(holder: Holder, lease: str) -> int:
    return next(child.pid for child in await holder.list() if child.id == f"serve-{lease}")


async def test_serves_reserved_bytes_to_the_one_key_and_export(tmp_path: Path) -> None:
    async with memory_servers() as servers:
        one, server = await lend(servers, entry(16 * MIB))
        file = servers.file(one)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert servers.resident(one) == 16 * MIB
        await check(server, 16 * MIB, tmp_path)
        with pytest.raises(RefusedError, match="key"):
            await check(server, 16 * MIB, tmp_path, psk="00" * 32)
        with pytest.raises(RefusedError, match="key"):
            await check(server, 16 * MIB, tmp_path, psk_identity="somebody")
        with pytest.raises(RefusedError, match="any more"):
            await check(server, 16 * MIB, tmp_path, export=f"{one.lease.id}-{one.lease.epoch}-0")
        with pytest.raises(RefusedError, match="any more"):
            await check(server, 16 * MIB, tmp_path, export="")
        with pytest.raises(RefusedError, match="granted"):
            await check(server, 32 * MIB, tmp_path)
        code, _, err = await nbd.run(["nbdinfo", f"nbd://127.0.0.1:{server.port}/{server.export}"], deadline=10)
        assert code
        assert "Operation not supported" in err, "nothing is told without TLS"
        await servers.stop(one)
        await servers.stop(one)
        assert not file.exists()
        with pytest.raises(UnreachableError):
            await check(server, 16 * MIB, tmp_path)
        assert not await servers.runs(one.lease.id)
        assert not list(lender_folders("den").runtime.glob("*.psk"))


async def test_a_granular_lease_is_sparse() -> None:
    async with memory_servers() as servers:
        one, _ = await lend(servers, entry(64 * MIB, committed=0))
        assert servers.file(one).stat().st_size == 64 * MIB
        assert servers.resident(one) == 0
        await servers.stop(one)


async def test_the_key_is_in_no_command_line() -> None:
    async with memory_servers() as servers:
        one, server = await lend(servers, entry(2 * MIB))
        pid = await pid_of(servers.holder, one.lease.id)
        for what in ("cmdline", "environ"):
            assert server.psk.encode() not in Path(f"/proc/{pid}/{what}").read_bytes()
        assert server.psk not in repr(server)
        assert Path(f"/proc/{pid}/limits").read_text().split("Max core file size")[1].split()[0] == "0"
        await servers.stop(one)


async def test_a_killed_server_comes_back_with_the_same_bytes_and_port(tmp_path: Path) -> None:
    async with memory_servers() as servers:
        one, server = await lend(servers, entry(4 * MIB))
        servers.file(one).write_bytes(b"x" * 4 * MIB)
        os.kill(await pid_of(servers.holder, one.lease.id), signal.SIGKILL)
        await check(server, 4 * MIB, tmp_path)
        assert await servers.runs(one.lease.id)
        assert servers.file(one).read_bytes() == b"x" * 4 * MIB
        await servers.stop(one)


async def test_found_again_after_the_holder_died(tmp_path: Path) -> None:
    async with memory_servers() as servers:
        one, server = await lend(servers, entry(4 * MIB))
        await servers.holder.shutdown(grace=0)
        async with memory_servers() as again:
            assert await again.find(one) == server
            await check(server, 4 * MIB, tmp_path)
            assert await again.find(one) == server
            await again.stop(one)
            with pytest.raises(NotFoundError, match="gone"):
                await again.find(one)


async def test_a_port_that_was_taken_meanwhile_is_told() -> None:
    async with memory_servers() as servers:
        one, _ = await lend(servers, entry(2 * MIB))
        await servers.holder.stop(f"serve-{one.lease.id}", grace=0)
        await servers.holder.forget(f"serve-{one.lease.id}")
        with socket.create_server(("127.0.0.1", one.port)), pytest.raises(ConflictError, match="taken"):
            await servers.find(one)
        await servers.stop(one)


async def test_data_ports_run_out() -> None:
    async with memory_servers() as servers:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            few = MemoryServers(servers.holder, lender_folders("den"), host="127.0.0.1", ports=range(port, port + 1))
            asked = entry(2 * MIB)
            with pytest.raises(ConflictError, match="no data port"):
                await few.start(asked)
        assert not few.file(asked).exists()


async def test_a_server_that_does_not_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with memory_servers() as servers:
        (tmp_path / "nbdkit").write_text("#!/bin/sh\necho no luck >&2\nexit 1\n")
        (tmp_path / "nbdkit").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        asked = entry(2 * MIB)
        with pytest.raises(ExecutionError, match="ended at its start") as caught:
            await servers.start(asked)
        assert "no luck" in caught.value.details["stderr"]
        assert not servers.file(asked).exists()
        assert await servers.holder.list() == []
        assert not list(lender_folders("den").runtime.glob("*.psk"))


async def test_refuses_what_is_not_free_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with memory_servers() as servers:
        monkeypatch.setattr(Host, "memory_available", lambda self: MIB)
        with pytest.raises(RefusedError, match="free here now"):
            await servers.start(entry(2 * MIB))


async def test_sweep_ends_what_belongs_to_no_lease() -> None:
    async with memory_servers() as servers:
        kept, _ = await lend(servers, entry(2 * MIB))
        stray, _ = await lend(servers, entry(2 * MIB))
        assert await servers.sweep([kept]) == [f"serve-{stray.lease.id}"]
        assert await servers.runs(kept.lease.id)
        assert not await servers.runs(stray.lease.id)
        await servers.stop(kept)
        await servers.stop(stray)
