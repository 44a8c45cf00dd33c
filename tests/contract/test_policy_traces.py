"""The pager's eviction policy on the recorded traces: never fewer misses than is possible, and fewer than FIFO's."""

from __future__ import annotations

import statistics
import subprocess

import pytest

from framework import programs, traces

pytestmark = pytest.mark.contract

NAMES = sorted(path.stem for path in traces.FOLDER.glob("*.xz"))


def play(name: str) -> dict[tuple[str, int], tuple[int, int]]:
    """Return misses, and what was fetched without need, of each policy at each size of the cache."""
    command = [programs.built("policy-sim"), "100", "50", "25", "10"]
    done = subprocess.run(command, input=traces.load(name).tobytes(), capture_output=True, check=True, timeout=60)
    rows = (line.split() for line in done.stdout.decode().splitlines())
    return {(row[0], int(row[1])): (int(row[5]), int(row[7])) for row in rows}


def misses(name: str) -> dict[tuple[str, int], int]:
    """Return the misses of each policy that fetches nothing ahead."""
    return {key: missed for key, (missed, _) in play(name).items() if key[0] != "ahead"}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_misses_less_than_the_optimum(name: str) -> None:
    found = misses(name)
    for (policy, percent), missed in found.items():
        assert missed >= found["belady", percent], policy
        # With room for all, a page is missed once, whatever the policy; a standby list takes its part of the room.
        if percent == 100 and policy != "standby":
            assert missed == found["belady", 100], policy


def test_the_pager_misses_less_than_fifo() -> None:
    shares = []
    for name in NAMES:
        found = misses(name)
        shares += [found["pager", percent] / found["fifo", percent] for percent in (50, 25, 10)]
    assert len(shares) == 21
    assert statistics.geometric_mean(shares) < 0.95
    assert max(shares) < 1.15


@pytest.mark.parametrize("name", NAMES)
def test_the_prefetcher_does_not_waste_more_than_there_is_to_win(name: str) -> None:
    found = play(name)
    for percent in (50, 25, 10):
        (ahead, wasted), (alone, _) = found["ahead", percent], found["pager", percent]
        assert ahead < alone * 1.1
        assert wasted < alone


def test_a_trace_survives_its_packing() -> None:
    pages = [0, 5, 4, 1 << 27, 3, 3, 1_000_000]
    assert list(traces.unpack(traces.pack(pages))) == pages
