"""What was said on one monitor, kept on disk for people and for replay."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

MASK = "***"
_MASKED = frozenset({"secret", "password"})
_SECRET_TYPES = frozenset({"secret", "secret_keyring"})
_FILE_LIMIT = 4 << 20
_LINE_LIMIT = 256 << 10


def masked(value: Any) -> Any:
    """Return plain data without secrets: values of ``secret`` and ``password`` keys, and ``data`` of secret objects
    (QAPI ``SecretCommonProperties``), become `MASK`."""
    if isinstance(value, Mapping):
        hidden = _MASKED | {"data"} if value.get("qom-type") in _SECRET_TYPES else _MASKED
        return {key: MASK if key in hidden else masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value


class Transcript:
    """Appends one JSON object a line: ``t`` seconds since the epoch, ``dir`` ``out`` or ``in``, ``msg``.

    The file is made with mode 0600 and holds at most ``limit`` bytes; then it becomes ``PATH.1``, replacing an older
    one. A transcript never fails its caller: what cannot be written (disk full, folder gone, a text that is no
    Unicode) is counted in `drops`, and
    the next line that can be written says so in ``dropped``. A message longer than 256 KiB is noted by its length only.
    """

    def __init__(self, path: str | os.PathLike[str], *, limit: int = _FILE_LIMIT) -> None:
        self.path = Path(path)
        self.drops = 0
        self._limit = limit
        self._fd = -1
        self._size = 0
        self._torn = False
        self._unsaid = 0

    def record(self, direction: str, message: Mapping[str, Any]) -> None:
        """Append ``message``."""
        head = f'"t":{time.time():.6f},"dir":"{direction}"'
        if self._unsaid:
            head += f',"dropped":{self._unsaid}'
        try:
            body = msgspec.json.encode(masked(message))
            if len(body) > _LINE_LIMIT:
                body = msgspec.json.encode({"bytes": len(body)})
            self._write(b"{" + head.encode() + b',"msg":' + body + b"}\n")
        except (OSError, TypeError, ValueError):
            self.drops += 1
            self._unsaid += 1
        else:
            self._unsaid = 0

    def close(self) -> None:
        """Close the file; a later `record` opens it again."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def _write(self, line: bytes) -> None:
        if self._fd < 0:
            self._open()
        if self._size and self._size + len(line) > self._limit:
            self.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self._open()
        if self._torn:
            line = b"\n" + line
        done = os.write(self._fd, line)
        self._size += done
        self._torn = done < len(line)
        if self._torn:
            raise OSError("short write")

    def _open(self) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        size = os.fstat(fd).st_size
        self._torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        self._fd, self._size = fd, size
