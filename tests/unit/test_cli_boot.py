"""``vmcoal boot``: which machine comes of which options; nothing is started."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from framework.command import Done, vmcoal
from framework.fake_controller import FakeController, failure, result
from vmcoal import layout
from vmcoal.cli import boot as boot_module
from vmcoal.controller import start
from vmcoal.controller.journal import Journal
from vmcoal.controller.lifecycle import save_spec
from vmcoal.errors import DeadlineError, PrerequisiteError
from vmcoal.host import accel
from vmcoal.host.accel import AccelProbe
from vmcoal.model.attachment import Plan
from vmcoal.model.engine import EngineChoice, MemoryEngineName
from vmcoal.model.machine import Accel, CpuMode, Disk, DiskBoot, KernelBoot, MachineSpec, Net
from vmcoal.model.status import VmStatus

pytestmark = pytest.mark.unit

GIB = 1 << 30


class Started:
    """What `start_controller` was asked to start, and what it answers."""

    def __init__(self) -> None:
        self.specs: list[MachineSpec] = []
        self.wait: Any = None
        self.comes_up = True
        self.fakes: list[FakeController] = []

    async def __call__(self, name: str, spec: MachineSpec, **options: Any) -> VmStatus:
        assert options["until"] == "qemu"
        self.specs.append(spec)
        folders = layout.vm_folders(name)
        folders.make()
        save_spec(spec, folders)
        if self.comes_up:
            came_up(name)
        reply = self.wait or result(status(spec, "vmcoal"))
        self.fakes.append(FakeController(folders.control_socket, {"wait": [reply]}).__enter__())
        return status(spec, "none")

    @property
    def spec(self) -> MachineSpec:
        return self.specs[-1]


def came_up(name: str) -> None:
    journal = Journal(layout.vm_folders(name).journal)
    journal.mark_booted()
    journal.close()


def status(spec: MachineSpec, agent: str) -> VmStatus:
    return VmStatus(
        name=spec.name,
        state="running",
        accel=spec.accel,
        cpu_mode=spec.cpu_mode,
        accel_reason=spec.accel_reason,
        cpus=spec.cpus,
        memory=spec.memory,
        agent=agent,
        ssh_port=spec.net.ssh_port,
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    fake = Started()
    pager = EngineChoice(name=MemoryEngineName.PAGER, reason="for a test")
    monkeypatch.setattr(boot_module, "memory_engine", lambda spec: pager)
    monkeypatch.setattr(start, "start_controller", fake)
    monkeypatch.setattr(boot_module, "preflight", lambda: None)
    probe = AccelProbe(False, "there is no /dev/kvm", "/usr/bin/qemu", (7, 2, 0), "load kvm_intel")
    monkeypatch.setattr(accel, "probe_accel", lambda qemu, **_: probe)
    monkeypatch.setattr(accel, "find_qemu", lambda qemu: f"/usr/bin/{qemu}")
    monkeypatch.setattr(accel, "qemu_version", lambda path: (7, 2, 0))
    yield fake
    for one in fake.fakes:
        one.__exit__(None, None, None)


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"MZ" + b"\0" * 4096)
    return str(path)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\0" * 510 + b"\x55\xaa" + b"\0" * ((1 << 20) - 512))
    return str(path)


def boot(*arguments: str) -> Done:
    done = vmcoal("boot", *arguments)
    assert done.code == 0, done.err
    return done


def test_a_kernel_with_defaults(started: Started, kernel: str) -> None:
    done = boot("web", "--kernel", kernel, "--append", "quiet")
    spec = started.spec
    assert spec.boot == KernelBoot(kernel, None, "quiet")
    assert (spec.name, spec.cpus, spec.memory, len(spec.far_nodes)) == ("web", 2, GIB, 4)
    assert (spec.accel, spec.accel_reason) == (Accel.TCG, "no KVM: there is no /dev/kvm")
    assert spec.net.mode == "user"
    assert spec.net.ssh_port
    assert spec.ssh_key
    assert spec.ssh_key.startswith("ssh-ed25519 ")
    assert layout.vm_folders("web").ssh_key.stat().st_mode & 0o777 == 0o600
    assert done.out.startswith("VM web is running; 2 vCPUs, 1 GiB, ")
    assert "[3/4] start QEMU with tcg (no KVM: there is no /dev/kvm)" in done.err
    assert "next: vmcoal shell web" in done.err


def test_options(started: Started, kernel: str, image: str) -> None:
    boot(
        *(
            "--kernel",
            kernel,
            "--initrd",
            kernel,
            "--cpus",
            "3",
            "--memory",
            "512M",
            "--far-nodes",
            "2",
            "--far-cpus",
            "1",
        ),
        *("--far-memory", "256M", "--net", "none", "--disk", f"{image},ro", "--disk", f"{image},format=raw"),
        *("--display", "vnc=127.0.0.1:1", "--accel", "tcg", "--metrics", "127.0.0.1:9464", "--qemu", "my-qemu"),
    )
    spec = started.spec
    assert spec.name == "default"
    assert (spec.cpus, spec.memory, spec.qemu, spec.display) == (3, GIB // 2, "my-qemu", "vnc=127.0.0.1:1")
    assert [(far.cpus, far.memory) for far in spec.far_nodes] == [(1, GIB // 4)] * 2
    assert spec.net == Net("none")
    assert spec.disks == (Disk(image, "raw", True), Disk(image, "raw"))
    assert (spec.accel_reason, spec.metrics) == ("asked for", "127.0.0.1:9464")


def test_an_image(started: Started, image: str) -> None:
    boot("web", "--image", image, "--image-size", "2M", "--seed")
    assert started.spec.boot == DiskBoot(image=image, format="raw", firmware="bios", seed=True)
    folders = layout.vm_folders("web")
    assert folders.overlay.exists()
    assert folders.seed.exists()
    assert Path(image).read_bytes()[510:512] == b"\x55\xaa"


def test_an_image_that_may_have_booted_gets_no_seed_unasked(started: Started, image: str) -> None:
    told = boot("web", "--image", image)
    assert isinstance(started.spec.boot, DiskBoot)
    assert not started.spec.boot.seed
    assert not layout.vm_folders("web").seed.exists()
    assert "--seed" in told.err


def test_a_vm_whose_first_boot_failed_takes_other_options(started: Started, kernel: str) -> None:
    started.comes_up = False
    boot("web", "--kernel", kernel)
    started.fakes.pop().__exit__(None, None, None)
    boot("web", "--kernel", kernel, "--cpus", "3")
    assert started.spec.cpus == 3


def test_the_config_file_gives_defaults(started: Started, kernel: str) -> None:
    layout.config_file().parent.mkdir(parents=True)
    layout.config_file().write_text('[boot]\ncpus = 1\nmemory = "256M"\nnet = "none"\naccel = "tcg"\n')
    boot("--kernel", kernel, "--memory", "384M")
    assert (started.spec.cpus, started.spec.memory, started.spec.net.mode) == (1, 384 << 20, "none")
    assert started.spec.accel_reason == "asked for"


def test_a_dry_run_changes_nothing(started: Started, kernel: str) -> None:
    done = boot("web", "--kernel", kernel, "--dry-run")
    assert "[2/3] start QEMU under the VM's holder" in done.out
    assert "$ qemu-system-x86_64 -name guest=web" in done.out
    assert "4 far nodes of 4 vCPU slots and 8 GiB each, at distances" in done.out
    assert done.err.endswith("nothing was changed\n")
    plan = msgspec.json.decode(boot("web", "--kernel", kernel, "--dry-run", "-o", "json").out, type=Plan)
    assert plan.kind == "boot"
    assert not started.specs
    assert list(layout.state_home().parent.iterdir()) == []


def test_json(started: Started, kernel: str) -> None:
    shown = msgspec.json.decode(boot("web", "--kernel", kernel, "-o", "json").out, type=VmStatus)
    assert (shown.name, shown.agent) == ("web", "vmcoal")


def test_without_waiting_for_the_guest(started: Started, kernel: str) -> None:
    done = boot("web", "--kernel", kernel, "--wait", "qemu", "-o", "json")
    assert msgspec.json.decode(done.out, type=VmStatus).agent == "none"


def test_a_guest_without_an_agent_is_degraded(started: Started, kernel: str) -> None:
    started.wait = failure(DeadlineError("no agent answered in the guest within 1 s"))
    done = vmcoal("boot", "web", "--kernel", kernel, "--deadline", "1s")
    assert done.code == 10
    assert "VM web runs, but no agent answered in it within 1 s" in done.err
    assert "left: VM web" in done.err


def test_a_boot_that_fails_tells_qemus_words(started: Started, kernel: str) -> None:
    from vmcoal.errors import ExecutionError

    started.wait = failure(ExecutionError("QEMU of web ended with exit code 1", stderr="qemu: could not open disk"))
    done = vmcoal("boot", "web", "--kernel", kernel)
    assert done.code == 9
    assert "  | qemu: could not open disk\n" in done.err


def stored(name: str = "web", **fields: Any) -> MachineSpec:
    options: dict[str, Any] = {
        "accel": Accel.TCG,
        "accel_reason": "no KVM: it was so",
        "memory": GIB,
        "boot": KernelBoot("/k", release="6.12.1"),
        "cpu_mode": CpuMode.PARKED,
    }
    spec = MachineSpec(name=name, uuid="u", **options | fields)
    layout.vm_folders(name).make()
    save_spec(spec, layout.vm_folders(name))
    came_up(name)
    return spec


def test_a_vm_is_booted_again_by_its_name(started: Started) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        before = stored(net=Net(ssh_port=port), accel=Accel.KVM, accel_reason="a probe guest ran", cpu_model="host")
        boot("web")
    after = started.spec
    assert (after.uuid, after.memory, after.boot) == (before.uuid, before.memory, before.boot)
    assert after.net.ssh_port not in (None, port)
    assert (after.accel, after.cpu_model, after.cpu_mode) == (Accel.TCG, "max", CpuMode.PARKED)


def test_a_vm_that_was_asked_for_under_tcg_stays_there(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "probe_accel", lambda qemu, **_: AccelProbe(True, "a probe guest ran", "/q", (7, 2, 0)))
    stored(accel_reason="asked for")
    boot("web")
    assert started.spec.accel is Accel.TCG


def test_the_memory_engine_of_a_vm_can_change(started: Started, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = EngineChoice(name=MemoryEngineName.FUSE, reason="no userfaultfd", remedy="allow it")
    monkeypatch.setattr(boot_module, "memory_engine", lambda spec: fuse)
    done = vmcoal("boot", "web", "--kernel", kernel, "--qemu-args", "-device 'virtio-balloon-pci,id=a b'")
    assert started.spec.memory_engine is MemoryEngineName.AUTO
    assert started.spec.qemu_args == ("-device", "virtio-balloon-pci,id=a b")
    assert "memory is borrowed through fuse: no userfaultfd; mend it: vmcoal doctor --for attach" in done.err
    started.fakes.pop().__exit__(None, None, None)
    assert vmcoal("boot", "web", "--memory-engine", "fuse").code == 0
    assert started.spec.memory_engine is MemoryEngineName.FUSE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("device x", "is no option of QEMU"),
        ("-S", "takes QEMU out of vmcoal's hands"),
        ("-incoming defer", "is not live-migrated"),
        ("-name 'x", "No closing"),
    ],
)
def test_arguments_for_qemu_that_are_refused(started: Started, kernel: str, text: str, said: str) -> None:
    done = vmcoal("boot", "web", "--kernel", kernel, "--qemu-args", text)
    assert done.code == 2
    assert said in done.err


def test_options_do_not_change_a_vm_that_exists(started: Started) -> None:
    stored()
    done = vmcoal("boot", "web", "--cpus", "3", "--far-nodes", "1")
    assert done.code == 5
    assert "VM web exists and has a machine of its own; --cpus, --far-nodes would make another one" in done.err
    assert not started.specs


def test_a_vm_that_runs_is_not_booted(started: Started) -> None:
    stored()
    folders = layout.vm_folders("web")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as holder:
        holder.bind(str(folders.holder_socket))
        holder.listen()
        done = vmcoal("boot", "web")
    folders.holder_socket.unlink()
    assert done.code == 5
    assert "VM web runs already" in done.err


def test_kvm_that_does_not_work_is_refused(started: Started, kernel: str) -> None:
    done = vmcoal("boot", "web", "--kernel", kernel, "--accel", "kvm")
    assert done.code == 3
    assert "KVM does not run guests here: there is no /dev/kvm\n  hint: load kvm_intel" in done.err


def test_a_host_that_lacks_something(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PrerequisiteError("this host cannot boot a VM: QEMU: not installed", hint="apt install qemu-system-x86")

    monkeypatch.setattr(boot_module, "preflight", fail)
    assert vmcoal("boot").code == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("Web",), 2, "'Web' cannot be a VM name"),
        (("x" * 40,), 2, "cannot be a VM name"),
        (("--image", "/nothing"), 4, "there is no image /nothing"),
        (("--image", __file__), 6, "cannot be booted"),
        (("--kernel", "/nothing"), 4, "cannot read the kernel /nothing"),
        (("--kernel", "KERNEL", "--initrd", "/nothing"), 4, "cannot read the initrd"),
        (("--kernel", "/k", "--image", "/i"), 2, "--image and --kernel exclude each other"),
        (("--append", "x"), 2, "--initrd and --append need --kernel"),
        (("--firmware", "uefi"), 2, "need --image"),
        (("--kernel", "KERNEL", "--seed"), 2, "need --image"),
        (("--kernel", "KERNEL", "--memory", "100K"), 2, "cannot be the memory of node 0"),
        (("--kernel", "KERNEL", "--memory", "-1G"), 2, "--memory: '-1G' is not a size"),
        (("--kernel", "KERNEL", "--cpus", "0"), 2, "--cpus: '0' is not a count"),
        (("--kernel", "KERNEL", "--far-nodes", "-1"), 2, "--far-nodes: '-1' is not a count"),
        (("--kernel", "KERNEL", "--far-nodes", "99"), 2, "0 to 15 far nodes"),
        (("--kernel", "KERNEL", "--far-memory", "100M"), 2, "multiple of 128M"),
        (("--kernel", "KERNEL", "--net", "carrier-pigeon"), 2, "is not a network mode"),
        (("--kernel", "KERNEL", "--net", "tap"), 2, "cannot be a network device"),
        (("--kernel", "KERNEL", "--net", "none", "--ssh-port", "22"), 2, "--ssh-port needs user-mode networking"),
        (("--kernel", "KERNEL", "--ssh-port", "70000"), 2, "--ssh-port: '70000' is not a count"),
        (("--kernel", "KERNEL", "--disk", "/nothing"), 4, "there is no image /nothing"),
        (("--kernel", "KERNEL", "--disk", "/x,rw"), 2, "'rw' is not known"),
        (("--kernel", "KERNEL", "--display", "curses"), 2, "is not a display"),
        (("--accel", "hvf"), 2, "'hvf'"),
        (("--deadline", "0"), 2, "--deadline: '0' is not a duration"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], code: int, said: str, started: Started, kernel: str) -> None:
    done = vmcoal("boot", *(kernel if word == "KERNEL" else word for word in arguments))
    assert done.code == code, done.err
    assert said in done.err
    assert "hint: " in done.err
    assert not started.specs
    assert not layout.known_vms()


def test_an_ssh_port_in_use(started: Started, kernel: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = vmcoal("boot", "--kernel", kernel, "--ssh-port", str(port))
    assert done.code == 5
    assert f"port {port} of 127.0.0.1 is in use" in done.err
    assert not started.specs


@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "XDG_RUNTIME_DIR"])
def test_a_folder_that_cannot_be_made(
    variable: str, started: Started, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/dev/null/x")
    done = vmcoal("boot", "--kernel", kernel)
    assert done.code == 3
    assert "cannot create /dev/null/x" in done.err
    assert not started.specs


def test_a_runtime_folder_that_is_too_long(
    started: Started, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    done = vmcoal("boot", "--kernel", kernel)
    assert done.code == 3
    assert "too long for a Unix socket" in done.err


def test_a_state_folder_that_others_can_enter(started: Started, kernel: str) -> None:
    layout.state_home().mkdir(mode=0o755)
    layout.state_home().chmod(0o755)
    done = vmcoal("boot", "--kernel", kernel)
    assert done.code == 3
    assert "must be a folder of mode 0700" in done.err


def test_a_spec_that_cannot_be_read() -> None:
    folders = layout.vm_folders("web")
    folders.make()
    folders.spec.write_text("{")
    done = vmcoal("boot", "web")
    assert done.code == 3
    assert "cannot read" in done.err
    assert "vmcoal delete web" in done.err
