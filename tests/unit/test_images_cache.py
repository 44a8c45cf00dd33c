"""The image cache and the seed's texts."""

from __future__ import annotations

import base64
import errno
import fcntl
import gzip
import json
import os
import re
from pathlib import Path

import pytest

from vmcoal.errors import DeadlineError, ExecutionError, PrerequisiteError, UsageError
from vmcoal.guest import images, seed
from vmcoal.guest.store import Image, Store, digest_of
from vmcoal.layout import lab_host_folders, vm_folders

pytestmark = pytest.mark.unit


def nobody(text: str, fraction: float | None) -> None:
    pass


def put(store: Store, kind: str, digest: str, recipe: str = "r") -> Image:
    with store.building(kind, deadline=1, progress=nobody, space=0) as work:
        tree = work / "tree"
        tree.mkdir()
        (tree / "file").write_bytes(b"x")
        return store.publish(
            Image(kind=kind, digest=digest, recipe=recipe, release="6.1", files={"disk": "file"}), tree
        )


def age(image: Image, created: str) -> None:
    about = Path(image.folder, "image.json")
    data = json.loads(about.read_text())
    about.write_text(json.dumps({**data, "created": created}))


def test_digests_tell_parts_apart() -> None:
    assert digest_of(["a", "bc"]) != digest_of(["ab", "c"])
    assert digest_of([b"a"]) == digest_of(["a"])


def test_an_image_is_complete_or_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.all() == []
    image = put(store, "default", "d1")
    assert image.path("disk").read_bytes() == b"x"
    assert store.all() == [image]
    assert store.find("default", recipe="r") == image
    assert store.find("default", recipe="other") is None
    assert store.find("debian") is None
    assert store.owner(image.path("disk")) == image
    assert store.owner(tmp_path / "elsewhere") is None
    image.path("disk").unlink()
    assert store.all() == []


def test_damaged_metadata_is_no_image(tmp_path: Path) -> None:
    image = put(Store(tmp_path), "default", "d1")
    Path(image.folder, "image.json").write_text("{")
    assert Store(tmp_path).all() == []


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), RuntimeError(), ExecutionError("no")])
def test_a_build_that_ends_early_leaves_nothing(tmp_path: Path, problem: BaseException) -> None:
    store = Store(tmp_path)
    with (
        pytest.raises(type(problem)),
        store.building("default", deadline=1, progress=nobody, space=0) as work,
    ):
        (work / "part").write_bytes(b"x")
        raise problem
    assert [path.name for path in store.images.iterdir()] == ["default.lock"]


def test_a_full_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with (
        pytest.raises(ExecutionError, match="no space left") as caught,
        store.building("default", deadline=1, progress=nobody, space=0),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.hint
    with (
        pytest.raises(PrerequisiteError, match="MiB free"),
        store.building("default", deadline=1, progress=nobody, space=1 << 60),
    ):
        pytest.fail("built without space")


def test_what_a_killed_build_left_goes_with_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.images / ".build-default-dead").mkdir(parents=True)
    alive = [".build-debian-alive", ".build-default-trixie-alive"]
    for name in alive:
        (store.images / name).mkdir()
    put(store, "default", "d1")
    assert sorted(path.name for path in store.images.glob(".*")) == alive


def test_an_image_that_a_lab_host_runs_from_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = put(store, "lab-12", "d1"), put(store, "lab-12", "d2")
    age(first, "2020-01-01T00:00:00+00:00")
    spec = lab_host_folders("host1", "shed").spec
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"disks": [str(first.path("disk"))]}))
    assert store.in_use(first) == ["shed/host1"]
    assert store.in_use(second) == []
    assert store.prune()[1] == {"lab-12-d1": ["shed/host1"]}


