"""The table of states and events, walked in full."""

from __future__ import annotations

import itertools

import pytest

from flask_ctl.lifecycle import TRANSITIONS, Event, IllegalTransition, Lifecycle, State

PAIRS = [
    pytest.param(state, event, id=f"{event.name} while {state.name}")
    for state, event in itertools.product(State, Event)
    if (state, event) in TRANSITIONS
]
OTHERS = [
    pytest.param(state, event, id=f"{event.name} while {state.name}")
    for state, event in itertools.product(State, Event)
    if (state, event) not in TRANSITIONS
]


def lifecycle_in(state: State) -> Lifecycle:
    lifecycle = Lifecycle()
    lifecycle.state = state
    return lifecycle


def test_a_lifecycle_begins_with_starting():
    assert Lifecycle().state is State.STARTING


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_a_legal_event_leads_to_the_state_of_the_table(state, event):
    lifecycle = lifecycle_in(state)
    assert lifecycle.advance(event) is TRANSITIONS[state, event]
    assert lifecycle.state is TRANSITIONS[state, event]


@pytest.mark.parametrize(("state", "event"), OTHERS)
def test_an_illegal_event_raises_and_the_state_stays(state, event):
    lifecycle = lifecycle_in(state)
    with pytest.raises(IllegalTransition, match=f"{event.value}: not possible while {state.value}"):
        lifecycle.advance(event)
    assert lifecycle.state is state


def test_every_state_can_be_reached_and_only_the_last_has_no_way_out():
    reached, ways = {State.STARTING}, dict(TRANSITIONS)
    for _ in State:
        reached |= {after for (before, _), after in ways.items() if before in reached}
    assert reached == set(State)
    assert {before for before, _ in TRANSITIONS} == set(State) - {State.STOPPED}


def test_a_stop_that_was_accepted_is_never_forgotten():
    lifecycle = lifecycle_in(State.STOPPING)
    assert lifecycle.advance(Event.SERVE) is State.STOPPING
