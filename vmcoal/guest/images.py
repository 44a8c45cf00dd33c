"""Guest images that vmcoal builds itself, cached by content.

    ensure_default_image(progress)          -> DefaultImage   kernel + initramfs; built if there is none, about 10 s
    build_default(progress, refresh=True)   -> Image          look for newer packages (`vmcoal image build default`)
    build_debian(progress, size=…)          -> Image          bootable Debian disk (`vmcoal image build debian`)
    list_images()                           -> list[Image]    newest first (`vmcoal image list`)
    prune_images(everything=False)          -> (removed, kept)

All of them block (they run apt and friends): call them from a thread or before an event loop. ``progress(text,
fraction)`` is called from the same thread; ``fraction`` is ``None`` where it is unknown. Errors: `PrerequisiteError`
(no apt, no network, no space: nothing was changed), `ExecutionError` (failed on the way, nothing left behind),
`DeadlineError`.

What the default image takes from QEMU, beside kernel, initrd and `DefaultImage.append`:

- kernel argument ``hostname=NAME`` sets its name;
- ``-fw_cfg name=opt/org.vmcoal/authorized_keys,file=FILE`` (`FW_CFG_KEYS`) lets these keys log in as root over ssh;
- a virtio-serial port ``org.vmcoal.agent.0`` for the agent; ttyS0 has a root shell; DHCP on every network card;
- the ACPI power button (QMP ``system_powerdown``) shuts it down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmcoal.errors import InternalError, UsageError
from vmcoal.guest import debian_disk, default_image
from vmcoal.guest.packages import Apt, Progress, quiet
from vmcoal.guest.store import Image, Store, digest_of

FW_CFG_KEYS = "opt/org.vmcoal/authorized_keys"
"""The fw_cfg file whose ssh public keys the default image lets in."""

_DEFAULT_SPACE = 400 << 20
_DEFAULT_KEPT = 4
_DEBIAN_SPACE = 2 << 30
_BUILD_DEADLINE = 1800.0


@dataclass(frozen=True)
class DefaultImage:
    """What a direct kernel boot of the default image needs; ``append`` the kernel arguments it wants."""

    kernel: Path
    initrd: Path
    release: str
    append: str
    digest: str


def guest_files() -> Path:
    """Return the folder of what runs in the guest: the agent, its unit, the default image's own files.

    Installed, it is the package's ``_guest``; in a source tree, ``guest-agent``.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_guest", package.parent / "guest-agent"):
        if (folder / "vmcoal_agent.py").is_file():
            return folder
    raise InternalError("the guest agent is missing from this installation", hint="install vmcoal again")


def agent_source() -> Path:
    """Return the agent's source, one file of Python."""
    return guest_files() / "vmcoal_agent.py"


def agent_unit() -> Path:
    """Return the agent's systemd unit."""
    return guest_files() / "vmcoal-agent.service"


def ensure_default_image(progress: Progress = quiet, *, cache: Path | None = None) -> DefaultImage:
    """Return the default image, building it where the cache holds none that this vmcoal would build.

    A cached one is taken without asking for newer packages: `build_default` does. ``cache`` replaces the folder
    `vmcoal.layout.cache_home`.
    """
    return default_boot(build_default(progress, cache=cache, refresh=False))


def default_boot(image: Image) -> DefaultImage:
    """Return a default image as what boots it."""
    return DefaultImage(image.path("kernel"), image.path("initrd"), image.release, image.append, image.digest)


def build_default(
    progress: Progress = quiet, *, cache: Path | None = None, refresh: bool = True, suite: str | None = None
) -> Image:
    """Build the default image from the distribution's packages as they are now, or return it if it is built already.

    Without ``refresh``, any cached image of the same recipe (this vmcoal's builder, agent and init files) is returned
    at once. ``suite``: a Debian's codename, whose packages are taken instead of those of the host's own sources; the
    image is then of the kind ``default-SUITE``, which no VM boots by default.
    """
    store = Store(cache)
    recipe = _default_recipe()
    kind = "default" if suite is None else f"default-{suite}"
    if not refresh and (image := store.find(kind, recipe=recipe)) is not None:
        return image
    with store.building(kind, deadline=_BUILD_DEADLINE, progress=progress, space=_DEFAULT_SPACE) as work:
        if not refresh and (image := store.find(kind, recipe=recipe)) is not None:
            return image
        apt = Apt(work / "apt", store.packages)
        if suite is not None:
            lines = debian_disk.sources(suite, apt.mirrors())
            apt = Apt(work / "suite-apt", store.packages / kind, sources=lines)
        wanted = default_image.wanted_packages(apt.resolve(default_image.WANTED, progress=progress))
        versions = {package.name: package.version for package in wanted}
        digest = digest_of([recipe, *(f"{name}={version}" for name, version in sorted(versions.items()))])
        if (image := store.find(kind, digest=digest)) is not None:
            return image
        files = apt.fetch(wanted, progress=progress)
        tree = work / "image"
        tree.mkdir()
        release, system = default_image.build(files, tree, agent_source(), guest_files() / "init", progress=progress)
        image = store.publish(
            Image(
                kind=kind,
                digest=digest,
                recipe=recipe,
                release=release,
                system=system,
                files={"kernel": "vmlinuz", "initrd": "initrd"},
                append=default_image.APPEND,
                packages=versions,
            ),
            tree,
        )
        # Every new agent makes a new image, and an old one is made again in seconds.
        store.trim(kind, keep=_DEFAULT_KEPT)
        for old in set(apt.archives.glob("*.deb")) - set(files.values()):
            old.unlink(missing_ok=True)
        return image


