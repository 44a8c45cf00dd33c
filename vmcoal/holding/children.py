"""What a child of the holder is asked to be, how it is, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class ChildState(StrEnum):
    """State of a child; `RUNNING` and `WAITING` are live, the others final."""

    RUNNING = "running"
    WAITING = "waiting"
    """It ended and will be restarted."""
    EXITED = "exited"
    SIGNALED = "signaled"
    FAILED = "failed"
    """It could not be started again; the code is the errno."""


class Restart(StrEnum):
    """Whether the holder starts a child again that ended by a signal or with another code than 0."""

    NEVER = "never"
    ON_FAILURE = "on-failure"


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """A program for the holder to run.

    ``id`` 1 to 64 of ``a-z 0-9 . _ -``. ``argv[0]`` is looked up in the ``PATH`` of ``env``, which is all the
    environment the child gets (``None``: that of the caller). ``stdout`` and ``stderr`` are log files, the same one for
    both if wanted, each renamed to ``FILE.1`` beyond ``log_limit`` bytes; ``None`` is /dev/null. ``fds`` maps the
    child's descriptor number (3 to 255) to the caller's descriptor, which stays the caller's; restarts get them again.
    With ``LISTEN_FDS`` in ``env``, ``LISTEN_PID`` is set (sd_listen_fds(3)). ``restart_max`` bounds restarts in a row,
    without 30 s of life between them. When the ``main`` child ends, the holder stops the others and ends. ``cgroup`` is
    an existing cgroup folder.
    """

    id: str
    argv: tuple[str, ...] | list[str]
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    stdout: Path | None = None
    stderr: Path | None = None
    log_limit: int = 4 << 20
    fds: Mapping[int, int] = field(default_factory=dict)
    restart: Restart = Restart.NEVER
    restart_max: int = 5
    main: bool = False
    cgroup: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ExitStatus:
    """How a child ended: ``code`` where ``state`` is exited (or an errno: failed), ``signal`` where it is signaled."""

    id: str
    pid: int
    state: ChildState
    code: int
    signal: int

    @property
    def ok(self) -> bool:
        """Whether it exited with code 0."""
        return self.state is ChildState.EXITED and self.code == 0


@dataclass(frozen=True, kw_only=True)
class ExitEvent(ExitStatus):
    """A child ended just now; ``restarting``: the holder will start it again."""

    restarting: bool

    def exit_status(self) -> ExitStatus | None:
        """Return how it ended, or ``None`` where that is not its last end."""
        if self.restarting:
            return None
        return ExitStatus(id=self.id, pid=self.pid, state=self.state, code=self.code, signal=self.signal)


@dataclass(frozen=True, kw_only=True)
class ChildStatus:
    """A child the holder knows. ``restarts`` so far; ``code``, ``signal`` of its last end; ``dropped`` bytes of output
    were lost because the disk did not take them."""

    id: str
    pid: int
    state: ChildState
    restarts: int
    code: int
    signal: int
    dropped: int

    @property
    def live(self) -> bool:
        """Whether it runs or will be restarted."""
        return self.state in (ChildState.RUNNING, ChildState.WAITING)

    def exit_status(self) -> ExitStatus | None:
        """Return how it ended, or ``None`` while it is live."""
        if self.live:
            return None
        return ExitStatus(id=self.id, pid=self.pid, state=self.state, code=self.code, signal=self.signal)


@dataclass(frozen=True, kw_only=True)
class ExitRecord:
    """One line of the exits file. ``at`` UTC, ISO 8601; ``code`` is an exit code, a signal number or an errno, as
    ``state`` says."""

    at: str
    id: str
    pid: int
    state: ChildState
    code: int


_ENDED = (ChildState.EXITED, ChildState.SIGNALED, ChildState.FAILED)


def _record(line: str) -> ExitRecord | None:
    try:
        at, id_, pid, state, code = line.split(" ")
        record = ExitRecord(at=at, id=id_, pid=int(pid), state=ChildState(state), code=int(code))
    except ValueError:
        return None
    return record if record.state in _ENDED else None


def read_exits(path: Path) -> list[ExitRecord]:
    """Return the ends of children that the holder wrote down at ``path``, oldest first; those of the file's older part
    ``.1`` too.

    A file that is missing or cannot be read has none. A line that a full disk cut short is left out.
    """
    records = []
    for part in (path.with_name(path.name + ".1"), path):
        try:
            text = part.read_text(errors="replace")
        except OSError:  # told by what cannot write there
            continue
        records += [record for line in text.splitlines() if (record := _record(line))]
    return records
