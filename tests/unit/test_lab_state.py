"""What a lab keeps on disk, and the lock under which it is changed."""

from __future__ import annotations

import msgspec
import pytest

from vmcoal.errors import ConflictError, NotFoundError, PrerequisiteError, UsageError
from vmcoal.lab.links import PROFILES
from vmcoal.lab.network import all_links, host_names
from vmcoal.lab.state import (
    LabSpec,
    changing,
    known_labs,
    make_lab_folders,
    read_lab,
    remove_lab_folders,
    resolve_lab,
    write_lab,
)
from vmcoal.layout import lab_runtime, lab_state
from vmcoal.model.machine import Accel

pytestmark = pytest.mark.unit


def spec(name: str = "lab") -> LabSpec:
    hosts = host_names(2)
    return LabSpec(
        name=name,
        hosts=hosts,
        links=all_links(hosts, PROFILES["wifi"]),
        memory=1 << 30,
        cpus=1,
        flavor="12",
        iommu=False,
        qemu="qemu-system-x86_64",
        accel=Accel.TCG,
        accel_reason="there is no /dev/kvm",
        created="2026-01-01T00:00:00Z",
    )


def test_a_spec_is_what_was_written() -> None:
    assert read_lab("lab") is None
    make_lab_folders("lab")
    write_lab(spec())
    assert read_lab("lab") == spec()
    assert known_labs() == ["lab"]
    remove_lab_folders("lab")
    assert known_labs() == []
    assert not lab_state("lab").parent.exists()
    assert not lab_runtime("lab").parent.exists()


def test_a_spec_that_cannot_be_read_still_has_a_way_out() -> None:
    make_lab_folders("lab")
    (lab_state("lab") / "lab.json").write_text("{")
    with pytest.raises(PrerequisiteError) as caught:
        read_lab("lab")
    assert caught.value.hint == "vmcoal lab down --name lab"


def test_which_lab_is_meant() -> None:
    with pytest.raises(NotFoundError, match="there is no lab"):
        resolve_lab(None)
    make_lab_folders("attic")
    assert resolve_lab(None) == "attic"
    make_lab_folders("shed")
    with pytest.raises(UsageError, match="several"):
        resolve_lab(None)
    assert resolve_lab("shed") == "shed"
    with pytest.raises(NotFoundError) as caught:
        resolve_lab("cellar")
    assert caught.value.hint == "there is attic, shed"
    make_lab_folders("lab")
    assert resolve_lab(None) == "lab"
    with pytest.raises(UsageError):
        resolve_lab("../lab")


def test_one_command_at_a_time_changes_a_lab() -> None:
    with changing("lab"):
        with pytest.raises(ConflictError, match="another command"), changing("lab"):
            pytest.fail("two commands have the lock")
        write_lab(spec())
    with changing("lab"):
        remove_lab_folders("lab")
    assert known_labs() == []


def test_a_lab_that_did_not_come_to_be_leaves_no_folder() -> None:
    with pytest.raises(RuntimeError), changing("lab"):
        raise RuntimeError
    assert known_labs() == []
    assert not lab_state("lab").parent.exists()


def test_unknown_fields_are_refused() -> None:
    make_lab_folders("lab")
    document = msgspec.to_builtins(spec()) | {"surprise": 1}
    (lab_state("lab") / "lab.json").write_bytes(msgspec.json.encode(document))
    with pytest.raises(PrerequisiteError):
        read_lab("lab")
