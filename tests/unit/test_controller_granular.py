"""How large a granular device is made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vmcoal.backends.fuse import LARGEST_GRANULAR
from vmcoal.controller import granular
from vmcoal.errors import ConflictError
from vmcoal.model.machine import FarNode
from vmcoal.model.units import GIB, MIB

pytestmark = pytest.mark.unit

FAR = FarNode(1, 2, 8 * GIB, 40, 32)


def machine(used: int, largest: int | None) -> Any:
    traits = SimpleNamespace(largest_granular=largest)
    return SimpleNamespace(book=SimpleNamespace(headroom_used=lambda node: used), engine=SimpleNamespace(traits=traits))


def test_a_device_takes_the_headroom_as_far_as_the_engine_can_empty_it() -> None:
    assert granular.capacity(machine(0, None), FAR) == 8 * GIB
    assert granular.capacity(machine(0, LARGEST_GRANULAR), FAR) == LARGEST_GRANULAR
    assert granular.capacity(machine(6 * GIB, LARGEST_GRANULAR), FAR) == 2 * GIB
    assert LARGEST_GRANULAR < 1 << 32  # one NBD request
    assert LARGEST_GRANULAR % (128 * MIB) == 0


def test_more_than_that_is_refused_with_what_to_do() -> None:
    granular.check(machine(0, LARGEST_GRANULAR), FAR, LARGEST_GRANULAR)
    with pytest.raises(ConflictError, match=r"can have 3\.88 GiB, 4 GiB were asked for") as caught:
        granular.check(machine(0, LARGEST_GRANULAR), FAR, 4 * GIB)
    assert "DIMMs" in str(caught.value.hint)
