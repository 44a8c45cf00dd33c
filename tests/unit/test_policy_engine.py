"""Which memory engine a host and a machine lead to, and what excludes one."""

from __future__ import annotations

import msgspec
import pytest

from vmcoal.backends.pager import EXCLUDES
from vmcoal.errors import ConflictError, PrerequisiteError
from vmcoal.model.engine import EngineChoice, EngineFacts, FaultFacts, Feature, MemoryEngineName
from vmcoal.model.machine import Accel, KernelBoot, MachineSpec
from vmcoal.model.units import GIB, MIB
from vmcoal.policy.engine import ALLOW_USERFAULTFD, choose_engine, excluded_features, machine_features, pager_obstacle

pytestmark = pytest.mark.unit

AUTO, PAGER, FUSE = MemoryEngineName
GOOD = EngineFacts(kernel="6.1.0-30-amd64", faults=FaultFacts(by="/dev/userfaultfd", features=(1 << 13) - 1))
SPEC = MachineSpec(name="web", uuid="0", accel=Accel.TCG, memory=GIB, boot=KernelBoot("vmlinuz"))


def facts(**changes: object) -> EngineFacts:
    return msgspec.structs.replace(GOOD, **changes)


def refused(why: str) -> FaultFacts:
    return FaultFacts(by=None, refused=why)


def choose(wanted: MemoryEngineName, host: EngineFacts = GOOD, *arguments: str) -> EngineChoice:
    return choose_engine(wanted, host, msgspec.structs.replace(SPEC, qemu_args=arguments), EXCLUDES)


@pytest.mark.parametrize(
    ("host", "reason", "remedy"),
    [
        (facts(faults=refused("Operation not permitted")), "may not use userfaultfd", ALLOW_USERFAULTFD),
        (facts(faults=refused("No such file or directory")), "this kernel has no userfaultfd", "CONFIG_USERFAULTFD"),
        (facts(faults=refused("Permission denied"), kernel="5.19.0"), "may not use", "unprivileged_userfaultfd=1"),
        (facts(faults=FaultFacts(by="the system call", features=1 << 5), kernel="5.10.0"), "write-protect", "5.19"),
        (facts(missing="nbdinfo is not installed"), "nbdinfo is not installed", "libnbd-bin"),
        (facts(files="ext4"), "on ext4", "VMCOAL_SHM_DIR"),
        (facts(room=64 * MIB), "64 MiB left", "--shm-size"),
        (facts(qemu="/usr/bin/qemu is set-uid"), "set-uid", "--qemu"),
    ],
)
def test_what_keeps_the_page_engine_away(host: EngineFacts, reason: str, remedy: str) -> None:
    obstacle = pager_obstacle(host)
    assert obstacle is not None
    assert reason in obstacle.reason
    assert remedy in obstacle.remedy
    assert choose(AUTO, host) == EngineChoice(name=FUSE, reason=obstacle.reason, remedy=obstacle.remedy)
    with pytest.raises(PrerequisiteError, match="the page engine cannot run here") as caught:
        choose(PAGER, host)
    assert remedy in str(caught.value.hint)
    assert choose(FUSE, host).name is FUSE


def test_the_page_engine_where_it_can_run() -> None:
    assert choose(AUTO) == EngineChoice(name=PAGER, reason="faults are taken through /dev/userfaultfd")
    assert choose(PAGER).name is PAGER
    assert choose(FUSE) == EngineChoice(name=FUSE, reason="asked for")


@pytest.mark.parametrize(
    ("argument", "feature"),
    [
        ("vfio-pci,host=0000:01:00.0", Feature.VFIO),
        ('{"driver":"vfio-pci","host":"01:00.0"}', Feature.VFIO),
        ("type=vhost-vdpa,vhostdev=/dev/vhost-vdpa-0", Feature.VFIO),
        ("vhost-user,chardev=c0", Feature.VHOST_USER),
        ("vhost-user-blk-pci,chardev=c0", Feature.VHOST_USER),
        ("vhost-user-fs-pci,chardev=c0,tag=share", Feature.VIRTIOFS),
        ("virtio-balloon-pci,free-page-reporting=on", Feature.FREE_PAGE_REPORTING),
        ('{"driver":"virtio-balloon-pci","free-page-reporting":true}', Feature.FREE_PAGE_REPORTING),
        ("migration.x-background-snapshot=on", Feature.MIGRATION_FAULTS),
        ("migration.x-postcopy-ram=true", Feature.MIGRATION_FAULTS),
        ("mem-lock=on", Feature.LOCKED_MEMORY),
        ("mem-lock=on-fault", Feature.LOCKED_MEMORY),
    ],
)
def test_what_a_machine_must_not_have_beside_paged_memory(argument: str, feature: Feature) -> None:
    assert machine_features([argument]) == {feature: argument}
    with pytest.raises(ConflictError, match="in --qemu-args") as caught:
        choose(PAGER, GOOD, "-x", argument)
    choice = choose(AUTO, GOOD, "-x", argument)
    assert choice.name is FUSE
    assert choice.reason == caught.value.message


@pytest.mark.parametrize(
    "argument",
    ["-device", "virtio-balloon-pci", "virtio-balloon-pci,free-page-reporting=off", "mem-lock=off", "vhost-vsock-pci"],
)
def test_what_does_no_harm(argument: str) -> None:
    assert machine_features([argument]) == {}


def test_only_what_an_engine_excludes() -> None:
    spec = msgspec.structs.replace(SPEC, qemu_args=("vhost-user-blk-pci,chardev=c", "vfio-pci,host=1:0.0"))
    assert len(excluded_features(tuple(Feature), spec)) == 2
    (reason,) = excluded_features((Feature.VFIO,), spec)
    assert "VFIO pins every page" in reason
