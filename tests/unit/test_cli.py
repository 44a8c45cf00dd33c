"""What the commands ask of a controller, print, and exit with."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from framework.command import plain_times, vmcoal
from framework.fake_controller import FakeController, Script, failure, result
from framework.golden import check_golden
from vmcoal import errors, layout
from vmcoal.cli import guest
from vmcoal.cli.app import Command, Group, app
from vmcoal.cli.catalog import COMMANDS
from vmcoal.control.wire import API, Call, Output, Progress
from vmcoal.controller.api import AttachResult, DetachResult, ExecResult, MoveResult, ShutdownResult, Tuning
from vmcoal.controller.leftovers import Leftovers
from vmcoal.model.activity import PagingActivity, StoreActivity
from vmcoal.model.attachment import (
    AttachedCpu,
    AttachedGpu,
    AttachedMemory,
    Attachment,
    AttachmentState,
    AttachRequest,
    DetachRequest,
    MemoryStyle,
    Plan,
    Step,
)
from vmcoal.model.engine import EngineChoice, MemoryEngineName
from vmcoal.model.gpu import GpuDevice, GpuKind
from vmcoal.model.lease import LeaseState
from vmcoal.model.link import Link
from vmcoal.model.machine import Accel, CpuMode, Engine, KernelBoot, MachineSpec
from vmcoal.model.paging import PagedRegion
from vmcoal.model.status import NodeStatus, VmStatus

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).with_name("golden_cli")

MIB, GIB = 1 << 20, 1 << 30

ATTACHMENT = Attachment(
    lender="attic",
    node=1,
    distance=98,
    link=Link(rtt=0.0004, p50=0.0005, p99=0.0009, samples=20),
    cpus=tuple(
        AttachedCpu(
            lease="c1",
            engine=Engine.LOCAL,
            core=core,
            device=f"cpu-1-{core}",
            state=AttachmentState.ATTACHED,
            lease_state=LeaseState.ACTIVE,
        )
        for core in (0, 1)
    ),
    memory=(
        AttachedMemory(
            lease="m1",
            style=MemoryStyle.DIMM,
            size=512 * MIB,
            capacity=512 * MIB,
            engine="fuse",
            backend="mem-m1",
            device="dimm-m1",
            state=AttachmentState.ATTACHED,
            lease_state=LeaseState.ACTIVE,
        ),
        AttachedMemory(
            lease="m2",
            style=MemoryStyle.GRANULAR,
            size=6 * MIB,
            capacity=GIB,
            engine="fuse",
            backend="mem-m2",
            device="vmem-m2",
            state=AttachmentState.DEGRADED,
            lease_state=LeaseState.UNREACHABLE,
        ),
    ),
)

STATUS = VmStatus(
    name="web",
    state="running",
    accel=Accel.TCG,
    accel_reason="there is no /dev/kvm",
    cpu_mode=CpuMode.PLUG_PARK,
    cpus=2,
    memory=GIB,
    agent="vmcoal",
    guest="Debian GNU/Linux 12 (bookworm), Linux 6.1.0-50-cloud-amd64",
    qemu_version="7.2.22",
    qemu_pid=4001,
    controller_pid=4002,
    holder_pid=4003,
    ssh_port=2222,
    metrics="127.0.0.1:9180",
    uptime=75.0,
    degraded=("lender attic has been unreachable for 4 s; bring it back, or: vmcoal shutdown web --force",),
    nodes=(
        NodeStatus(
            node=0,
            distance=10,
            lender=None,
            cpus_plugged=2,
            cpus_online=2,
            memory_plugged=GIB,
            memory_online=GIB - 60 * MIB,
            cpu_slots=2,
            memory_headroom=GIB,
        ),
        NodeStatus(
            node=1,
            distance=98,
            lender="attic",
            cpus_plugged=2,
            cpus_online=None,
            memory_plugged=518 * MIB,
            memory_online=None,
            cpu_slots=4,
            memory_headroom=8 * GIB,
        ),
    ),
    attachments=(ATTACHMENT,),
)

PLAN = Plan(
    kind="attach",
    summary="attach 512 MiB from attic to VM web, node 1",
    steps=(
        Step("backend", "make the bytes mappable", "this host", ({"argv": ["nbdfuse", "/run/x y", "nbd+unix://"]},)),
        Step("plug", "plug a DIMM", "QEMU", ({"execute": "device_add", "arguments": {"driver": "pc-dimm"}},)),
    ),
    warnings=("the link was not measured",),
)

SPEC = MachineSpec(
    name="web",
    uuid="00000000-0000-0000-0000-000000000001",
    accel=Accel.TCG,
    memory=GIB,
    boot=KernelBoot("/boot/vmlinuz"),
)


def make_vm(name: str) -> layout.VmFolders:
    folders = layout.vm_folders(name)
    folders.make()
    folders.spec.write_bytes(msgspec.json.encode(msgspec.structs.replace(SPEC, name=name)))
    return folders


@pytest.fixture
def web() -> layout.VmFolders:
    return make_vm("web")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    regenerate = request.config.getoption("--regenerate")
    return lambda name, text: check_golden(GOLDEN / f"{name}.txt", text, regenerate)


@pytest.fixture
def controller(web: layout.VmFolders) -> Iterator[Callable[[dict[str, Script]], FakeController]]:
    running: list[FakeController] = []

    def start(scripts: dict[str, Script]) -> FakeController:
        running.append(FakeController(web.control_socket, scripts).__enter__())
        return running[-1]

    yield start
    for fake in running:
        fake.__exit__(None, None, None)


Start = Callable[[dict[str, Script]], FakeController]


def all_commands(command: click.Command = app, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    ctx = click.Context(command)
    names = command.list_commands(ctx) if isinstance(command, click.Group) else []
    for name in names:
        found = command.get_command(ctx, name) if isinstance(command, click.Group) else None
        assert found is not None
        yield " ".join((*path, name)), found
        yield from all_commands(found, (*path, name))


COMMANDS_BY_PATH = dict(all_commands())


def test_help_from_data_is_clicks_help() -> None:
    quick = vmcoal("--help")
    assert quick.code == 0
    with click.Context(app, info_name="vmcoal") as ctx:
        assert app.get_help(ctx) + "\n" == quick.out
    assert set(COMMANDS) == {path for path in COMMANDS_BY_PATH if " " not in path}


def test_root_help(golden: Callable[[str, str], None]) -> None:
    golden("help", vmcoal().out)


@pytest.mark.parametrize("path", sorted(COMMANDS_BY_PATH))
def test_each_command_has_help_with_an_example(path: str) -> None:
    command = COMMANDS_BY_PATH[path]
    assert isinstance(command, Command | Group)
    assert command.example.strip().startswith(("vmcoal", "eval", "tar"))
    assert all(isinstance(p, click.Argument) or getattr(p, "help", None) for p in command.params)
    done = vmcoal(*path.split(), "--help")
    assert done.code == 0
    assert f"\nExample:\n  {command.example.strip().splitlines()[0]}" in done.out


def test_attach_sends_what_was_asked(controller: Start) -> None:
    fake = controller(
        {"attach": [result(AttachResult(attachment=ATTACHMENT, cpus_added=2, memory_added=0, verified=True))]}
    )
    done = vmcoal(
        *("attach", "web", "--from", "attic", "--cpus", "2", "--memory", "1.5G", "--granular"),
        *("--node", "3", "--engine", "far", "--deadline", "1m"),
    )
    assert done.code == 0
    request = AttachRequest(
        lender="attic",
        cpus=2,
        memory=1536 * MIB,
        style=MemoryStyle.GRANULAR,
        engine=Engine.FAR,
        node=3,
        deadline=60.0,
    )
    assert fake.calls == [Call("attach", msgspec.to_builtins(request), API)]


OWN_GPU = AttachedGpu(
    lease="pci-0000-01-00.0",
    engine="vfio",
    gpu=GpuDevice(name="A GPU", kind=GpuKind.GPU, memory=0),
    device="gpu-pci-0000-01-00.0",
    address="0000:21:00.0",
    host="0000:01:00.0",
    state=AttachmentState.ATTACHED,
    lease_state=LeaseState.ACTIVE,
)


@pytest.mark.parametrize("method", ["attach", "detach"])
@pytest.mark.parametrize(
    ("words", "gpu", "pci"),
    [
        (("--gpu",), True, None),
        (("--gpu", "web"), True, None),
        (("web", "--gpu"), True, None),
        (("web", "--gpu", "pci:01:00.0"), False, "0000:01:00.0"),
        (("--gpu=pci:0000:01:00.0", "web"), False, "0000:01:00.0"),
    ],
)
def test_a_gpu_is_the_lenders_or_one_of_this_host(
    method: str, words: tuple[str, ...], gpu: bool, pci: str | None, controller: Start
) -> None:
    at = Attachment(lender="home", node=1, distance=40, gpus=(OWN_GPU,))
    answers = {
        "attach": AttachResult(attachment=at, cpus_added=0, memory_added=0, gpus_added=1, verified=True),
        "detach": DetachResult(cpus_removed=0, memory_removed=0, gpus_removed=1, remaining=(at,)),
    }
    fake = controller({method: [result(answers[method])]})
    done = vmcoal(method, *words)
    assert done.code == 0
    assert (fake.last(method)["gpu"], fake.last(method)["pci"]) == (gpu, pci)
    said = {
        "attach": "VM web gained A GPU (engine vfio, 0000:01:00.0 here, 0000:21:00.0 there) from this host: node 1, "
        "distance 40; confirmed by the guest",
        "detach": "VM web gave back 1 GPU\nstill attached from this host: 1 GPU",
    }
    assert done.out.strip() == said[method]


def test_status_shows_a_gpu_of_this_host_and_the_slots(controller: Start) -> None:
    node = msgspec.structs.replace(STATUS.nodes[1], pci_ports=2, gpu_window=64 << 30)
    at = Attachment(lender="home", node=1, distance=40, gpus=(OWN_GPU,))
    controller({"status": [result(msgspec.structs.replace(STATUS, nodes=(node,), attachments=(at,)))] * 2})
    out = vmcoal("status", "web").out
    assert "GPU slots:    2 at each far node, with a window of 64 GiB" in out
    assert "A GPU at 0000:21:00.0  vfio (0000:01:00.0)  attached  active" in out


def test_tune_shows_and_changes(controller: Start) -> None:
    fake = controller({"tune": [result(Tuning(cache=512 * MIB))]})
    said = vmcoal("tune", "web").out.splitlines()
    assert [line.split()[1] for line in said] == ["512", "loss:", "off:"]
    unset = {"cache": None, "on_loss": None, "replicas": None, "replica_on": None, "compress": None}
    unset["deadline"] = 3600.0
    assert fake.last("tune") == unset
    assert vmcoal("tune", "web", "--cache", "512M", "--on-loss", "pause").code == 0
    assert fake.last("tune") == unset | {"cache": 512 * MIB, "on_loss": "pause"}
    assert vmcoal("tune", "web", "--compress", "auto").code == 0
    assert fake.last("tune") == unset | {"compress": "auto"}


def test_tune_adds_a_copy_and_says_where_pages_are(controller: Start) -> None:
    places = {"dimm-m1": ("attic", "local")}
    fake = controller({"tune": [result(Tuning(cache=512 * MIB, places=places, notes=("as told",)))]})
    said = vmcoal("tune", "web", "--replica-on", "local", "--deadline", "10m")
    assert said.out.splitlines()[-1] == "Pages:    dimm-m1 at attic and local"
    assert "as told" in said.err
    asked = fake.last("tune")
    assert (asked["replicas"], asked["replica_on"], asked["deadline"]) == (2, "local", 600.0)
    assert vmcoal("tune", "web", "--replicas", "1").code == 0
    assert fake.last("tune")["replicas"] == 1
    assert vmcoal("tune", "web", "--replicas", "1", "--replica-on", "local").code == 2


@pytest.mark.parametrize(
    ("options", "replicas", "place"),
    [((), 1, None), (("--replicas", "2"), 2, None), (("--replica-on", "local"), 2, "local")],
)
def test_attach_says_where_copies_go(
    controller: Start, options: tuple[str, ...], replicas: int, place: str | None
) -> None:
    attached = AttachResult(attachment=ATTACHMENT, cpus_added=0, memory_added=512 * MIB, verified=True)
    fake = controller({"attach": [result(attached)]})
    assert vmcoal("attach", "web", "--memory", "512M", "--on-loss", "pause", "--compress", "on", *options).code == 0
    sent = fake.last("attach")
    assert (sent["replicas"], sent["replica_on"], sent["on_loss"]) == (replicas, place, "pause")
    assert sent["compress"] == "on"


def test_one_place_and_a_copy_exclude_each_other() -> None:
    done = vmcoal("attach", "web", "--memory", "512M", "--replicas", "1", "--replica-on", "local")
    assert (done.code, "--replica-on" in done.err) == (2, True)


def test_move_sends_what_was_asked_and_says_what_it_did(controller: Start) -> None:
    moved = MoveResult(source="attic", target="home", memory_moved=256 * MIB, seconds=2.0, notes=("a note",))
    fake = controller({"move": [result(moved)]})
    done = vmcoal("move", "web", "--from", "attic", "--to", "home", "--deadline", "1m")
    assert done.out == "256 MiB of VM web is home on this host now, attic has none of it; it took 2 s\n"
    assert "note: a note" in done.err
    assert fake.last("move") == {"source": "attic", "target": "home", "deadline": 60.0, "dry_run": False}
    assert vmcoal("move", "web", "--to", "home").code == 2


def test_attach_says_what_it_did(controller: Start, golden: Callable[[str, str], None]) -> None:
    controller(
        {
            "attach": [
                Progress(1, 3, "ask attic for a lease"),
                Progress(2, 3, "plug 512 MiB", 0.5, "half"),
                Progress(3, 3, "verify in the guest"),
                result(
                    AttachResult(
                        attachment=ATTACHMENT,
                        cpus_added=2,
                        memory_added=512 * MIB,
                        verified=True,
                        seconds={"plug": 0.25, "verify": 0.75, "total": 1.0},
                        notes=("the vCPUs run on this host",),
                    )
                ),
            ]
        }
    )
    done = vmcoal("attach", "--cpus", "2", "--memory", "512M")
    assert done.code == 0
    golden("attach", plain_times(done.out + "--- stderr\n" + done.err))


def test_attach_as_json(controller: Start) -> None:
    answer = AttachResult(attachment=ATTACHMENT, cpus_added=2, memory_added=0, verified=True)
    controller({"attach": [Progress(1, 1, "x"), result(answer)]})
    done = vmcoal("attach", "--cpus", "2", "-o", "json")
    assert msgspec.json.decode(done.out, type=AttachResult) == answer


@pytest.mark.parametrize("method", ["attach", "detach"])
def test_dry_run_prints_the_plan(method: str, controller: Start, golden: Callable[[str, str], None]) -> None:
    fake = controller({method: [result(PLAN)]})
    done = vmcoal(method, "--memory", "512M", "--dry-run")
    assert done.code == 0
    assert fake.last(method)["dry_run"] is True
    golden("plan", done.out + "--- stderr\n" + done.err)
    done = vmcoal(method, "--memory", "512M", "--dry-run", "-o", "json")
    assert msgspec.json.decode(done.out, type=Plan) == PLAN


def test_detach(controller: Start, golden: Callable[[str, str], None]) -> None:
    fake = controller(
        {
            "detach": [
                result(
                    DetachResult(
                        cpus_removed=1,
                        memory_removed=512 * MIB,
                        remaining=(ATTACHMENT,),
                        seconds={"drain": 2.25, "total": 2.5},
                        notes=("2 MiB stay: the guest cannot move them",),
                    )
                )
            ]
        }
    )
    done = vmcoal("detach", "web", "--from", "attic", "--cpus", "1", "--force", "--deadline", "90")
    assert done.code == 0
    request = DetachRequest(lender="attic", cpus=1, deadline=90.0, force=True)
    assert fake.last("detach") == msgspec.to_builtins(request)
    golden("detach", done.out + "--- stderr\n" + done.err)


def test_status_of_one_vm(controller: Start, golden: Callable[[str, str], None]) -> None:
    controller({"status": [result(STATUS)]})
    done = vmcoal("status", "web")
    assert done.code == 0
    golden("status-web", done.out)
    assert msgspec.json.decode(vmcoal("status", "web", "-o", "json").out, type=VmStatus) == STATUS


def test_status_with_paged_memory(controller: Start, golden: Callable[[str, str], None]) -> None:
    places = {"region": "m1", "connected": True}
    paging = PagingActivity(
        cache=64 * MIB,
        used=60 * MIB,
        faults=12345,
        found=10000,
        hit_ratio=0.81,
        prefetch_accuracy=0.93,
        regions={
            "m1": PagedRegion(size=512 * MIB, here=60 * MIB, away=200 * MIB, lost=8192),
            "m2": PagedRegion(size=512 * MIB, here=500 * MIB, away=12 * MIB, home=True),
        },
        stores=(
            StoreActivity(
                number=0, lender="attic", bytes_in=3 * MIB, bytes_out=GIB, latency=(0,) * 7 + (90, 0, 9, 1), **places
            ),
            StoreActivity(number=1, lender="barn", bytes_out=GIB, behind=MIB, **places),
            StoreActivity(region="m1", number=1, lender="cave", why="no answer in 3 s"),
            StoreActivity(region="m2", number=0, lender="local", connected=True),
            StoreActivity(region="m1", number=1, lender="den", connected=True, refused=True),
        ),
    )
    engine = EngineChoice(name=MemoryEngineName.PAGER, reason="faults are taken through /dev/userfaultfd")
    status = msgspec.structs.replace(STATUS, paging=paging, memory_engine=engine, nodes=(), degraded=())
    controller({"status": [result(status)]})
    golden("status-paged", vmcoal("status", "web").out)
    assert msgspec.json.decode(vmcoal("status", "web", "-o", "json").out, type=VmStatus) == status


def test_status_of_all_vms(controller: Start, golden: Callable[[str, str], None]) -> None:
    controller({"status": [result(STATUS)]})
    failed = make_vm("broken")
    failed.exits.write_text("2026-01-01T00:00:00Z qemu 77 signaled 9\n")
    failed.qemu_log.write_text("one\ntwo\n")
    make_vm("idle")
    done = vmcoal("status")
    golden("status", done.out)
    states = {vm.name: vm.state for vm in msgspec.json.decode(vmcoal("status", "-o", "json").out, type=list[VmStatus])}
    assert states == {"web": "running", "broken": "failed", "idle": "stopped"}
    golden("status-broken", vmcoal("status", "broken").out)


def test_a_vm_whose_files_are_broken_hides_no_other(controller: Start) -> None:
    controller({"status": [result(STATUS)]})
    make_vm("broken").spec.write_bytes(b"{")
    done = vmcoal("status")
    assert (done.code, "web" in done.out) == (0, True)
    seen = {vm.name: vm for vm in msgspec.json.decode(vmcoal("status", "-o", "json").out, type=list[VmStatus])}
    assert {name: vm.state for name, vm in seen.items()} == {"web": "running", "broken": "unknown"}
    assert "next: vmcoal delete broken" in seen["broken"].degraded[0]
    assert vmcoal("status", "broken").code == 3


def test_an_argument_that_is_no_text(controller: Start) -> None:
    controller({})
    done = vmcoal("exec", "web", "--", "echo", "\udcff")
    assert (done.code, "is not UTF-8" in done.err) == (2, True)


def test_nothing_there() -> None:
    assert vmcoal("status").out == "there is no VM; vmcoal boot makes one\n"
    assert vmcoal("status", "-o", "json").out == "[]\n"
    done = vmcoal("attach", "--cpus", "1")
    assert (done.code, done.err) == (4, "vmcoal: error: there is no VM\n  hint: vmcoal boot\n")


def test_a_vm_without_answers_does_not_hide_the_others(controller: Start) -> None:
    controller({"status": [failure(errors.UnreachableError("it sulks"))]})
    make_vm("idle")
    states = {vm.name: vm.state for vm in msgspec.json.decode(vmcoal("status", "-o", "json").out, type=list[VmStatus])}
    assert states == {"web": "unknown", "idle": "stopped"}


def test_exec_passes_output_and_code(controller: Start) -> None:
    fake = controller({"exec": [Output(1, b"out\n"), Output(2, b"\xffbad\n"), result(ExecResult(code=7))]})
    out = vmcoal("exec", "web", "--", "ls", "-l", "--", "x")
    assert out.code == 7
    assert out.out == "out\n"
    assert fake.last("exec")["argv"] == ["ls", "-l", "--", "x"]
    assert fake.last("exec")["stdin"] is False


def test_exec_of_a_command_that_a_signal_ended(controller: Start) -> None:
    controller({"exec": [result(ExecResult(code=None, signal=9))]})
    assert vmcoal("exec", "--", "sleep", "9").code == 137


def test_shutdown(controller: Start) -> None:
    fake = controller({"shutdown": [result(ShutdownResult(how="agent", exit_code=0, released=("m1", "c1")))]})
    done = vmcoal("shutdown", "--deadline", "10s")
    assert done.out == "VM web was powered off by its agent; 2 leases given back\n"
    assert fake.last("shutdown") == {"deadline": 10.0, "force": False, "dry_run": False}


def test_shutdown_dry_run_prints_a_plan(controller: Start) -> None:
    fake = controller(
        {"shutdown": [result(Plan("shutdown", "power web off", (Step("end", "end QEMU", "this host"),)))]}
    )
    done = vmcoal("shutdown", "--dry-run")
    assert "end QEMU" in done.out
    assert "nothing was changed" in done.err
    assert fake.last("shutdown")["dry_run"]


def test_delete() -> None:
    folders = make_vm("web")
    done = vmcoal("delete", "web")
    assert done.code == 2
    assert folders.spec.exists()
    assert vmcoal("delete", "web", "--dry-run").out == f"remove {folders.spec}\n"
    assert folders.spec.exists()
    assert vmcoal("rm", "web", "--yes").code == 0
    assert not folders.state.exists()
    assert vmcoal("delete", "web", "--yes").code == 4


def test_delete_waits_for_a_controller_that_gives_back(controller: Start) -> None:
    controller({})
    done = vmcoal("delete", "web", "--yes")
    assert (done.code, layout.vm_folders("web").spec.exists()) == (5, True)
    assert "vmcoal shutdown web" in done.err


def test_granular_by_default_is_for_memory(controller: Start) -> None:
    layout.config_file().parent.mkdir(parents=True, exist_ok=True)
    layout.config_file().write_text("[attach]\ngranular = true\n")
    attached = AttachResult(attachment=ATTACHMENT, cpus_added=1, memory_added=0, verified=True)
    fake = controller({"attach": [result(attached)]})
    for options, style in ((("--cpus", "1"), "dimm"), (("--memory", "1G"), "granular")):
        assert vmcoal("attach", "web", *options).code == 0
        assert fake.last("attach")["style"] == style


def test_delete_takes_nothing_away_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[Leftovers] = []
    left = Leftovers("web", True, ())
    monkeypatch.setattr("vmcoal.cli.lifecycle.clean", cleaned.append)
    monkeypatch.setattr("vmcoal.cli.lifecycle.left_behind", lambda name: left)
    make_vm("web")
    assert vmcoal("delete", "web").code == 2
    assert vmcoal("delete", "web", "--dry-run").code == 0
    assert cleaned == []
    assert vmcoal("delete", "web", "--yes").code == 0
    assert cleaned == [left]


def test_a_shutdown_of_what_ended_by_itself_succeeds() -> None:
    failed = make_vm("web")
    assert vmcoal("shutdown", "web").code == 3
    failed.exits.write_text("2026-01-01T00:00:00Z qemu 77 signaled 9\n")
    done = vmcoal("shutdown", "web")
    assert (done.code, done.out) == (0, "VM web had ended by itself already\n")
    plan = msgspec.json.decode(vmcoal("shutdown", "web", "--dry-run", "-o", "json").out, type=Plan)
    assert plan.steps == ()
    assert msgspec.json.decode(vmcoal("shutdown", "web", "-o", "json").out, type=ShutdownResult).how == "ended"


def test_logs(web: layout.VmFolders) -> None:
    web.console_log.write_text("two\nthree\n")
    web.console_log.with_name("console.log.1").write_text("one\n")
    web.qemu_log.write_text("qemu said\n")
    assert vmcoal("logs").out == "one\ntwo\nthree\n"
    assert vmcoal("logs", "web", "-n", "2").out == "two\nthree\n"
    assert vmcoal("logs", "qemu").out == "qemu said\n"
    assert vmcoal("logs", "web", "qmp").code == 4
    assert vmcoal("logs", "web", "nonsense").code == 2


@pytest.mark.parametrize("name", sorted(errors._KINDS))
def test_each_error_gets_its_code(name: str, controller: Start) -> None:
    kind = errors._KINDS[name]
    controller({"attach": [failure(kind("no", host="attic", left="a lease", hint="do this"))]})
    done = vmcoal("attach", "--cpus", "1")
    assert done.code == kind.exit_code
    assert done.err == "vmcoal: error: no on attic\n  left: a lease\n  hint: do this\n"
    assert done.out == ""


def test_an_error_shows_the_tail_of_stderr_and_no_escapes(
    controller: Start, golden: Callable[[str, str], None]
) -> None:
    lines = "".join(f"line {number}\n" for number in range(20)) + "\x1b[2Jgone\n"
    error = errors.ExecutionError("QEMU ended\x1b]0;title\x07", left="nothing\rx", stderr=lines)
    controller({"attach": [Progress(1, 2, "start\x1b[31m"), failure(error)]})
    golden("error", plain_times(vmcoal("attach", "--cpus", "1").err))


BAD = [
    (("attach",), 2, "nothing to attach"),
    (("attach", "--gpu=card"), 2, "'card' is no GPU"),
    (("attach", "--gpu", "pci:card"), 2, "'card' is not a PCI address"),
    (("attach", "--gpu", "pci:01:00.0", "--cpus", "1"), 2, "a GPU of this host comes from no lender"),
    (("attach", "--gpu", "pci:01:00.0", "--from", "attic"), 2, "a GPU of this host comes from no lender"),
    (("detach", "--gpu", "pci:01:00.0", "--all"), 2, "names one thing of this host"),
    (("attach", "--memory", "-5"), 2, "--memory: '-5' is not a size"),
    (("attach", "--memory", "0"), 2, "--memory: a size must be larger than zero"),
    (("attach", "--memory", "12x"), 2, "--memory: '12x' is not a size"),
    (("attach", "--memory", "9999999T"), 2, "larger than any machine"),
    (("attach", "--cpus", "0"), 2, "--cpus: '0' is not a count"),
    (("attach", "--cpus", "-1"), 2, "--cpus: '-1' is not a count"),
    (("attach", "--cpus", "two"), 2, "--cpus: 'two' is not a count"),
    (("attach", "--cpus", "1", "--deadline", "soon"), 2, "--deadline: 'soon' is not a duration"),
    (("attach", "--cpus", "1", "--engine", "warp"), 2, "'warp' is not one of 'local', 'far'"),
    (("attach", "UPPER", "--cpus", "1"), 2, "'UPPER' cannot be a VM name"),
    (("attach", "nobody", "--cpus", "1"), 4, "there is no VM 'nobody'"),
    (("attach", "web", "--cpus", "1"), 3, "VM web does not run"),
    (("detach", "--all", "--from", "attic"), 2, "exclude each other"),
    (("exec", "web"), 2, "there is no command to run"),
    (("exec", "web", "ls", "-l"), 2, "hint: vmcoal exec web -- ls -l"),
    (("image", "build", "gentoo"), 2, "KIND: 'gentoo' is not one of 'default', 'debian'"),
    (("exec", "web", "-t", "--", "ls"), 2, "stdin is not a terminal"),
    (("console", "web"), 2, "stdin is not a terminal"),
    (("nonsense",), 2, "vmcoal has no command 'nonsense'"),
    (("statu",), 2, "did you mean vmcoal status?"),
    (("attach", "--memroy", "1"), 2, "--memory"),
    (("detach", "a", "b"), 2, "extra argument"),
    (("completion", "csh"), 2, "'csh'"),
    (("tune", "web", "--on-loss", "poison"), 2, "its kernel panics of it"),
    (("tune", "web", "--on-loss", "panic"), 2, "--on-loss: 'panic' is not one of 'stall', 'pause'"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), BAD)
def test_bad_input(arguments: tuple[str, ...], code: int, said: str, web: layout.VmFolders) -> None:
    done = vmcoal(*arguments)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("vmcoal: error: ")
    assert said in done.err
    assert "hint: " in done.err
    assert "Traceback" not in done.err


def test_several_vms_need_a_name() -> None:
    for name in ("one", "two"):
        make_vm(name)
    done = vmcoal("attach", "--cpus", "1")
    assert done.code == 2
    assert "name one of one, two" in done.err
    make_vm("default")
    assert "VM default does not run" in vmcoal("attach", "--cpus", "1").err


def test_a_controller_that_breaks_off(controller: Start) -> None:
    def vanish(call: Call, conversation: Any) -> Iterator[Any]:
        conversation.send(Progress(1, 4, "plug"))
        conversation.close()
        return iter(())

    controller({"attach": vanish})
    done = vmcoal("attach", "--cpus", "1")
    assert done.code == 7
    assert "ended in the middle of the call" in done.err
    assert "left: " in done.err


@pytest.mark.parametrize(
    "data", [b"{}\n", b"nonsense\n", b'{"type":"Result","value":{"cpus":"x"}}\n', b"x" * (2 << 20)]
)
def test_a_controller_that_babbles(data: bytes, controller: Start) -> None:
    def babble(call: Call, conversation: Any) -> Iterator[Any]:
        conversation.send_raw(data)
        conversation.read_input()
        return iter(())

    controller({"attach": babble})
    done = vmcoal("attach", "--cpus", "1")
    assert done.code == 70
    assert "Traceback" not in done.err


def test_a_defect_leaves_a_traceback_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise RuntimeError("oops")

    monkeypatch.setattr(layout, "known_vms", broken)
    done = vmcoal("status")
    assert done.code == 70
    assert "this is a defect of vmcoal: RuntimeError: oops" in done.err
    assert "Traceback" not in done.err
    (crash,) = layout.crash_home().iterdir()
    assert str(crash) in done.err
    assert "RuntimeError: oops" in crash.read_text()
    monkeypatch.setenv("VMCOAL_DEBUG", "1")
    assert "Traceback" in vmcoal("status").err


@pytest.fixture
def greeter() -> Iterator[Callable[[list[bytes]], int]]:
    """Serve each connection with the next greeting, on a port of 127.0.0.1."""
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(listener: socket.socket, greetings: list[bytes]) -> None:
        for greeting in greetings:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(greeting)

    def start(greetings: list[bytes]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)
        threads.append(threading.Thread(target=serve, args=(listener, greetings), daemon=True))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for thread in threads:
        thread.join(20)
    for one in sockets:
        one.close()


@pytest.fixture
def ssh_argv(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Catch what ``vmcoal ssh`` becomes."""
    caught: list[str] = []
    monkeypatch.setattr(guest, "_SSH_RETRY", 0.01)
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr("os.execv", lambda path, argv: caught.extend(argv))
    return caught


