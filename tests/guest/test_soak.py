"""200 attaches and detaches in one guest: nothing is left over, and memory does not grow (docs/benchmarks.md)."""

from __future__ import annotations

import contextlib
import sys

import pytest

from framework.footprint import Cycles
from framework.path import scene

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

FIRST, ALL = 10, 200
KIB = 1024


def test_two_hundred_cycles(request: pytest.FixtureRequest) -> None:
    with scene(request) as made, contextlib.closing(Cycles(made)) as cycles:
        cycles.run(FIRST)
        before, resident = cycles.footprint(), cycles.resident()
        cycles.run(ALL - FIRST)
        after = cycles.resident()
        grown = {name: (after[name] - resident[name]) / (ALL - FIRST) / KIB for name in resident}
        sys.stdout.write(f"\nKiB of resident memory for each cycle: {grown}\n")
        assert cycles.footprint().changed(before) == {}
        assert max(grown.values()) < 4.0, grown
