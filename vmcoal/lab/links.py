"""What the links between a lab's hosts are like: profiles, how people write them, and netem's arguments for them.

The latencies of the named profiles are those of table 1 of "Coalescent Computing" (Hale, APSys '21), which gives
one-way latencies; a LAN is not in it. Jitter, loss and rate are not in the table: they are ours, moderate values of
such links.
"""

from __future__ import annotations

import math
import re

import msgspec

from vmcoal.errors import UsageError
from vmcoal.model.units import format_duration, parse_duration

_HINT = "write it as {} or RTT[,JITTER[,LOSS[,RATE]]], such as 30ms,5ms,0.5%,100M"
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([kmg])(?:bit|bps|bit/s)?", re.IGNORECASE)
_RATES = {"k": 1e3, "m": 1e6, "g": 1e9}
_LOSS = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%?")
_LONGEST_RTT = 10.0
_FASTEST = 40_000_000_000
_PACKET = 1514
_QUEUE = 1000


class LinkProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One link between two hosts.

    ``rtt`` and ``jitter`` in seconds, of the round trip: half of each is added in either direction; ``loss`` the share
    of packets lost in either direction, 0 to 1; ``rate`` bits a second in either direction, ``None`` for no limit.
    """

    name: str
    rtt: float
    jitter: float = 0.0
    loss: float = 0.0
    rate: int | None = None


PROFILES: dict[str, LinkProfile] = {
    profile.name: profile
    for profile in (
        LinkProfile(name="lan", rtt=0.0002, rate=1_000_000_000),
        LinkProfile(name="5g-urllc", rtt=0.002, jitter=0.0002, rate=200_000_000),
        LinkProfile(name="wifi6e", rtt=0.004, jitter=0.001, rate=800_000_000),
        LinkProfile(name="5g", rtt=0.028, jitter=0.004, loss=0.0005, rate=200_000_000),
        LinkProfile(name="wifi", rtt=0.040, jitter=0.010, loss=0.002, rate=100_000_000),
    )
}
"""Named links, from the nearest to the farthest."""


def parse_link(text: str) -> LinkProfile:
    """Return the link that ``text`` describes: a profile's name, or ``RTT[,JITTER[,LOSS[,RATE]]]``.

    Times as in ``30ms`` (without a unit: seconds), loss in percent, the rate in bits a second as in ``100M``; an empty
    part is left at none. Raises `UsageError`.
    """
    wanted = text.strip().lower()
    if wanted in PROFILES:
        return PROFILES[wanted]
    parts = [part.strip() for part in wanted.split(",")]
    hint = _HINT.format(", ".join(PROFILES))
    if len(parts) > 4 or not re.match(r"[\d.]", parts[0]):
        raise UsageError(f"{text!r} is no link", hint=hint)
    parts += [""] * (4 - len(parts))
    try:
        rtt, jitter = (0.0 if part in ("", "0") else parse_duration(part) for part in parts[:2])
    except UsageError as error:
        raise UsageError(f"{text!r} is no link: {error.message}", hint=hint) from error
    loss, rate = _loss(parts[2], text, hint), _rate(parts[3], text, hint)
    if rtt > _LONGEST_RTT or jitter > rtt:
        problem = "its jitter is longer than its round trip" if jitter > rtt else "its round trip is beyond 10 s"
        raise UsageError(f"{text!r} is no link: {problem}", hint=hint)
    return LinkProfile(name="custom", rtt=rtt, jitter=jitter, loss=loss, rate=rate)


def _loss(text: str, whole: str, hint: str) -> float:
    match = _LOSS.fullmatch(text or "0")
    share = float(match[1]) / 100 if match else math.inf
    if share >= 1:
        raise UsageError(
            f"{whole!r} is no link: {text!r} is no loss below 100 %", hint=f"{hint}; to cut a link: vmcoal lab cut"
        )
    return share


def _rate(text: str, whole: str, hint: str) -> int | None:
    if not text:
        return None
    match = _RATE.fullmatch(text)
    rate = round(float(match[1]) * _RATES[match[2].lower()]) if match else 0
    if not 8_000 <= rate <= _FASTEST:
        raise UsageError(f"{whole!r} is no link: {text!r} is no rate from 8k to 40G bits a second", hint=hint)
    return rate


def describe_link(profile: LinkProfile) -> str:
    """Return a link as people read it: ``wifi: RTT 40 ms ± 10 ms, loss 0.2 %, 100 Mbit/s``."""
    text = f"{profile.name}: RTT {format_duration(profile.rtt) if profile.rtt else '0'}"
    if profile.jitter:
        text += f" ± {format_duration(profile.jitter)}"
    if profile.loss:
        text += f", loss {profile.loss * 100:g} %"
    if profile.rate:
        scale, unit = next((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if profile.rate >= s)
        text += f", {profile.rate / scale:g} {unit}bit/s"
    return text


def netem(profile: LinkProfile) -> tuple[str, ...]:
    """Return the arguments of ``tc qdisc … netem`` for one direction of a link (tc-netem(8)).

    A rate is always given, at least a nominal one: with it netem keeps packets in order, which jitter alone would not.
    The queue holds what is on its way at that rate, so that the link loses what ``loss`` says and no more.
    """
    rate = profile.rate or _FASTEST
    words = ["delay", f"{round(profile.rtt / 2 * 1e6)}us"]
    if profile.jitter:
        words += [f"{round(profile.jitter / 2 * 1e6)}us"]
    if profile.loss:
        words += ["loss", f"{profile.loss * 100:g}%"]
    words += ["rate", f"{rate}bit"]
    under_way = (profile.rtt + profile.jitter) / 2 * min(rate, 10_000_000_000) / 8 / _PACKET
    return (*words, "limit", str(max(_QUEUE, math.ceil(2 * under_way))))


def netem_cut() -> tuple[str, ...]:
    """Return netem's arguments for a link that loses everything and closes nothing."""
    return ("loss", "100%")
