"""The images of lab hosts: what they are made of, and how a build that cannot be fails."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from vmcoal.errors import ExecutionError, PrerequisiteError, UsageError
from vmcoal.guest.images import guest_files
from vmcoal.guest.packages import Apt, Package
from vmcoal.guest.store import Image, Store, digest_of
from vmcoal.lab import image, image_base, image_layer
from vmcoal.lab.image_base import FLAVORS
from vmcoal.model.machine import Accel

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def nobody(text: str, fraction: float | None) -> None:
    pass


def put(store: Store, kind: str, recipe: str, files: dict[str, str], **fields: object) -> Image:
    with store.building(kind, deadline=1, progress=nobody, space=0) as work:
        tree = work / "tree"
        tree.mkdir()
        for name in files.values():
            (tree / name).write_bytes(name.encode())
        return store.publish(
            Image(kind=kind, digest=recipe, recipe=recipe, release="6.1.0", files=files, **fields), tree
        )


def test_the_hosts_get_what_the_project_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0] for line in project["dependencies"]}
    assert set(image_layer.REQUIRES) == names


def test_requirements_are_those_of_this_installation_with_theirs() -> None:
    found = image_layer.requirements()
    assert found["asyncssh"] == importlib.metadata.version("asyncssh")
    assert "cryptography" in found  # asyncssh's own
    assert "pytest" not in found
    assert list(found) == sorted(found)


def test_a_missing_requirement_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layer, "REQUIRES", ("no-such-package-of-python",))
    with pytest.raises(PrerequisiteError, match="no-such-package-of-python"):
        image_layer.requirements()


def test_vmcoal_is_copied_whole() -> None:
    places = {str(place) for place, _ in image_layer._sources()}
    assert {"vmcoal/__main__.py", "vmcoal/py.typed", "vmcoal_qmp/client.py", "vmcoal/_bin/vmcoal-holder"} <= places
    assert "vmcoal/_guest/vmcoal_agent.py" in places
    assert not any("__pycache__" in place for place in places)


@pytest.mark.parametrize("flavor", FLAVORS.values(), ids=list(FLAVORS))
def test_a_changed_file_changes_vmcoals_disk_only(flavor: image_base.Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(image_base.recipe_parts(flavor)), digest_of(image_layer.recipe_parts(flavor))
    parts = image_layer._sources()
    monkeypatch.setattr(image_layer, "_sources", lambda: [*parts, (Path("vmcoal/new.py"), Path(__file__))])
    after = digest_of(image_base.recipe_parts(flavor)), digest_of(image_layer.recipe_parts(flavor))
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_flavors_differ_in_their_digests() -> None:
    assert len({digest_of(image_base.recipe_parts(flavor)) for flavor in FLAVORS.values()}) == len(FLAVORS)


def test_compiled_parts_that_are_too_new_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "vmcoal-holder"
    binary.write_bytes(b"\0GLIBC_2.17\0GLIBC_2.38\0")
    monkeypatch.setattr(image_layer, "find_binary", lambda name: binary)
    with pytest.raises(PrerequisiteError, match=r"glibc 2\.38, and Debian 12 has 2\.36"):
        image_layer.check_binaries(FLAVORS["12"])
    image_layer.check_binaries(FLAVORS["13"])


def test_an_unknown_flavor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'11' is not a flavor"):
        image.ensure_image("11", cache=tmp_path)


def test_what_only_scripts_need_stays_away() -> None:
    assert image_base.is_needed("qemu-system-x86")
    assert not image_base.is_needed("perl-base")
    assert not image_base.is_needed("udev")


def test_a_cached_image_is_taken_without_asking_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    flavor = FLAVORS["12"]
    guest = put(store, "default", "g", {"kernel": "vmlinuz", "initrd": "initrd"})
    monkeypatch.setattr(image, "build_default", lambda *args, **options: guest)
    base = put(
        store,
        "lab-12",
        digest_of(image_base.recipe_parts(flavor)),
        {"kernel": "vmlinuz", "initrd": "initrd", "disk": "disk"},
        append="quiet",
        packages={"qemu-system-x86": "1:7.2+dfsg-7+deb12u18"},
    )
    recipe = digest_of([*image_layer.recipe_parts(flavor), guest.digest])
    layer = put(store, "lab-12-vmcoal", recipe, {"disk": "disk"})
    found = image.ensure_image("12", cache=tmp_path)
    assert found.disks == (base.path("disk"), layer.path("disk"))
    assert (found.qemu, found.release) == ("7.2", "6.1.0")
    host = image.make_host_spec("host1", found, qemu="q", accel=Accel.TCG)
    assert host.disks == tuple(map(str, found.disks))


def test_packages_that_cannot_be_fetched_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(self: Apt, packages: object, **options: object) -> None:
        raise PrerequisiteError("the distribution's packages cannot be fetched: no network", hint="check the network")

    monkeypatch.setattr(Apt, "mirrors", lambda self: [])
    monkeypatch.setattr(
        Apt, "resolve", lambda self, names, **options: [Package("bash", "1", "bash_1_amd64.deb", 1, "")]
    )
    monkeypatch.setattr(Apt, "fetch", fetch)
    with pytest.raises(PrerequisiteError, match="cannot be fetched: no network"):
        image.ensure_image("12", cache=tmp_path)
    assert not [path for path in (tmp_path / "images").iterdir() if path.suffix != ".lock"]


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Apt, "mirrors", lambda self: [])
    monkeypatch.setattr(
        Apt, "resolve", lambda self, names, **options: [Package("bash", "1", "bash_1_amd64.deb", 1, "")]
    )
    monkeypatch.setattr(Apt, "fetch", lambda self, packages, **options: {})

    def full(*args: object, **options: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_base, "build", full)
    with pytest.raises(ExecutionError, match="no space left while building the lab-12 image"):
        image.ensure_image("12", cache=tmp_path)
    assert not [path for path in (tmp_path / "images").iterdir() if path.suffix != ".lock"]
    monkeypatch.setattr(image, "_BASE_SPACE", 1 << 60)
    with pytest.raises(PrerequisiteError, match="MiB free, building the lab-12 image takes"):
        image.ensure_image("12", cache=tmp_path)


def test_a_package_is_unpacked_without_owners_and_special_modes(tmp_path: Path) -> None:
    tree = tmp_path / "deb"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m <m@example.org>\nDescription: d\n"
    )
    for name in ("bin/tool", "usr/share/doc/p/readme", "usr/lib/data"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "bin/tool").chmod(0o4755)
    (tree / "bin/alias").symlink_to("tool")
    subprocess.run(["dpkg-deb", "--build", tree, tmp_path / "p.deb"], check=True, capture_output=True)
    root = tmp_path / "root"
    image_base._lay_out(root)
    image_base._take(tmp_path / "p.deb", root)
    image_base._take(tmp_path / "p.deb", root)  # a file that another package brought too is replaced
    assert (root / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (root / "bin/alias").read_text() == "bin/tool"
    assert (root / "usr/lib/data").stat().st_mode & 0o777 == 0o644
    assert not (root / "usr/share/doc/p/readme").exists()


def test_every_file_of_a_hosts_init_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    image_layer._own_files(tmp_path)
    placed = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"usr/sbin/init", "etc/inittab", "usr/local/bin/vmcoal", "usr/libexec/vmcoal/agent"} <= placed
    assert "usr/lib/vmcoal/vmcoal_agent.py" in placed
    for name in ("usr/sbin/init", "usr/local/bin/vmcoal", "usr/libexec/vmcoal/ready"):
        assert (tmp_path / name).stat().st_mode & 0o111
    for path in (guest_files() / "lab").iterdir():
        if path.read_bytes().startswith(b"#!/bin/sh"):
            subprocess.run(["sh", "-n", path], check=True)
