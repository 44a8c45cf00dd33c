"""What a controller answers on its control socket (`vmcoal.control`).

A client that hangs up cancels its call: an attach under way is undone, a detach is not begun further than it is.
Closing only the sending half cancels too, and the answer then says what came of it (the client does so on Ctrl-C).

Methods, with the type of ``params`` → the type of the result:

    status    –                    → vmcoal.model.status.VmStatus
    attach    AttachRequest        → AttachResult            (Plan when dry_run)
    detach    DetachRequest        → DetachResult            (Plan when dry_run)
    move      MoveRequest          → MoveResult              (Plan when dry_run)
    tune      TuneRequest          → Tuning
    exec      ExecRequest          → ExecResult; output comes as `Output` while it runs; `Input` may be sent
    offers    –                    → tuple[LenderView, ...]  (every paired lender, reachable or not)
    ping      PingRequest          → PingResult
    shutdown  ShutdownRequest      → ShutdownResult          (Plan when dry_run)
    metrics   –                    → str (Prometheus text exposition)
    wait      WaitRequest          → VmStatus; returns when the boot is done or failed
"""

from __future__ import annotations

import msgspec

from vmcoal.model.activity import PageFetch
from vmcoal.model.attachment import Attachment
from vmcoal.model.lease import Offer, ResourceKind
from vmcoal.model.link import Link
from vmcoal.model.paging import Compression, LossPolicy


class AttachResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an attach did. ``seconds`` by step name, of steps that overlap, and ``total``; ``verified``: the guest
    itself confirmed it; ``notes`` for people (mode and reason, what is unverified)."""

    attachment: Attachment
    cpus_added: int
    memory_added: int
    gpus_added: int = 0
    verified: bool
    seconds: dict[str, float] = {}
    notes: tuple[str, ...] = ()


class DetachResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a detach did. ``seconds`` by step name, and ``total``; ``remaining`` is what is still attached from the
    lenders named."""

    cpus_removed: int
    memory_removed: int
    gpus_removed: int = 0
    remaining: tuple[Attachment, ...] = ()
    seconds: dict[str, float] = {}
    notes: tuple[str, ...] = ()


class MoveRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Move the memory that ``source`` lends to ``target`` while it is used; either may be ``home``, this host.
    ``deadline`` in seconds."""

    source: str
    target: str
    deadline: float = 3600.0
    dry_run: bool = False


class MoveResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a move did: ``memory_moved`` bytes, and all that is at the target now. ``seconds`` it took."""

    source: str
    target: str
    memory_moved: int
    attachments: tuple[Attachment, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class TuneRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change how a VM's borrowed memory behaves; what is ``None`` stays as it is. ``cache`` in bytes; ``replicas`` 1 or
    2 places for the pages of all that is attached, the second one ``replica_on`` a lender, ``local`` (a file here), or
    ``None`` for the nearest other lender; ``compress`` whether pages are made smaller on their way; ``deadline``
    seconds for what has to be copied."""

    cache: int | None = None
    on_loss: LossPolicy | None = None
    replicas: int | None = None
    replica_on: str | None = None
    compress: Compression | None = None
    deadline: float = 3600.0


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """How a VM's borrowed memory behaves. ``cache``: how many bytes of it may be on this host, all lenders together.
    ``on_loss``: what touching a page that no lender gives does, where an attach did not say otherwise. ``compress``:
    whether pages are made smaller on their way. ``places``: who has the pages of each device. ``notes``: for people."""

    cache: int | None = None
    on_loss: LossPolicy = LossPolicy.STALL
    compress: Compression = Compression.OFF
    places: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Run ``argv`` in the guest. ``tty`` gives it a terminal of ``rows`` × ``columns``; ``deadline`` in seconds or
    ``None`` for none (the client's hang-up ends it)."""

    argv: tuple[str, ...]
    env: dict[str, str] = {}
    cwd: str | None = None
    tty: bool = False
    rows: int = 24
    columns: int = 80
    stdin: bool = False
    deadline: float | None = None


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended: ``code`` exit code, or ``signal`` that ended it."""

    code: int | None
    signal: int | None = None


class LenderView(msgspec.Struct, frozen=True, kw_only=True):
    """One paired lender as this VM sees it. ``error`` says why it does not answer."""

    name: str
    address: str
    grants: tuple[ResourceKind, ...]
    reachable: bool
    offer: Offer | None = None
    link: Link | None = None
    distance: int | None = None
    node: int | None = None
    error: str | None = None


class PingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measure the link to ``lender`` with ``count`` round trips, and the fetch of as many pages of what it lends."""

    lender: str | None = None
    count: int = 10


class PingResult(msgspec.Struct, frozen=True, kw_only=True):
    """The link and the distance it stands for; ``node`` and ``node_distance`` where it would be (or is) attached.

    ``fetch`` is how long single pages of borrowed memory took, ``no_fetch`` why that is not known.
    """

    lender: str
    link: Link
    distance: int
    node: int | None
    node_distance: int | None
    fetch: PageFetch | None = None
    no_fetch: str | None = None


class ShutdownRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Power the guest off within ``deadline`` seconds, then end QEMU; ``force`` ends QEMU at once."""

    deadline: float = 30.0
    force: bool = False
    dry_run: bool = False


class ShutdownResult(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended: ``how`` guest | agent | forced; ended, if QEMU had ended by itself; killed, if its holder
    had, too; ``notes`` for people."""

    how: str
    exit_code: int | None
    released: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class WaitRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Wait until the guest answers (``agent``) or QEMU runs (``qemu``)."""

    until: str = "agent"
    deadline: float = 120.0
