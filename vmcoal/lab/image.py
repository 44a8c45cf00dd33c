"""What a host of the lab boots, built from the distribution's packages and cached by content.

Two read-only disks that all hosts share: the distribution (`vmcoal.lab.image_base`, built once for each set of
packages) and vmcoal (`vmcoal.lab.image_layer`, built whenever vmcoal's files change, in seconds).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmcoal.errors import UsageError
from vmcoal.guest import debian_disk
from vmcoal.guest.images import build_default
from vmcoal.guest.packages import Apt, Progress, quiet
from vmcoal.guest.store import Image, Store, digest_of
from vmcoal.lab import image_base, image_layer
from vmcoal.lab.host_spec import CPUS, MEMORY, HostSpec, check_host
from vmcoal.lab.image_base import FLAVORS
from vmcoal.model.machine import Accel

_BASE_SPACE = 2 << 30
_LAYER_SPACE = 400 << 20
_KEPT = 2
_DEADLINE = 1800.0


@dataclass(frozen=True)
class HostImage:
    """What boots a host: ``disks`` in their order, the distribution and vmcoal; ``qemu`` the version inside."""

    flavor: str
    release: str
    system: str
    qemu: str
    kernel: Path
    initrd: Path
    disks: tuple[Path, ...]
    append: str


def ensure_image(
    flavor: str = "12", progress: Progress = quiet, *, cache: Path | None = None, refresh: bool = False
) -> HostImage:
    """Return the image of a flavour (`FLAVORS`), building what the cache does not hold.

    It takes about a minute the first time and 170 MB of packages; ``refresh`` looks for newer ones. Blocks: call it
    before an event loop, or from a thread. ``cache`` replaces `vmcoal.layout.cache_home`. Raises `UsageError` for an
    unknown flavour, `PrerequisiteError` (a tool, the network, space is missing: nothing was changed), `ExecutionError`
    (it failed on the way, nothing was left), `DeadlineError`.
    """
    if flavor not in FLAVORS:
        raise UsageError(f"{flavor!r} is not a flavor of lab hosts", hint=f"use {' or '.join(FLAVORS)}")
    image_layer.check_binaries(FLAVORS[flavor])
    base = _base(flavor, progress, cache, refresh)
    layer = _layer(flavor, base, progress, cache, refresh)
    version = base.packages["qemu-system-x86"].partition(":")[2].partition("+")[0]
    disks = (base.path("disk"), layer.path("disk"))
    return HostImage(
        flavor, base.release, base.system, version, base.path("kernel"), base.path("initrd"), disks, base.append
    )


def make_host_spec(
    name: str,
    image: HostImage,
    *,
    qemu: str,
    accel: Accel,
    accel_reason: str = "",
    cpus: int = CPUS,
    memory: int = MEMORY,
    iommu: bool = False,
    functions: tuple[str, ...] = (),
) -> HostSpec:
    """Return a host that boots ``image``; ``memory`` in bytes, the rest as in `HostSpec`. Raises `UsageError`."""
    check_host(name, cpus, memory, iommu, functions)
    return HostSpec(
        name=name,
        qemu=qemu,
        accel=accel,
        accel_reason=accel_reason,
        cpus=cpus,
        memory=memory,
        flavor=image.flavor,
        release=image.release,
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        append=image.append,
        disks=tuple(map(str, image.disks)),
        iommu=iommu,
        functions=functions,
    )


def _base(name: str, progress: Progress, cache: Path | None, refresh: bool) -> Image:
    flavor, kind, store = FLAVORS[name], f"lab-{name}", Store(cache)
    recipe = digest_of(image_base.recipe_parts(flavor))
    if not refresh and (image := store.find(kind, recipe=recipe)) is not None:
        return image
    with store.building(kind, deadline=_DEADLINE, progress=progress, space=_BASE_SPACE) as work:
        if not refresh and (image := store.find(kind, recipe=recipe)) is not None:
            return image
        lines = debian_disk.sources(flavor.suite, Apt(work / "host-apt", store.packages).mirrors())
        apt = Apt(work / "apt", store.packages / kind, sources=lines)
        closure = apt.resolve(image_base.wanted(flavor), progress=progress)
        wanted = [package for package in closure if image_base.is_needed(package.name)]
        versions = {package.name: package.version for package in wanted}
        digest = digest_of([recipe, *(f"{name}={version}" for name, version in sorted(versions.items()))])
        if (image := store.find(kind, digest=digest)) is not None:
            return image
        files = apt.fetch(wanted, progress=progress)
        out, scratch = work / "image", work / "scratch"
        out.mkdir()
        scratch.mkdir()
        release = image_base.build(files, flavor, out, scratch, progress=progress)
        image = store.publish(
            Image(
                kind=kind,
                digest=digest,
                recipe=recipe,
                release=release,
                system=f"Debian {name} host of the lab",
                files={"kernel": "vmlinuz", "initrd": "initrd", "disk": "disk"},
                append=image_base.APPEND,
                packages=versions,
            ),
            out,
        )
        store.trim(kind, keep=_KEPT)
        for old in set((store.packages / kind).glob("*.deb")) - set(files.values()):
            old.unlink(missing_ok=True)
        return image


def _layer(name: str, base: Image, progress: Progress, cache: Path | None, refresh: bool) -> Image:
    flavor, kind, store = FLAVORS[name], f"lab-{name}-vmcoal", Store(cache)
    suite = None if flavor.suite == debian_disk.host_suite() else flavor.suite
    guest = build_default(progress, cache=cache, refresh=refresh, suite=suite)
    recipe = digest_of([*image_layer.recipe_parts(flavor), guest.digest])
    if (image := store.find(kind, recipe=recipe)) is not None:
        return image
    with store.building(kind, deadline=_DEADLINE, progress=progress, space=_LAYER_SPACE) as work:
        if (image := store.find(kind, recipe=recipe)) is not None:
            return image
        out, scratch = work / "image", work / "scratch"
        out.mkdir()
        scratch.mkdir()
        image_layer.build(guest, flavor, Path(base.folder, "python"), out, scratch, progress=progress)
        image = store.publish(
            Image(
                kind=kind,
                digest=recipe,
                recipe=recipe,
                release=base.release,
                system=f"vmcoal on Debian {name} hosts of the lab",
                files={"disk": "disk"},
            ),
            out,
        )
        store.trim(kind, keep=_KEPT)
        return image
