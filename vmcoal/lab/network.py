"""The private network of a lab: who is connected to whom, addresses, and the sockets that carry the packets.

Each pair of hosts has a link of its own: a network card in either host, joined by a pair of UDP sockets on this
machine's loopback that are connected to each other (QEMU's ``-netdev dgram`` with descriptors, QEMU 7.2 and newer).
There is no bridge and no root, the kernel drops what another socket sends, and a host that comes back finds its link
again. A host has one address, which all its cards carry, with a route to each peer through the card of that pair; so
every pair can have a profile of its own, and cutting one leaves the others.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from vmcoal.errors import ConflictError, NotFoundError, UsageError
from vmcoal.lab.links import LinkProfile, netem, netem_cut

MOST_HOSTS = 8
_LOOPBACK = "127.0.0.1"
_BUFFER = 4 << 20


def host_names(count: int) -> tuple[str, ...]:
    """Return the names of a lab's hosts: ``host1`` to ``hostN``. Raises `UsageError` for none or more than eight."""
    if not 1 <= count <= MOST_HOSTS:
        raise UsageError(f"a lab has 1 to {MOST_HOSTS} hosts, not {count}", hint="vmcoal lab up --hosts 3")
    return tuple(f"host{number}" for number in range(1, count + 1))


def number_of(host: str) -> int:
    """Return the number in a host's name."""
    return int(host.removeprefix("host"))


def address_of(host: str) -> str:
    """Return the address of a host in its lab's network."""
    return f"10.77.0.{number_of(host)}"


def card_of(host: str, peer: str) -> str:
    """Return the hardware address of the card of ``host`` that leads to ``peer`` (QEMU's own prefix)."""
    return f"52:54:00:77:{number_of(host):02x}:{number_of(peer):02x}"


class LabLink(msgspec.Struct, frozen=True, kw_only=True):
    """The link between two hosts, ``a`` before ``b``: what it is like, whether it is cut, and its two UDP ports."""

    a: str
    b: str
    profile: LinkProfile
    cut: bool = False
    port_a: int = 0
    port_b: int = 0

    def joins(self, host: str, peer: str) -> bool:
        """Return whether it is the link between the two, in either order."""
        return {self.a, self.b} == {host, peer}

    def peer_of(self, host: str) -> str | None:
        """Return the other end, or ``None`` where ``host`` is none of the two."""
        return {self.a: self.b, self.b: self.a}.get(host)


def all_links(hosts: Sequence[str], profile: LinkProfile) -> tuple[LabLink, ...]:
    """Return the links of a full mesh of ``hosts``."""
    return tuple(LabLink(a=a, b=b, profile=profile) for a, b in itertools.combinations(hosts, 2))


def find_link(links: Sequence[LabLink], a: str, b: str) -> LabLink:
    """Return the link between two hosts; raises `NotFoundError`, and `UsageError` for a host and itself."""
    if a == b:
        raise UsageError(f"{a} has no link to itself", hint="name two hosts")
    for link in links:
        if link.joins(a, b):
            return link
    known = sorted({host for link in links for host in (link.a, link.b)})
    raise NotFoundError(f"there is no link between {a} and {b}", hint=f"the hosts are {', '.join(known) or 'host1'}")


# What QEMU and the hosts are told


def netdev_argv(host: str, links: Sequence[LabLink], fds: Mapping[str, int]) -> list[str]:
    """Return QEMU's arguments for the cards of ``host``; ``fds`` maps a peer to the descriptor of the link's socket."""
    argv = []
    for link in links:
        peer = link.peer_of(host)
        if peer is None:
            continue
        argv += ["-netdev", f"dgram,id=to-{peer},local.type=fd,local.str={fds[peer]}"]
        argv += ["-device", f"virtio-net-pci,netdev=to-{peer},mac={card_of(host, peer)},romfile="]
    return argv


def setup_script(host: str, links: Sequence[LabLink]) -> str:
    """Return a shell script for ``host`` that names its cards ``to-PEER``, gives it its address and its routes, shapes
    its side of every link and writes the names of all hosts to /etc/hosts. Running it again changes nothing."""
    peers = {peer: link for link in links if (peer := link.peer_of(host))}
    lines = [
        "set -eu",
        "card() {",
        "  for folder in /sys/class/net/*; do",
        '    [ "$(cat "$folder/address")" != "$1" ] || { echo "${folder##*/}"; return; }',
        "  done",
        '  echo "no network card $1" >&2; return 1',
        "}",
        "ip link set lo up",
    ]
    for peer, link in peers.items():
        lines += [
            f"name=$(card {card_of(host, peer)})",
            f'[ "$name" = to-{peer} ] || {{ ip link set "$name" down; ip link set "$name" name to-{peer}; }}',
            f"ip address replace {address_of(host)} peer {address_of(peer)}/32 dev to-{peer}",
            f"ip link set to-{peer} up",
            shape_command(peer, link),
        ]
    names = [(address_of(host), host), *((address_of(peer), peer) for peer in peers)]
    table = "".join(f"{address} {name}\n" for address, name in (("127.0.0.1", "localhost"), *names))
    lines += [f"printf %s {shlex.quote(table)} > /etc/hosts"]
    return "\n".join(lines) + "\n"


def shape_command(peer: str, link: LabLink) -> str:
    """Return the command that gives a host's side of ``link``, towards ``peer``, the link's profile, or cuts it."""
    words = netem_cut() if link.cut else netem(link.profile)
    return shlex.join(["tc", "qdisc", "replace", "dev", f"to-{peer}", "root", "netem", *words])


# The sockets


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        sock.bind((_LOOPBACK, port))
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise ConflictError(
            f"UDP port {port} of this machine, which a link of the lab uses, is taken",
            hint="end what uses it (ss -lunp), or make the lab anew: vmcoal lab down, vmcoal lab up",
        ) from error
    return sock


@dataclass
class Wiring:
    """The sockets of a lab's links while its hosts are started: ``ends`` maps (host, peer) to its socket."""

    links: tuple[LabLink, ...]
    ends: dict[tuple[str, str], socket.socket]

    def fds(self, host: str) -> dict[str, int]:
        """Return the descriptors of a host's links by peer; they stay this object's."""
        return {peer: end.fileno() for (owner, peer), end in self.ends.items() if owner == host}


@contextlib.contextmanager
def wired(links: Sequence[LabLink], hosts: Sequence[str]) -> Iterator[Wiring]:
    """Give the sockets of the links of ``hosts`` and close this process's copies afterwards.

    A link without ports gets two free ones, which the links of the result carry; one that has them gets sockets on the
    same ports again, so that a host that is started anew finds its peers. Raises `ConflictError` where one is taken.
    """
    with contextlib.ExitStack() as stack:
        ends: dict[tuple[str, str], socket.socket] = {}
        ports: dict[tuple[str, str], int] = {}
        for link in links:
            for owner, peer, port in ((link.a, link.b, link.port_a), (link.b, link.a, link.port_b)):
                ports[owner, peer] = port
                if owner in hosts or not port:
                    end = stack.enter_context(_bound(port))
                    ends[owner, peer] = end
                    ports[owner, peer] = end.getsockname()[1]
        for (owner, peer), end in ends.items():
            end.connect((_LOOPBACK, ports[peer, owner]))
        yield Wiring(
            tuple(
                msgspec.structs.replace(link, port_a=ports[link.a, link.b], port_b=ports[link.b, link.a])
                for link in links
            ),
            {key: end for key, end in ends.items() if key[0] in hosts},
        )
