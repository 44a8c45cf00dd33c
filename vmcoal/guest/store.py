"""The image cache: one folder per image, complete or absent.

~/.cache/vmcoal/images/KIND-DIGEST/     image.json and the files it names
~/.cache/vmcoal/images/.build-XXXXXX/   an image being built; left only by a killed build, removed by the next
~/.cache/vmcoal/images/KIND.lock        held while an image of that kind is built
~/.cache/vmcoal/packages/               the packages that images were made of
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from vmcoal.errors import UNREADABLE, DeadlineError, ExecutionError, PrerequisiteError, VmcoalError
from vmcoal.guest.packages import Progress
from vmcoal.layout import cache_home, state_home

_ABOUT = "image.json"
_ABOUT_MAX = 1 << 20
_LOCK_POLL = 0.2


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One image that vmcoal built.

    ``kind`` default | debian, and for the lab lab-FLAVOR | lab-FLAVOR-vmcoal | default-SUITE; ``digest`` of everything
    it was made of; ``recipe`` digest of vmcoal's part of that, without the packages' versions; ``release`` of its
    kernel; ``system`` for people; ``created`` ISO 8601, UTC; ``files`` by role (kernel, initrd, disk), names in its
    folder; ``append`` kernel arguments; ``packages`` versions by name; ``folder`` where it is.
    """

    kind: str
    digest: str
    recipe: str
    release: str
    system: str = ""
    created: str = ""
    files: dict[str, str]
    append: str = ""
    packages: dict[str, str] = {}
    folder: str = ""

    def path(self, role: str) -> Path:
        """Return the path of the file with ``role``; raises `KeyError`."""
        return Path(self.folder, self.files[role])

    @property
    def size(self) -> int:
        """Bytes it takes on disk."""
        return sum(path.stat().st_blocks * 512 for path in Path(self.folder).glob("*"))


def digest_of(parts: Iterable[str | bytes]) -> str:
    """Return a digest over ``parts``, each told apart from its neighbours."""
    total = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        total.update(len(raw).to_bytes(8, "big") + raw)
    return total.hexdigest()[:16]


