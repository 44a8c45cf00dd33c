"""The lender's commands against a fake lender, and the borrower's list of lenders."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from framework.command import vmcoal
from framework.fake_controller import FakeController, Script, failure, result
from framework.golden import check_golden
from vmcoal import layout
from vmcoal.cli import lend
from vmcoal.cli.lender_process import start_error
from vmcoal.cli.lenders import lenders_text, split_address
from vmcoal.cli.params import local_lenders
from vmcoal.control.wire import Progress
from vmcoal.controller.api import LenderView
from vmcoal.errors import ConflictError, ExecutionError, PrerequisiteError, RefusedError, UsageError
from vmcoal.lending.api import BorrowerView, LenderStatus, PairRequest, ReclaimResult
from vmcoal.lending.entry import Entry
from vmcoal.lending.journal import LenderJournal
from vmcoal.model.attachment import Plan
from vmcoal.model.lease import Lease, LeaseState, Offer, ResourceKind
from vmcoal.model.link import Link

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).with_name("golden_cli")
MIB, GIB = 1 << 20, 1 << 30

OFFER = Offer("barn", 1, 2, 512 * MIB, GIB)

LEASES = (
    Lease("m1", ResourceKind.MEMORY, 512 * MIB, 512 * MIB, LeaseState.ACTIVE, 3, "barn", "laptop", "web"),
    Lease("m2", ResourceKind.MEMORY, GIB, 6 * MIB, LeaseState.REVOKING, 4, "barn", "laptop", "web"),
    Lease("c1", ResourceKind.CPU, 1, 1, LeaseState.UNREACHABLE, 5, "barn", "laptop", "web"),
)

STATUS = LenderStatus(
    name="barn",
    addresses=("192.0.2.7:6180", "[2001:db8::7]:6180"),
    offer=OFFER,
    leases=LEASES,
    borrowers=1,
    pairing=42.0,
    metrics="127.0.0.1:9465",
    pid=1,
    uptime=7300.0,
    degraded=("the memory server of m2 restarts too often: vmcoal drain",),
)

BORROWER = BorrowerView(
    name="laptop",
    fingerprint="SHA256:abc",
    grants=(ResourceKind.MEMORY, ResourceKind.CPU),
    paired_at=1_767_225_600.0,
    connected=True,
    leases=LEASES,
)

Golden = Callable[[str, str], None]


@pytest.fixture
def golden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Golden:
    regenerate = request.config.getoption("--regenerate")
    return lambda name, text: check_golden(GOLDEN / f"{name}.txt", text, regenerate)


@pytest.fixture
def barn() -> Iterator[Callable[[dict[str, Script]], FakeController]]:
    folders = layout.lender_folders("barn")
    folders.make()
    running: list[FakeController] = []

    def start(scripts: dict[str, Script]) -> FakeController:
        running.append(FakeController(folders.control_socket, scripts).__enter__())
        return running[-1]

    yield start
    for fake in running:
        fake.__exit__(None, None, None)


Start = Callable[[dict[str, Script]], FakeController]


@pytest.mark.parametrize(
    ("command", "steps"),
    [(("drain",), ["cordon", *["ask back"] * 3]), (("lend", "forget", "laptop"), [*["ask back"] * 3, "forget"])],
)
def test_what_is_asked_back_can_be_seen_before(barn: Start, command: tuple[str, ...], steps: list[str]) -> None:
    fake = barn({"status": [result(STATUS)], "borrowers": [result((BORROWER,))]})
    done = vmcoal(*command, "--dry-run", "-o", "json")
    plan = msgspec.json.decode(done.out, type=Plan)
    assert [step.name for step in plan.steps] == steps
    assert any("6 MiB" in step.summary for step in plan.steps)
    assert {call.method for call in fake.calls} - {"borrowers"} == {"status"}


def test_status(barn: Start, golden: Golden) -> None:
    barn({"status": [result(STATUS)]})
    layout.lender_folders("attic").make()
    done = vmcoal("lend", "status")
    assert done.code == 0
    golden("lend-status", done.out)
    assert msgspec.json.decode(vmcoal("lend", "status", "-o", "json").out, type=list[LenderStatus]) == [
        LenderStatus(name="attic", addresses=(), offer=Offer("attic", 0, 0, 0, 0), running=False, held=0),
        STATUS,
    ]


def test_nothing_is_lent() -> None:
    assert vmcoal("lend", "status").out.startswith("this host lends nothing")
    assert vmcoal("lend", "status", "-o", "json").out == "[]\n"
    for command in ("cordon", "uncordon", "drain"):
        done = vmcoal(command)
        assert done.code == 4
        assert "this host lends nothing" in done.err


def test_pair_shows_the_code_and_grants_what_is_lent(barn: Start, golden: Golden) -> None:
    fake = barn(
        {
            "status": [result(STATUS)],
            "pair": [
                Progress(1, 2, "give this code to the borrower's user", detail="123-456-789"),
                Progress(2, 2, "192.0.2.9 tried a wrong code; 2 tries left"),
                result(BORROWER),
            ],
        }
    )
    done = vmcoal("lend", "pair")
    assert done.code == 0
    golden("lend-pair", done.out + "--- stderr\n" + done.err)
    kinds = (ResourceKind.MEMORY, ResourceKind.CPU)
    assert msgspec.convert(fake.last("pair"), PairRequest) == PairRequest(grants=kinds, seconds=300.0)
    vmcoal("lend", "pair", "--grant", "cpu", "--borrower", "laptop", "--for", "10s", "--name", "barn")
    assert fake.last("pair") == {"grants": ["cpu"], "name": "laptop", "seconds": 10.0}


def test_borrowers(barn: Start) -> None:
    barn({"borrowers": [result((BORROWER,))]})
    lines = vmcoal("lend", "borrowers").out.splitlines()
    assert lines[0].split() == ["BORROWER", "KEY", "GRANTS", "CONNECTED", "LEASES", "PAIRED"]
    assert lines[1].split()[:6] == ["laptop", "SHA256:abc", "memory,", "cpu", "yes", "3"]
    shown = msgspec.json.decode(vmcoal("lend", "borrowers", "-o", "json").out, type=list[BorrowerView])
    assert shown == [BORROWER]


def test_taking_back(barn: Start) -> None:
    back = ReclaimResult(released=("m1",), taken=("m2", "c1"))
    told: dict[str, Script] = {"borrowers": [result((BORROWER,))]}
    told |= {method: [Progress(1, 1, "get leases back"), result(back)] for method in ("drain", "stop", "forget")}
    fake = barn(told)
    assert vmcoal("drain", "--deadline", "5s").out == ("lender barn drained: 1 lease came back, 2 taken: m2, c1\n")
    assert fake.last("drain") == {"deadline": 5.0}
    assert vmcoal("lend", "stop").out.startswith("lender barn ended: ")
    assert vmcoal("lend", "forget", "nobody", "--yes").code == vmcoal("lend", "forget", "nobody", "--dry-run").code == 4
    assert vmcoal("lend", "forget", "laptop").code == 2
    assert vmcoal("lend", "forget", "laptop", "--yes").code == 0
    assert fake.last("forget") == {"name": "laptop", "deadline": 30.0}
    assert msgspec.json.decode(vmcoal("lend", "drain", "-o", "json").out, type=ReclaimResult) == back


def test_cordon_and_uncordon(barn: Start) -> None:
    cordoned = msgspec.structs.replace(STATUS, offer=msgspec.structs.replace(OFFER, cordoned=True))
    barn({"cordon": [result(cordoned)], "uncordon": [result(STATUS)], "metrics": [result("vmcoal_x 1\n")]})
    assert vmcoal("cordon").out == "lender barn lends nothing new; 3 leases still out\n"
    assert vmcoal("uncordon").out == "lender barn lends again\n"
    assert vmcoal("lend", "metrics").out == "vmcoal_x 1\n"


def test_a_lenders_error_is_passed_on(barn: Start) -> None:
    barn({"cordon": [failure(RefusedError("not today", hint="tomorrow"))]})
    done = vmcoal("cordon")
    assert (done.code, done.err) == (6, "vmcoal: error: not today\n  hint: tomorrow\n")


def test_a_lender_that_does_not_run() -> None:
    layout.lender_folders("barn").make()
    done = vmcoal("cordon")
    assert done.code == 3
    assert "lender barn does not run\n  hint: vmcoal lend --name barn" in done.err
    assert vmcoal("lend", "status").out == "Lender barn: stopped\n"


def test_what_a_stopped_lender_still_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMCOAL_SHM_DIR", str(tmp_path))
    folders = layout.lender_folders("barn")
    folders.make()
    journal = LenderJournal(folders.journal)
    ended = msgspec.structs.replace(LEASES[2], state=LeaseState.RELEASED)
    for lease in (LEASES[0], ended):
        journal.append(Entry(lease=lease, token=lease.id, heard=0.0, since=0.0), None)
    journal.close()
    folders.memory("m1", "aa").write_bytes(b"x" * MIB)
    (tmp_path / "attic-m1-aa.mem").write_bytes(b"x" * MIB)
    before = folders.journal.read_bytes()
    held = f"it still holds 1 MiB in {tmp_path} and 1 lease on record"
    assert vmcoal("lend", "status").out == (
        f"Lender barn: stopped\n  ! {held}; go on with: vmcoal lend --name barn; or free it: vmcoal lend delete barn\n"
    )
    (seen,) = msgspec.json.decode(vmcoal("lend", "status", "-o", "json").out, type=list[LenderStatus])
    assert (seen.running, seen.held, seen.leases) == (False, MIB, LEASES[:1])
    assert folders.journal.read_bytes() == before
    assert vmcoal("lend", "delete", "barn", "--yes").code == 0
    assert sorted(tmp_path.glob("*.mem")) == [tmp_path / "attic-m1-aa.mem"]


def test_several_lenders_need_a_name(barn: Start) -> None:
    layout.lender_folders("attic").make()
    done = vmcoal("cordon")
    assert done.code == 2
    assert "give --name, one of attic, barn" in done.err


def test_a_lender_that_refused_to_start_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(argv: list[str], folders: layout.LenderFolders, name: str) -> None:
        raise PrerequisiteError("99 CPUs cannot be lent", hint="lend fewer")

    monkeypatch.setattr("vmcoal.cli.lend.preflight", lambda: None)
    monkeypatch.setattr("vmcoal.cli.lend.start_lender", refuse)
    assert vmcoal("lend", "--name", "barn", "--cpus", "99").code == 3
    assert not local_lenders()
    layout.lender_folders("attic").make()
    assert vmcoal("lend", "--name", "attic", "--cpus", "99").code == 3
    assert local_lenders() == ["attic"]


def test_a_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    layout.config_file().parent.mkdir(parents=True)
    layout.config_file().write_text('[lend]\nlisten = "192.0.2.7"\n')
    done = vmcoal("lend", "--cpus", "2", "--memory", "1G", "--name", "barn", "--data-ports", "6181-6199", "--dry-run")
    assert done.code == 0
    assert done.out.rstrip().endswith(
        "-m vmcoal.lending barn --cpus 2 --memory 1073741824 --listen 192.0.2.7 --data-ports 6181-6199"
    )
    assert not layout.state_home().exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "nothing to lend"),
        (("--cpus", "0"), 2, "--cpus: '0' is not a count"),
        (("--memory", "none"), 2, "--memory: 'none' is not a size"),
        (("--cpus", "1", "--name", "No"), 2, "'No' cannot be a lender name"),
        (("--cpus", "1", "status"), 2, "options go behind the command: vmcoal lend status"),
        (("pairs",), 2, "did you mean vmcoal lend pair?"),
        (("forget",), 2, "missing argument"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = vmcoal("lend", *arguments)
    assert done.code == code
    assert said in done.err
    assert "hint: " in done.err


def test_a_lender_that_runs_is_not_started_again(barn: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lend, "preflight", lambda: None)
    barn({})
    done = vmcoal("lend", "--cpus", "1", "--name", "barn")
    assert done.code == 5
    assert "lender barn runs already" in done.err


@pytest.mark.parametrize(
    ("code", "kind"), [(2, UsageError), (3, PrerequisiteError), (5, ConflictError), (1, ExecutionError)]
)
def test_why_a_lender_did_not_start(code: int, kind: type[Exception]) -> None:
    said = "2026-01-01 INFO x\nvmcoal: error: 9 CPUs cannot be lent\n  hint: lend at most 2\n"
    error = start_error("barn", code, said, Path("/log"))
    assert type(error) is kind
    if code != 1:
        assert (error.message, error.hint) == ("9 CPUs cannot be lent", "lend at most 2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("attic", ("attic", 6180)),
        ("attic.example:7", ("attic.example", 7)),
        ("192.0.2.1:6200", ("192.0.2.1", 6200)),
        ("::1", ("::1", 6180)),
        ("[::1]", ("::1", 6180)),
        ("[fe80::1%eth0]:99", ("fe80::1%eth0", 99)),
        ("2001:db8::7", ("2001:db8::7", 6180)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a b", "host:", "host:0", "host:99999", "[::1", "user@host", "host:6180:1", "-x y"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        split_address(text)


def test_lenders_table(golden: Golden) -> None:
    base = LenderView(name="attic", address="192.0.2.7:6180", grants=(ResourceKind.MEMORY,), reachable=False)
    link = Link(rtt=0.0021, p50=0.003, p99=0.009, samples=5)
    up = msgspec.structs.replace(base, name="barn", reachable=True, offer=OFFER, link=link, distance=137)
    cordoned = msgspec.structs.replace(up, name="cave", offer=msgspec.structs.replace(OFFER, cordoned=True), grants=())
    down = msgspec.structs.replace(base, error="nothing listens there")
    golden("lenders", lenders_text([down, up, cordoned]) + "\n")
    assert lenders_text([]).startswith("no lender is paired")


def test_no_lender_is_paired() -> None:
    assert vmcoal("lenders", "-o", "json").out == "[]\n"
    for arguments in (("ping",), ("ping", "attic"), ("unpair", "attic")):
        done = vmcoal(*arguments)
        assert done.code == 4
        assert "vmcoal pair" in done.err


def test_pair_wants_a_code() -> None:
    done = vmcoal("pair", "192.0.2.7")
    assert done.code == 2
    assert "give --code-file FILE, or - for stdin" in done.err
    assert vmcoal("pair", "192.0.2.7", "--code-file", "-", stdin=b"\n").code == 2
    assert vmcoal("pair", "192.0.2.7", "--code-file", "-", stdin=b"12-34\n").code == 2
    assert vmcoal("pair", "192.0.2.7", "--code-file", "/nothing").code == 2


def test_a_stopped_lender_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMCOAL_SHM_DIR", str(tmp_path))
    folders = layout.lender_folders("barn")
    folders.make()
    folders.host_key.write_text("key")
    lent, other = tmp_path / "barn-m1-aa.mem", tmp_path / "attic-m1-aa.mem"
    lent.touch()
    other.touch()
    seen = vmcoal("lend", "delete", "barn", "--dry-run")
    assert seen.out.splitlines() == [f"remove {folders.host_key}", f"remove {lent}"]
    assert vmcoal("lend", "delete", "barn").code == 2
    assert folders.host_key.exists()
    assert vmcoal("lend", "delete", "barn", "--yes").code == 0
    assert (folders.state.exists(), lent.exists(), other.exists()) == (False, False, True)
    assert vmcoal("lend", "delete", "barn", "--yes").code == 4


def test_a_lender_that_runs_or_serves_is_not_removed(barn: Start) -> None:
    barn({})
    assert vmcoal("lend", "delete", "barn", "--yes").code == 5
    folders = layout.lender_folders("barn")
    assert folders.state.exists()


def test_a_killed_lender_that_still_serves_is_not_removed() -> None:
    folders = layout.lender_folders("barn")
    folders.make()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as holder:
        holder.bind(str(folders.holder_socket))
        holder.listen()
        seen = vmcoal("lend", "status")
        done = vmcoal("lend", "delete", "barn", "--yes")
    folders.holder_socket.unlink()
    assert (done.code, "still run" in done.err) == (5, True)
    assert "it was killed, and what it lent is still served; go on with: vmcoal lend --name barn" in seen.out