def test_packages_stay_while_any_image_is_built(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.packages.mkdir(parents=True)
    with store.building("lab-12", deadline=1, progress=nobody, space=0):
        store.prune()
        assert store.packages.exists()
    store.prune()
    assert not store.packages.exists()


def test_a_second_build_waits_and_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.images.mkdir(parents=True)
    lock = os.open(store.images / "default.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    said: list[str] = []

    def progress(text: str, fraction: float | None) -> None:
        said.append(text)

    with (
        pytest.raises(DeadlineError, match="another vmcoal"),
        store.building("default", deadline=0.01, progress=progress, space=0),
    ):
        pytest.fail("built twice")
    assert said == ["waiting for another vmcoal that builds this image"]
    os.close(lock)
    put(store, "default", "d1")


def test_an_unusable_cache(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("")
    with pytest.raises(PrerequisiteError, match="cannot be used"):
        put(Store(tmp_path), "default", "d1")


def test_prune_keeps_the_newest_and_what_vms_boot_from(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = [put(store, "default", f"d{number}") for number in range(3)]
    for number, image in enumerate(made):
        age(image, f"2026-01-0{number + 1}T00:00:00+00:00")
    disk = put(store, "debian", "x")
    spec = vm_folders("dev").spec
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"boot": {"kernel": str(made[0].path("disk"))}}))
    packages = store.packages
    packages.mkdir()
    assert [image.digest for image in images.prune_images(cache=tmp_path, dry_run=True)[0]] == ["d1"]
    assert images.fetched_packages(tmp_path) == packages
    assert len(images.list_images(cache=tmp_path)) == 4
    removed, kept = images.prune_images(cache=tmp_path)
    assert images.fetched_packages(tmp_path) is None
    assert [image.digest for image in removed] == ["d1"]
    assert kept == {"default-d0": ["dev"]}
    removed, kept = images.prune_images(everything=True, cache=tmp_path)
    assert {image.digest for image in removed} == {"d2", disk.digest}
    assert kept == {"default-d0": ["dev"]}
    spec.unlink()
    store.trim("default", keep=0)
    assert images.list_images(cache=tmp_path) == []
    with pytest.raises(UsageError):
        images.prune_images(kind="windows", cache=tmp_path)


def test_prune_leaves_the_packages_of_a_build_that_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.packages.mkdir()
    with store.building("default", deadline=1, progress=nobody, space=0):
        images.prune_images(cache=tmp_path)
        assert store.packages.exists()
    images.prune_images(cache=tmp_path)
    assert not store.packages.exists()


def test_guest_files_are_there() -> None:
    assert images.agent_source().is_file()
    assert images.agent_unit().is_file()
    assert (images.guest_files() / "init" / "init").is_file()


def test_debian_sizes(tmp_path: Path) -> None:
    for size in (0, -1, 1 << 20, (2 << 30) + 1):
        with pytest.raises(UsageError):
            images.build_debian(size=size, cache=tmp_path)
    assert not (tmp_path / "images").exists()


def test_a_cached_default_image_needs_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(PrerequisiteError, match="apt-get"):
        images.ensure_default_image(cache=tmp_path)
    assert images.list_images(cache=tmp_path) == []


def test_seeds_are_for_images_that_never_booted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    image = put(store, "debian", "x")
    (tmp_path / "link").symlink_to(image.path("disk"))
    assert seed.should_seed(tmp_path / "link", cache=tmp_path)[0]
    users = tmp_path / "users.qcow2"
    users.write_bytes(b"")
    yes, why = seed.should_seed(users, cache=tmp_path)
    assert not yes
    assert "--seed" in why


def test_user_data_brings_the_agent() -> None:
    text = seed.user_data(ssh_key="ssh-ed25519 AAAA me\n")
    first, _, rest = text.partition("\n")
    assert first == "#cloud-config-archive"
    hook, config = json.loads(rest)
    assert hook["type"] == "text/cloud-boothook"
    packed = re.findall(r"<<'END' \| gunzip >(\S+)\.new\n(.*?)\nEND\n", hook["content"], re.DOTALL)
    files = {place: gzip.decompress(base64.b64decode(data)) for place, data in packed}
    assert files == {
        seed.AGENT_PLACE: images.agent_source().read_bytes(),
        seed.UNIT_PLACE: images.agent_unit().read_bytes(),
    }
    assert seed.AGENT_PLACE in images.agent_unit().read_text()
    keys = json.loads(config["content"])
    assert keys["ssh_authorized_keys"] == ["ssh-ed25519 AAAA me"]
    assert keys["users"] == ["default", {"name": "root", "ssh_authorized_keys": ["ssh-ed25519 AAAA me"]}]
    assert len(json.loads(seed.user_data().partition("\n")[2])) == 1
    with pytest.raises(ValueError, match="one line"):
        seed.user_data(ssh_key="a\nb")
    assert json.loads(seed.meta_data(name="dev", identity="u")) == {"instance-id": "u", "local-hostname": "dev"}