class Store:
    """The images below one cache folder; ``root`` is `vmcoal.layout.cache_home` unless given."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_home()
        self.images = self.root / "images"
        self.packages = self.root / "packages"

    def all(self) -> list[Image]:
        """Return every complete image, newest first."""
        found = []
        for about in self.images.glob(f"*-*/{_ABOUT}"):
            with suppress(OSError, *UNREADABLE):
                if about.stat().st_size <= _ABOUT_MAX:
                    image = msgspec.json.decode(about.read_bytes(), type=Image)
                    image = msgspec.structs.replace(image, folder=str(about.parent))
                    if all(image.path(role).is_file() for role in image.files):
                        found.append(image)
        return sorted(found, key=lambda image: (image.created, image.digest), reverse=True)

    def find(self, kind: str, *, recipe: str | None = None, digest: str | None = None) -> Image | None:
        """Return the newest image of ``kind`` with this ``recipe`` or ``digest``, or ``None``."""
        for image in self.all():
            if image.kind == kind and recipe in {None, image.recipe} and digest in {None, image.digest}:
                return image
        return None

    def owner(self, path: Path) -> Image | None:
        """Return the image that the file ``path`` belongs to, or ``None`` if vmcoal did not build it."""
        with suppress(OSError):
            real = path.resolve()
            for image in self.all():
                if any(real == image.path(role).resolve() for role in image.files):
                    return image
        return None

    @contextmanager
    def building(self, kind: str, *, deadline: float, progress: Progress, space: int) -> Iterator[Path]:
        """Hold the lock of ``kind`` and give an empty folder to build in, removed afterwards if it is still there.

        Raises `DeadlineError` when another build holds the lock for ``deadline`` seconds, `PrerequisiteError` where the
        cache cannot be written or has less than ``space`` bytes free; a full disk on the way is an `ExecutionError`.
        """
        try:
            self.images.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.images).free
            lock = os.open(self.images / f"{kind}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PrerequisiteError(
                f"the image cache {self.images} cannot be used: {error.strerror}",
                hint="check its owner and mode, or set XDG_CACHE_HOME to another folder",
            ) from error
        try:
            _wait_for_lock(lock, deadline, progress)
            if free < space:
                raise PrerequisiteError(
                    f"{self.images} has {free >> 20} MiB free, building the {kind} image takes {space >> 20} MiB",
                    hint="free some space, or set XDG_CACHE_HOME to a folder on a larger disk",
                )
            for stale in self.images.glob(f".build-{kind}-*"):
                if "-" not in stale.name.removeprefix(f".build-{kind}-"):  # else it is of a kind with a longer name
                    shutil.rmtree(stale, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f".build-{kind}-", dir=self.images))
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
        except OSError as error:
            raise _explained(error, self.images, kind) from error
        finally:
            os.close(lock)

    def publish(self, image: Image, work: Path) -> Image:
        """Make what was built in ``work`` an image, in one step that cannot be seen half done."""
        image = msgspec.structs.replace(image, created=datetime.now(UTC).isoformat(timespec="seconds"), folder="")
        for role in image.files:
            _sync(work / image.files[role])
        (work / _ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(image), indent=2))
        _sync(work / _ABOUT)
        work.chmod(0o755)
        final = self.images / f"{image.kind}-{image.digest}"
        if final.exists():
            shutil.rmtree(final)
        work.rename(final)
        return msgspec.structs.replace(image, folder=str(final))

    def in_use(self, image: Image) -> list[str]:
        """Return the names of the VMs, and of the lab's hosts as LAB/HOST, whose spec names a file of ``image``."""
        home = state_home()
        specs = {path: path.parent.name for path in (home / "vm").glob("*/machine.json")}
        specs |= {path: str(path.parent.relative_to(home / "lab")) for path in (home / "lab").glob("*/*/host.json")}
        names = []
        for spec, name in sorted(specs.items()):
            with suppress(OSError):
                if os.fsencode(image.folder + "/") in spec.read_bytes():
                    names.append(name)
        return names

    def trim(self, kind: str, *, keep: int) -> None:
        """Remove images of ``kind`` beyond the newest ``keep``, but none that a VM's spec names."""
        for image in [image for image in self.all() if image.kind == kind][keep:]:
            if not self.in_use(image):
                self._remove(image)

    def prune(
        self, *, everything: bool = False, kind: str | None = None, dry_run: bool = False
    ) -> tuple[list[Image], dict[str, list[str]]]:
        """Remove images that are not the newest of their kind (all, if ``everything``), and the fetched packages.

        An image that a VM's spec names stays. Returns what was removed, or would be on a ``dry_run``, and the VMs that
        kept an image by its folder's name.
        """
        removed: list[Image] = []
        kept: dict[str, list[str]] = {}
        newest: set[str] = set()
        for image in self.all():
            if kind not in {None, image.kind}:
                continue
            first = image.kind not in newest
            newest.add(image.kind)
            if first and not everything:
                continue
            if users := self.in_use(image):
                kept[Path(image.folder).name] = users
                continue
            if not dry_run:
                self._remove(image)
            removed.append(image)
        if kind is None and not dry_run:
            self._forget_packages()
        return removed, kept

    def _forget_packages(self) -> None:
        with suppress(OSError), ExitStack() as held:
            for path in sorted(self.images.glob("*.lock")):
                lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                held.callback(os.close, lock)
                # A build that goes on is using them, and BlockingIOError is an OSError.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.packages, ignore_errors=True)

    def _remove(self, image: Image) -> None:
        try:
            # Renamed first, so that nobody can find it half removed.
            gone = self.images / f".build-{image.kind}-{image.digest}.gone"
            shutil.rmtree(gone, ignore_errors=True)
            Path(image.folder).rename(gone)
            shutil.rmtree(gone)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ExecutionError(
                f"{image.folder} cannot be removed: {error.strerror}", hint="check its owner and mode"
            ) from error


def _wait_for_lock(lock: int, deadline: float, progress: Progress) -> None:
    until = time.monotonic() + deadline
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise DeadlineError(
                    f"another vmcoal has been building this image for {deadline:.0f} s", hint="try again later"
                ) from None
            if not told:
                progress("waiting for another vmcoal that builds this image", None)
                told = True
            time.sleep(_LOCK_POLL)
        else:
            return


def _explained(error: OSError, folder: Path, kind: str) -> VmcoalError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ExecutionError(
            f"no space left while building the {kind} image in {folder}",
            hint="free some space, or set XDG_CACHE_HOME to a folder on a larger disk",
        )
    return ExecutionError(f"building the {kind} image failed: {error}", hint=f"check {folder}")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
