"""Who is who between hosts: keys, fingerprints, and the paired lenders and borrowers.

Every host has one ed25519 key as a borrower and one for each lender it runs. A key is an unencrypted OpenSSH file of
mode 0600 that is created once; a lost one means pairing again. Records of the other side are strict JSON, replaced
atomically under a lock.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec

from vmcoal.errors import UNREADABLE, ConflictError, NotFoundError, PrerequisiteError, UsageError
from vmcoal.layout import check_name, identity_key, known_lenders, make_private
from vmcoal.model.lease import ResourceKind

if TYPE_CHECKING:
    import asyncssh

DEFAULT_PORT = 6180
"""TCP port of a lender unless it says otherwise."""

_LARGEST_KEY_FILE = 16 * 1024
_LARGEST_STORE = 4 << 20
_ED25519_PREFIX = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"


class Identity:
    """A private key with what may be shown of it: ``public`` in OpenSSH form without comment, ``fingerprint``."""

    def __init__(self, key: asyncssh.SSHKey) -> None:
        self.key = key
        self.public = check_public_key(key.export_public_key("openssh").decode())

    @property
    def fingerprint(self) -> str:
        """``SHA256:…`` as OpenSSH shows it."""
        return fingerprint(self.public)

    def __repr__(self) -> str:
        return f"Identity({self.fingerprint})"


def check_public_key(text: str) -> str:
    """Return an ed25519 public key in OpenSSH form, comment removed; raises `UsageError` for anything else."""
    parts = text.split(maxsplit=2)
    try:
        blob = base64.b64decode(parts[1], validate=True) if parts[0] == "ssh-ed25519" else b""
    except (IndexError, binascii.Error):
        blob = b""
    if len(blob) != len(_ED25519_PREFIX) + 32 or not blob.startswith(_ED25519_PREFIX):
        raise UsageError("not an ed25519 public key in OpenSSH form", hint="it looks like: ssh-ed25519 AAAAC3Nz…")
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


def fingerprint(public: str) -> str:
    """Return ``SHA256:…`` of a public key in OpenSSH form, as ``ssh-keygen -l`` shows it."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def address_text(host: str, port: int) -> str:
    """Return ``host:port``, IPv6 in brackets, as `vmcoal pair` takes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def borrower_identity() -> Identity:
    """Return this host's key as a borrower, created on first use."""
    return load_identity(identity_key())


def load_identity(path: Path) -> Identity:
    """Return the key in ``path``, created on first use; also safe when two processes create it at once.

    Raises `PrerequisiteError` if it cannot be created, is not an ed25519 key, or is open to others.
    """
    import asyncssh

    _make_folder(path)
    if not path.exists():
        data = asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh")
        with _writing(path), _temporary(path, data) as temporary, contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    data = _read_private(path, _LARGEST_KEY_FILE)
    try:
        return Identity(asyncssh.import_private_key(data))
    except (asyncssh.KeyImportError, UsageError) as error:
        raise PrerequisiteError(
            f"{path} is not an unencrypted ed25519 private key",
            hint=f"move it away to have a new one made, then pair again: mv {path} {path}.old",
        ) from error


class LenderRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lender this host is paired with. ``name`` what it is called here; ``host_key`` its pinned key, OpenSSH form."""

    name: str
    host: str
    port: int
    host_key: str
    grants: tuple[ResourceKind, ...]

    @property
    def address(self) -> str:
        """Where it listens, for people."""
        return address_text(self.host, self.port)


class BorrowerRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A borrower that a lender is paired with. ``public_key`` OpenSSH form; ``paired_at`` seconds since the epoch."""

    name: str
    public_key: str
    grants: tuple[ResourceKind, ...]
    paired_at: float


class _Record(Protocol):
    @property
    def name(self) -> str: ...


R = TypeVar("R", bound=_Record)


class _File(msgspec.Struct, Generic[R], frozen=True, forbid_unknown_fields=True):
    version: int = 1
    records: tuple[R, ...] = ()


