"""Tests for the table of state transitions and its diagram in the documentation.

Run this file as a program to update the diagram.
"""

import re
from pathlib import Path

from ownertask import ConnectionState
from ownertask.state import TRANSITIONS

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "states.md"


def diagram():
    moves = [f"    {old.name} --> {new.name}" for old in ConnectionState for new in ConnectionState
             if new in TRANSITIONS[old]]  # fmt: skip
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> NEW", *moves, "```"])


def test_the_diagram_in_the_documentation_matches_the_table():
    assert diagram() in PAGE.read_text(), "run python tests/test_state.py to generate it"


def test_every_state_can_be_reached_and_left():
    assert set(TRANSITIONS) == set(ConnectionState)
    assert set().union(*TRANSITIONS.values()) == set(ConnectionState) - {ConnectionState.NEW}
    assert all(TRANSITIONS.values())


if __name__ == "__main__":
    PAGE.write_text(re.sub(r"```mermaid\n.*?```", diagram(), PAGE.read_text(), flags=re.DOTALL))