def build_debian(
    progress: Progress = quiet,
    *,
    size: int = 2 << 30,
    suite: str | None = None,
    cache: Path | None = None,
    refresh: bool = True,
) -> Image:
    """Build a bootable Debian disk (qcow2, BIOS and UEFI, cloud-init), or return it if it is built already.

    ``size`` bytes of the disk; ``suite`` a codename, the host's unless given; ``refresh`` as in `build_default`. The
    agent comes with the seed. The disk is ``image.path("disk")``.
    """
    if size < debian_disk.SMALLEST or size % (1 << 20):
        raise UsageError(
            f"a Debian disk cannot have {size} bytes", hint="give whole MiB, 1 GiB or more, for example --size 4G"
        )
    suite = suite or debian_disk.host_suite()
    store = Store(cache)
    recipe = digest_of([*debian_disk.recipe_parts(), suite, str(size)])
    if not refresh and (image := store.find("debian", recipe=recipe)) is not None:
        return image
    debian_disk.check_tools()
    with store.building("debian", deadline=_BUILD_DEADLINE, progress=progress, space=_DEBIAN_SPACE) as work:
        if not refresh and (image := store.find("debian", recipe=recipe)) is not None:
            return image
        lines = debian_disk.sources(suite, Apt(work / "apt", store.packages).mirrors())
        apt = Apt(work / "apt", store.packages, sources=lines)
        closure = apt.resolve([*debian_disk.WANTED, "apt", "?essential"], progress=progress)
        versions = {package.name: package.version for package in closure}
        digest = digest_of([recipe, *(f"{name}={version}" for name, version in sorted(versions.items()))])
        if (image := store.find("debian", digest=digest)) is not None:
            return image
        tree, scratch = work / "image", work / "scratch"
        tree.mkdir()
        scratch.mkdir()
        release, system = debian_disk.build(tree, scratch, suite=suite, lines=lines, size=size, progress=progress)
        return store.publish(
            Image(
                kind="debian",
                digest=digest,
                recipe=recipe,
                release=release,
                system=system,
                files={"disk": "disk.qcow2"},
                packages=versions,
            ),
            tree,
        )


def _default_recipe() -> str:
    init = guest_files() / "init"
    parts: list[str | bytes] = [str(default_image.BUILDER), default_image.APPEND, agent_source().read_bytes()]
    parts += default_image.recipe_parts()
    for path in sorted(init.iterdir()):
        parts += [path.name, path.read_bytes()]
    return digest_of(parts)


def list_images(*, cache: Path | None = None) -> list[Image]:
    """Return the cached images, newest first."""
    return Store(cache).all()


def fetched_packages(cache: Path | None = None) -> Path | None:
    """Return the folder of the fetched packages, or ``None`` if there are none."""
    folder = Store(cache).packages
    return folder if folder.is_dir() else None


def prune_images(
    *, everything: bool = False, kind: str | None = None, cache: Path | None = None, dry_run: bool = False
) -> tuple[list[Image], dict[str, list[str]]]:
    """Remove old images (all, if ``everything``; only of ``kind``, if given) and the fetched packages.

    Images that a VM boots from stay. Returns the images that were removed, or would be on a ``dry_run``, and for each
    image kept for that reason the VMs.
    """
    if kind not in {None, "default", "debian"}:
        raise UsageError(f"{kind!r} is not a kind of image", hint="default or debian")
    return Store(cache).prune(everything=everything, kind=kind, dry_run=dry_run)
