"""The table of states and events, walked in full against what it has to be."""

from __future__ import annotations

import itertools

import pytest

from flask_ctl.lifecycle.state import TRANSITIONS, Event, IllegalTransition, Lifecycle, State

EXPECTED = """
            SERVE     RELOAD     RETURN    STOP      END
STARTING    RUNNING   -          -         STOPPING  STOPPED
RUNNING     -         RELOADING  -         STOPPING  STOPPED
RELOADING   -         -          RUNNING   STOPPING  STOPPED
STOPPING    STOPPING  -          STOPPING  -         STOPPED
STOPPED     -         -          STOPPED   STOPPED   -
"""


def expected(state: State, event: Event) -> State | None:
    header, *rows = [line.split() for line in EXPECTED.strip("\n").splitlines()]
    cells = {row[0]: dict(zip(header, row[1:])) for row in rows}
    name = cells[state.name][event.name]
    return None if name == "-" else State[name]


PAIRS = [pytest.param(s, e, id=f"{e.name} while {s.name}") for s, e in itertools.product(State, Event)]


def test_a_lifecycle_begins_with_starting() -> None:
    assert Lifecycle().state is State.STARTING


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_an_event_leads_where_it_has_to_or_raises_and_leaves_the_state(state: State, event: Event) -> None:
    lifecycle = Lifecycle()
    lifecycle.state = state
    following = expected(state, event)
    if following is not None:
        assert lifecycle.advance(event) is following
        assert lifecycle.state is following
        return
    with pytest.raises(IllegalTransition, match=f"{event.value}: not possible while {state.value}"):
        lifecycle.advance(event)
    assert lifecycle.state is state


def test_the_table_has_no_state_or_event_that_is_not_there() -> None:
    assert all(isinstance(s, State) and isinstance(e, Event) for s, e in TRANSITIONS)
