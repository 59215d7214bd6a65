"""Tests for the table of state transitions. `test_pictures.py` compares it with the documentation."""

from ownertask import ConnectionState
from ownertask.state import TRANSITIONS


def test_every_state_can_be_reached_and_left():
    assert set(TRANSITIONS) == set(ConnectionState)
    assert set().union(*TRANSITIONS.values()) == set(ConnectionState) - {ConnectionState.NEW}
    assert all(TRANSITIONS.values())
