"""Attached and detached again and again, nothing is left over: the short form of `make soak`."""

from __future__ import annotations

import contextlib

import pytest

from framework.footprint import Cycles
from framework.path import scene

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

FIRST, MORE = 3, 9


def test_again_and_again_leaves_nothing_more(request: pytest.FixtureRequest) -> None:
    with scene(request) as made, contextlib.closing(Cycles(made)) as cycles:
        cycles.run(FIRST)
        before = cycles.footprint()
        assert before.memory_slots == ()
        assert before.mounts == frozenset()
        cycles.run(MORE)
        assert cycles.footprint().changed(before) == {}