class RecordStore(Generic[R]):
    """A file of records by name. Reads see a whole file; changes are atomic, durable and exclude each other."""

    def __init__(self, path: Path, record: type[R], key: Callable[[R], str], what: str, remove: str) -> None:
        self.path = path
        self._decoder = msgspec.json.Decoder(_File[record])  # type: ignore[valid-type]
        self._key = key
        self._what = what
        self._remove = remove

    def load(self) -> list[R]:
        """Return all records by name; no file is no record. Raises `PrerequisiteError` for a broken file."""
        if not self.path.exists():
            return []
        data = _read_private(self.path, _LARGEST_STORE)
        try:
            file: _File[R] = self._decoder.decode(data)
            if file.version != 1:
                raise UsageError(f"version {file.version} is not known here")
            for record in file.records:
                check_name(record.name, self._what)
                check_public_key(self._key(record))
        except (*UNREADABLE, UsageError) as error:
            raise PrerequisiteError(
                f"{self.path} cannot be used: {error}",
                hint=f"repair it, or move it away and pair again: mv {self.path} {self.path}.old",
            ) from error
        return sorted(file.records, key=lambda record: record.name)

    def get(self, name: str) -> R:
        """Return one record; raises `NotFoundError` naming what there is."""
        records = self.load()
        for record in records:
            if record.name == name:
                return record
        names = ", ".join(record.name for record in records) or "none"
        way = "vmcoal pair HOST" if self._what == "lender" else "vmcoal lend pair"
        raise NotFoundError(f"no {self._what} {name!r} is paired (paired: {names})", hint=f"pair first: {way}")

    def by_key(self, public: str) -> R | None:
        """Return the record with public key ``public`` (OpenSSH form without comment), or ``None``."""
        return next((record for record in self.load() if self._key(record) == public), None)

    def check(self, record: R) -> None:
        """Raise `ConflictError` if ``record`` cannot be added: its name or its key is taken by another one."""
        self._merge(self.load(), record, replace=False)

    def add(self, record: R, *, replace: bool = False) -> None:
        """Add ``record``, or replace the one with the same name and key.

        ``replace`` also replaces a record of the same name with another key (a host that was reinstalled). Raises
        `ConflictError` if the name or the key is taken, `PrerequisiteError` if the file cannot be written.
        """
        check_name(record.name, self._what)
        check_public_key(self._key(record))
        with self._changing():
            self._write(self._merge(self.load(), record, replace=replace))

    def remove(self, name: str) -> R:
        """Remove and return one record; raises `NotFoundError`."""
        with self._changing():
            record = self.get(name)
            self._write([other for other in self.load() if other.name != name])
        return record

    def _merge(self, records: list[R], record: R, *, replace: bool) -> list[R]:
        for other in records:
            same_key = self._key(other) == self._key(record)
            if other.name == record.name and not same_key and not replace:
                raise ConflictError(
                    f"another {self._what} is paired as {record.name!r}, with key {fingerprint(self._key(other))}",
                    hint=f"choose another name, or remove it first: {self._remove} {record.name}",
                )
            if other.name != record.name and same_key:
                raise ConflictError(
                    f"this {self._what} is paired already, as {other.name!r}",
                    hint=f"use that name, or remove it first: {self._remove} {other.name}",
                )
        return [*(other for other in records if other.name != record.name), record]

    def _write(self, records: list[R]) -> None:
        data = msgspec.json.format(msgspec.json.encode(_File(records=tuple(records))), indent=2) + b"\n"
        with _writing(self.path), _temporary(self.path, data) as temporary:
            os.replace(temporary, self.path)  # noqa: PTH105 - beside os.link and os.fsync

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        _make_folder(self.path)
        with _writing(self.path), open(self.path.with_name(self.path.name + ".lock"), "ab") as lock:  # noqa: PTH123
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def lender_store(path: Path | None = None) -> RecordStore[LenderRecord]:
    """Return the paired lenders of this host (`vmcoal.layout.known_lenders`)."""
    return RecordStore(path or known_lenders(), LenderRecord, lambda record: record.host_key, "lender", "vmcoal unpair")


def borrower_store(path: Path) -> RecordStore[BorrowerRecord]:
    """Return the paired borrowers of a lender (`LenderFolders.borrowers`)."""
    return RecordStore(path, BorrowerRecord, lambda record: record.public_key, "borrower", "vmcoal lend forget")


def _make_folder(path: Path) -> None:
    make_private(path.parent)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PrerequisiteError(
            f"cannot write {path}: {error.strerror}", hint="check its owner, its mode and the free space"
        ) from error


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_private(path: Path, limit: int) -> bytes:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
                raise PrerequisiteError(
                    f"{path} must be a file of mode 0600 that belongs to user {os.geteuid()}",
                    hint=f"chown {os.geteuid()} {path} && chmod 600 {path}",
                )
            data = file.read(limit + 1)
    except OSError as error:
        raise PrerequisiteError(f"cannot read {path}: {error.strerror}", hint="check its owner and mode") from error
    if len(data) > limit:
        raise PrerequisiteError(f"{path} is larger than {limit} bytes", hint="it is damaged: move it away")
    return data
