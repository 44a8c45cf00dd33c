"""Which memory engine a VM gets, through the command line: what doctor says, what QEMU's arguments exclude."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from framework.path import Scene, needs_pager, scene
from vmcoal.host.checks import Finding

pytestmark = [pytest.mark.contract, pytest.mark.timeout(120)]

BOOT_SECTOR = b"\xfa\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def shed(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request) as made:
        (made.home / "still.raw").write_bytes(BOOT_SECTOR.ljust(1 << 20, b"\0"))
        yield made


def options(shed: Scene, *more: str) -> tuple[str, ...]:
    return ("--image", str(shed.home / "still.raw"), "--no-seed", "--wait", "qemu", *more)


def test_a_vm_gets_the_engine_that_doctor_says(shed: Scene) -> None:
    found = shed.run("doctor", "--for", "attach", "-o", "json", code=None).out
    (told,) = [each for each in msgspec.json.decode(found, type=list[Finding]) if each.id == "memory-engine"]
    engine = shed.boot("still", *options(shed)).memory_engine
    assert engine is not None
    assert told.found.startswith(engine.name)
    assert engine.reason in told.found
    shed.run("shutdown", "still", "--force")
    again = shed.json(type(shed.status()), "boot", "still", "--memory-engine", "fuse", "--wait", "qemu").memory_engine
    assert again is not None
    assert (again.name, again.reason) == ("fuse", "asked for")


def test_what_the_page_engine_excludes_leads_to_fuse_and_is_refused_where_it_was_asked_for(shed: Scene) -> None:
    needs_pager()
    reporting = ("--qemu-args", "-device virtio-balloon-pci,free-page-reporting=on")
    refused = shed.run("boot", "still", *options(shed, *reporting, "--memory-engine", "pager"), code=5)
    assert "free-page reporting takes pages away behind the pager's back" in refused.err
    assert not shed.pids("qemu")
    engine = shed.boot("still", *options(shed, *reporting)).memory_engine
    assert engine is not None
    assert engine.name == "fuse"
    assert "free-page-reporting=on' in --qemu-args" in engine.reason


def test_what_every_engine_excludes_is_refused_at_attach(shed: Scene) -> None:
    shed.lend("attic", memory="256M")
    shed.boot("still", *options(shed, "--qemu-args", "-overcommit mem-lock=on"))
    for dry in ((), ("--dry-run",)):
        refused = shed.run("attach", "still", "--memory", "128M", *dry, code=5)
        assert "locked memory brings every page here" in refused.err
        assert "hint:" in refused.err
    assert shed.status().attachments == ()
    assert shed.lender("attic").leases == ()
