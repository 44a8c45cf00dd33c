"""The network of a lab: its links, what QEMU and the hosts are told, and the sockets in between."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess

import pytest

from vmcoal.errors import ConflictError, NotFoundError, UsageError
from vmcoal.lab.links import PROFILES
from vmcoal.lab.network import (
    LabLink,
    address_of,
    all_links,
    card_of,
    find_link,
    host_names,
    netdev_argv,
    setup_script,
    shape_command,
    wired,
)

pytestmark = pytest.mark.unit

HOSTS = host_names(3)
LINKS = all_links(HOSTS, PROFILES["wifi"])


def test_every_two_hosts_have_one_link() -> None:
    assert HOSTS == ("host1", "host2", "host3")
    assert [(link.a, link.b) for link in LINKS] == [("host1", "host2"), ("host1", "host3"), ("host2", "host3")]
    assert find_link(LINKS, "host3", "host1") is LINKS[1]
    assert all_links(("host1",), PROFILES["lan"]) == ()


@pytest.mark.parametrize("count", [0, 9, -1])
def test_a_lab_has_a_few_hosts(count: int) -> None:
    with pytest.raises(UsageError):
        host_names(count)


def test_links_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="to itself"):
        find_link(LINKS, "host1", "host1")
    with pytest.raises(NotFoundError) as caught:
        find_link(LINKS, "host1", "host9")
    assert caught.value.hint == "the hosts are host1, host2, host3"


def test_addresses_and_cards_are_all_different() -> None:
    most = host_names(8)
    assert len({address_of(host) for host in most}) == 8
    cards = {card_of(host, peer) for host in most for peer in most if host != peer}
    assert len(cards) == 56
    assert all(re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", card) for card in cards)


def test_qemu_gets_a_card_for_each_peer() -> None:
    argv = netdev_argv("host2", LINKS, {"host1": 7, "host3": 8})
    assert argv == [
        *("-netdev", "dgram,id=to-host1,local.type=fd,local.str=7"),
        *("-device", "virtio-net-pci,netdev=to-host1,mac=52:54:00:77:02:01,romfile="),
        *("-netdev", "dgram,id=to-host3,local.type=fd,local.str=8"),
        *("-device", "virtio-net-pci,netdev=to-host3,mac=52:54:00:77:02:03,romfile="),
    ]


def test_the_setup_script_is_a_script_and_names_every_peer() -> None:
    script = setup_script("host1", LINKS)
    shell = shutil.which("dash") or shutil.which("sh")
    assert shell is not None
    subprocess.run([shell, "-n"], input=script.encode(), check=True)
    for peer, address in (("host2", "10.77.0.2"), ("host3", "10.77.0.3")):
        assert f"ip address replace 10.77.0.1 peer {address}/32 dev to-{peer}\n" in script
        assert f"{address} {peer}\n" in script
    assert script.count("tc qdisc replace") == 2
    assert "host1" in setup_script("host1", ())


def test_a_cut_link_loses_everything_and_keeps_its_profile() -> None:
    cut = LabLink(a="host1", b="host2", profile=PROFILES["wifi"], cut=True)
    assert shape_command("host2", cut) == "tc qdisc replace dev to-host2 root netem loss 100%"
    assert "delay 20000us" in shape_command("host2", LINKS[0])


def test_packets_go_to_the_peer_and_nobody_else_can_send_any() -> None:
    with wired(LINKS, HOSTS) as wiring:
        assert all(port > 0 for link in wiring.links for port in (link.port_a, link.port_b))
        assert set(wiring.fds("host1")) == {"host2", "host3"}
        one, two = wiring.ends["host1", "host2"], wiring.ends["host2", "host1"]
        for end in (one, two):
            end.settimeout(5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"forged", two.getsockname())
        one.send(b"packet")
        assert two.recv(100) == b"packet"
        two.send(b"answer")
        assert one.recv(100) == b"answer"


def test_a_host_that_comes_back_finds_its_peers() -> None:
    with wired(LINKS, HOSTS) as wiring:
        links = wiring.links
        stays = wiring.ends["host2", "host1"].dup()
    with stays, wired(links, ("host1",)) as again:
        assert again.links == links
        assert set(again.ends) == {("host1", "host2"), ("host1", "host3")}
        again.ends["host1", "host2"].send(b"back")
        stays.settimeout(5)
        assert stays.recv(100) == b"back"


def test_a_port_that_is_taken_is_named() -> None:
    with wired(LINKS, HOSTS) as wiring:
        port = wiring.links[0].port_a
        with pytest.raises(ConflictError, match=rf"UDP port {port} ") as caught, wired(wiring.links, ("host1",)):
            pass
        assert "vmcoal lab down" in (caught.value.hint or "")
