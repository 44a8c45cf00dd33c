"""Keys and records: created once, private, atomic, strict."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmcoal.errors import ConflictError, NotFoundError, PrerequisiteError, UsageError
from vmcoal.fabric.identity import (
    BorrowerRecord,
    LenderRecord,
    RecordStore,
    borrower_identity,
    borrower_store,
    check_public_key,
    fingerprint,
    lender_store,
    load_identity,
)
from vmcoal.layout import identity_key, known_lenders
from vmcoal.model.lease import ResourceKind

pytestmark = pytest.mark.unit

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def record(name: str = "attic", key: str = PUBLIC, host: str = "10.0.0.2") -> LenderRecord:
    return LenderRecord(name=name, host=host, port=6180, host_key=key, grants=(ResourceKind.MEMORY,))


def test_a_key_is_created_once_and_is_private(folder: Path) -> None:
    path = folder / "identity"
    identity = load_identity(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_identity(path).public == identity.public
    assert identity.fingerprint == fingerprint(identity.public)
    assert identity.fingerprint in repr(identity)
    assert [path.name for path in folder.iterdir()] == ["identity"]


def test_keys_that_are_created_at_once_are_one(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        identities = list(pool.map(load_identity, [folder / "identity"] * 8))
    assert len({identity.public for identity in identities}) == 1
    assert [path.name for path in folder.iterdir()] == ["identity"]


def test_the_borrowers_key_is_where_the_layout_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    assert borrower_identity().public == load_identity(identity_key()).public
    lender_store().add(record())
    assert known_lenders().exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused(folder: Path, mode: int) -> None:
    path = folder / "identity"
    load_identity(path)
    path.chmod(mode)
    with pytest.raises(PrerequisiteError, match="mode 0600") as caught:
        load_identity(path)
    assert f"chmod 600 {path}" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", b"x" * 20000])
def test_a_file_that_is_no_key_is_refused(folder: Path, content: bytes) -> None:
    path = folder / "identity"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(PrerequisiteError, match="identity"):
        load_identity(path)


def test_a_link_is_not_followed(folder: Path) -> None:
    load_identity(folder / "real")
    (folder / "identity").symlink_to(folder / "real")
    with pytest.raises(PrerequisiteError, match="cannot read"):
        load_identity(folder / "identity")


def test_a_folder_that_is_a_file(folder: Path) -> None:
    (folder / "state").write_text("")
    with pytest.raises(PrerequisiteError, match="cannot create"):
        load_identity(folder / "state" / "identity")


def test_public_keys() -> None:
    assert check_public_key(f"  {PUBLIC} me@here with words ") == PUBLIC
    assert fingerprint(PUBLIC) == "SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ"
    for bad in ("", "ssh-ed25519", "ssh-rsa AAAA", "ssh-ed25519 !!!!", PUBLIC[:-4], PUBLIC + "AAAA", "x " + PUBLIC):
        with pytest.raises(UsageError):
            check_public_key(bad)


def test_records_come_back(folder: Path) -> None:
    store = lender_store(folder / "lenders.json")
    assert store.load() == []
    store.add(record("b", OTHER))
    store.add(record("a"))
    assert [found.name for found in store.load()] == ["a", "b"]
    assert store.get("a") == record("a")
    assert store.by_key(OTHER) == record("b", OTHER)
    assert store.by_key("ssh-ed25519 x") is None
    assert store.remove("a") == record("a")
    assert [found.name for found in lender_store(folder / "lenders.json").load()] == ["b"]
    assert stat.S_IMODE((folder / "lenders.json").stat().st_mode) == 0o600
    assert record(host="fd00::1").address == "[fd00::1]:6180"
    assert record().address == "10.0.0.2:6180"


def test_a_lender_that_is_not_paired(folder: Path) -> None:
    store = lender_store(folder / "lenders.json")
    store.add(record())
    for call in (store.get, store.remove):
        with pytest.raises(NotFoundError, match=r"no lender 'cellar' is paired \(paired: attic\)") as caught:
            call("cellar")
        assert "vmcoal pair" in (caught.value.hint or "")


def test_names_and_keys_collide(folder: Path) -> None:
    store = lender_store(folder / "lenders.json")
    store.add(record())
    store.add(record(host="10.0.0.9"))
    assert store.get("attic").host == "10.0.0.9"
    for collision, why in ((record(key=OTHER), "another lender is paired as 'attic'"), (record("loft"), "as 'attic'")):
        for call in (store.check, store.add):
            with pytest.raises(ConflictError, match=why):
                call(collision)
    with pytest.raises(ConflictError, match="as 'attic'"):
        store.add(record("loft"), replace=True)
    store.add(record(key=OTHER), replace=True)
    assert [found.host_key for found in store.load()] == [OTHER]


@pytest.mark.parametrize("bad", [record("../x"), record(""), record(key="ssh-rsa AAAA")])
def test_bad_records_are_not_stored(folder: Path, bad: LenderRecord) -> None:
    with pytest.raises(UsageError):
        lender_store(folder / "lenders.json").add(bad)
    assert not (folder / "lenders.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(version=2),
        lambda data: data.update(more=1),
        lambda data: data["records"][0].update(colour="red"),
        lambda data: data["records"][0].update(name="../x"),
        lambda data: data["records"][0].update(host_key="ssh-rsa AAAA"),
        lambda data: data["records"][0].update(grants=["root"]),
        lambda data: data["records"][0].pop("port"),
    ],
)
def test_a_store_that_was_tampered_with_is_refused(folder: Path, change: object) -> None:
    store = lender_store(folder / "lenders.json")
    store.add(record())
    data = json.loads(store.path.read_text())
    change(data)  # type: ignore[operator]
    store.path.write_text(json.dumps(data))
    for call in (store.load, lambda: store.add(record("b", OTHER)), lambda: store.remove("attic")):
        with pytest.raises(PrerequisiteError, match=r"lenders\.json cannot be used") as caught:
            call()
        assert "mv " in (caught.value.hint or "")


def test_a_store_that_others_can_write_is_refused(folder: Path) -> None:
    store = lender_store(folder / "lenders.json")
    store.add(record())
    store.path.chmod(0o622)
    with pytest.raises(PrerequisiteError, match="mode 0600"):
        store.load()


def test_a_write_that_fails_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = lender_store(folder / "lenders.json")
    store.add(record())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PrerequisiteError, match="No space left on device"):
        store.add(record("b", OTHER))
    assert store.load() == [record()]
    assert sorted(path.name for path in folder.iterdir()) == ["lenders.json", "lenders.json.lock"]


def test_changes_at_once_are_all_kept(folder: Path) -> None:
    def add(number: int) -> None:
        key = load_identity(folder / f"key{number}").public
        store = borrower_store(folder / "borrowers.json")
        store.add(BorrowerRecord(name=f"b{number}", public_key=key, grants=(), paired_at=1.0))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    store: RecordStore[BorrowerRecord] = borrower_store(folder / "borrowers.json")
    assert {found.name for found in store.load()} == {f"b{number}" for number in range(8)}
