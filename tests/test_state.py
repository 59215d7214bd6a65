"""The table of states, and the diagram that the documentation draws of it."""

from pathlib import Path

from mooring import ConnectionState
from mooring.state import TRANSITIONS

STATES = Path(__file__).parents[1] / "docs" / "states.md"


def diagram():
    moves = [f"    {old.name} --> {new.name}" for old in ConnectionState for new in ConnectionState
             if new in TRANSITIONS[old]]  # fmt: skip
    return "\n".join(["stateDiagram-v2", "    [*] --> NEW", *moves])


def test_the_documentation_draws_the_table():
    assert diagram() in STATES.read_text(), f"docs/states.md should have\n{diagram()}"


def test_every_state_can_be_reached_and_left():
    assert set(TRANSITIONS) == set(ConnectionState)
    assert set().union(*TRANSITIONS.values()) == set(ConnectionState) - {ConnectionState.NEW}
    assert all(TRANSITIONS.values())
