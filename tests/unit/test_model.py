"""Sizes, durations, the lease table and errors on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcoal import errors
from vmcoal.errors import UsageError, VmcoalError
from vmcoal.model import lease
from vmcoal.model.lease import TERMINAL, TRANSITIONS, IllegalTransitionError, LeaseEvent, LeaseState, advance
from vmcoal.model.units import format_duration, format_size, parse_duration, parse_size

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 << 20), ("1.5GiB", 3 << 29), ("2g", 2 << 30), ("4096", 4096), ("128 mb", 128 << 20), ("1T", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.2.3G", "G", "1e9", "12Q", "0.1", "nan", "9" * 19 + "T", "１M" * 2])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert parse_size(text) > 0
    except UsageError as error:
        assert error.hint


def test_formats() -> None:
    assert [format_size(n) for n in (100, 2048, 512 << 20, 3 << 29)] == ["100 B", "2 KiB", "512 MiB", "1.5 GiB"]
    assert [format_duration(s) for s in (13e-6, 0.0021, 4.2, 200, 7300)] == [
        "13 µs",
        "2.1 ms",
        "4.2 s",
        "3 m 20 s",
        "2 h 1 m",
    ]


def test_durations() -> None:
    assert [parse_duration(t) for t in ("30", "1.5m", "200ms", "1h")] == [30, 90, 0.2, 3600]
    for text in ("", "0", "-3s", "3 days"):
        with pytest.raises(UsageError):
            parse_duration(text)


def test_the_table_is_total_and_terminal_states_refuse_everything() -> None:
    assert set(TRANSITIONS) == {(s, e) for s in LeaseState for e in LeaseEvent}
    for state in LeaseState:
        moves = [TRANSITIONS[state, event] for event in LeaseEvent]
        assert (state in TERMINAL) == all(move is None for move in moves)


def test_every_state_can_be_reached_and_can_end() -> None:
    reached, frontier = {LeaseState.OFFERED}, [LeaseState.OFFERED]
    while frontier:
        state = frontier.pop()
        for event in LeaseEvent:
            after = TRANSITIONS[state, event]
            if after is not None and after not in reached:
                reached.add(after)
                frontier.append(after)
    assert reached == set(LeaseState)
    for state in set(LeaseState) - TERMINAL - {LeaseState.OFFERED, LeaseState.REQUESTED}:
        assert TRANSITIONS[state, LeaseEvent.FORCE] in TERMINAL


@given(st.lists(st.sampled_from(LeaseEvent), max_size=30))
def test_a_terminal_lease_stays_terminal(events: list[LeaseEvent]) -> None:
    state = LeaseState.OFFERED
    for event in events:
        try:
            after = advance(state, event)
        except IllegalTransitionError as error:
            assert (error.state, error.event) == (state, event)
            continue
        assert state not in TERMINAL
        state = after


def test_an_unreachable_lease_resumes_or_expires() -> None:
    assert advance(LeaseState.UNREACHABLE, LeaseEvent.LINK_BACK) is LeaseState.ACTIVE
    assert advance(LeaseState.UNREACHABLE, LeaseEvent.DEADLINE) is LeaseState.EXPIRED
    assert lease.LeaseTerms().grace > 0


def test_errors_cross_the_wire_with_their_fields() -> None:
    kinds = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, VmcoalError)]
    assert len({cls.exit_code for cls in kinds}) == len(kinds)
    for cls in kinds:
        error = cls("it broke", host="h", left="a DIMM", hint="try again", code=3)
        back = VmcoalError.from_wire(error.to_wire())
        assert type(back) is cls
        assert (back.message, back.host, back.left, back.hint, back.details) == (
            "it broke",
            "h",
            "a DIMM",
            "try again",
            {"code": 3},
        )