def test_ssh(
    controller: Start, web: layout.VmFolders, greeter: Callable[[list[bytes]], int], ssh_argv: list[str]
) -> None:
    port = greeter([b"", b"SSH-2.0-x\r\n"])
    controller({"status": [result(msgspec.structs.replace(STATUS, ssh_port=port))]})
    web.ssh_key.touch()
    done = vmcoal("ssh", "web", "--user", "me", "--", "-L", "80:a:80", "-v", "uname", "-r")
    assert done.code == 0
    assert "waiting for the SSH server in VM web" in done.err
    assert ssh_argv[:5] == ["/usr/bin/ssh", "-i", str(web.ssh_key), "-p", str(port)]
    assert f"UserKnownHostsFile={web.state}/known_hosts" in ssh_argv
    assert ssh_argv[-6:] == ["-L", "80:a:80", "-v", "me@127.0.0.1", "uname", "-r"]


def test_ssh_without_a_server(controller: Start, greeter: Callable[[list[bytes]], int]) -> None:
    with pytest.raises(errors.UnreachableError, match="no SSH server answers in VM web"):
        guest.wait_for_ssh("web", greeter([b""]), deadline=0.05)


def test_ssh_without_a_port(controller: Start) -> None:
    controller({"status": [result(msgspec.structs.replace(STATUS, ssh_port=None))]})
    done = vmcoal("ssh", "web")
    assert done.code == 6
    assert "vmcoal shell web needs no network" in done.err
