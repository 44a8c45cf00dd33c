"""The links of a lab as people write them, and as netem is told them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcoal.errors import UsageError
from vmcoal.lab.links import PROFILES, LinkProfile, describe_link, netem, netem_cut, parse_link
from vmcoal.policy.distance import distance

pytestmark = pytest.mark.unit

TABLE_1 = {"5g-urllc": 0.001, "wifi6e": 0.002, "5g": 0.014, "wifi": 0.020}
"""One-way latencies of table 1 of "Coalescent Computing", in seconds."""


def test_profiles_are_the_papers_and_go_from_near_to_far() -> None:
    assert {name: PROFILES[name].rtt / 2 for name in TABLE_1} == TABLE_1
    distances = [distance(profile.rtt / 2) for profile in PROFILES.values()]
    assert distances == sorted(distances)
    assert (distance(PROFILES["wifi6e"].rtt / 2), distance(PROFILES["wifi"].rtt / 2)) == (161, 196)
    assert all(name == profile.name for name, profile in PROFILES.items())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("wifi", PROFILES["wifi"]),
        (" LAN ", PROFILES["lan"]),
        ("30ms", LinkProfile(name="custom", rtt=0.03)),
        ("0.5", LinkProfile(name="custom", rtt=0.5)),
        ("0", LinkProfile(name="custom", rtt=0.0)),
        ("30ms,5ms", LinkProfile(name="custom", rtt=0.03, jitter=0.005)),
        ("30ms,5ms,0.5%", LinkProfile(name="custom", rtt=0.03, jitter=0.005, loss=0.005)),
        ("30ms,,2,100M", LinkProfile(name="custom", rtt=0.03, loss=0.02, rate=100_000_000)),
        ("0,0,0,1.5gbit", LinkProfile(name="custom", rtt=0.0, rate=1_500_000_000)),
    ],
)
def test_links_are_read(text: str, wanted: LinkProfile) -> None:
    assert parse_link(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        *("", "wlan", "-5ms", "5ms,10ms", "11s", "1ms,0,100%", "1ms,0,x", "1ms,0,0,5", "1ms,0,0,1k", "1ms,0,0,99G"),
        *("1ms,0,0,1M,1", "nan", "1e3", ",5ms", "1ms,0,-1%"),
    ],
)
def test_what_is_no_link_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_link(text)
    assert caught.value.hint is not None
    assert "RTT[,JITTER[,LOSS[,RATE]]]" in caught.value.hint


def test_netem_adds_half_of_the_round_trip_in_either_direction() -> None:
    assert " ".join(netem(PROFILES["wifi"])) == "delay 20000us 5000us loss 0.2% rate 100000000bit limit 1000"
    assert " ".join(netem(PROFILES["lan"])) == "delay 100us rate 1000000000bit limit 1000"
    assert netem(LinkProfile(name="custom", rtt=0.03))[:4] == ("delay", "15000us", "rate", "40000000000bit")
    assert netem_cut() == ("loss", "100%")


@given(
    st.builds(
        LinkProfile,
        name=st.just("custom"),
        rtt=st.floats(0, 10),
        jitter=st.floats(0, 1),
        loss=st.floats(0, 0.99),
        rate=st.none() | st.integers(8_000, 40_000_000_000),
    )
)
def test_netems_queue_holds_what_is_under_way(profile: LinkProfile) -> None:
    words = netem(profile)
    limit = int(words[words.index("limit") + 1])
    assert 1000 <= limit < 20_000_000
    if profile.rate:
        assert limit * 1514 * 8 >= min(profile.rate, 10**10) * profile.rtt / 2


def test_links_are_described() -> None:
    assert describe_link(PROFILES["wifi"]) == "wifi: RTT 40 ms ± 10 ms, loss 0.2 %, 100 Mbit/s"
    assert describe_link(parse_link("0")) == "custom: RTT 0"
