"""Tries the alternatives to a manager, and compares the results with the table in the documentation."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "explanation" / "other-ways.md"
WAYS = ["stack", "group", "thread", "actor", "ownertask"]

# The situation of each row that is tried here, and the position of its result.
ROWS = {
    "open in one task, close in another": ("closed_in_another_task", 0),
    "then the task that opened it": ("closed_in_another_task", 1),
    "close the first of two connections": ("closed_first_in_first_out", 0),
    "then the second connection": ("closed_first_in_first_out", 1),
    "a call after the server was killed": ("server_killed", None),
    "the server exits at once": ("server_exits_at_once", None),
}
# What each cell of these rows promises of the result.
CELLS = {
    "works": r"ok",
    "`RuntimeError`": r"RuntimeError: Attempted to exit a? ?cancel scope .*",
    "continues": r"undisturbed",
    "is cancelled": r"cancelled",
    "is unusable": r"(?!ok).*",
    "no reason": r"(MCPError|McpError|\w+ResourceError|TimeoutError): (Connection closed)?"
    r"|CancelledError: .*",
    "the signal": r"ConnectionLostError: .* was killed by SIGKILL",
    "exit status and stderr": r"ConnectionLostError: .* exited with status 1; .* 'no license'",
}


def table():
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if " | " in line]
    return {row[0]: dict(zip(WAYS, row[1:], strict=True)) for row in rows}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL and no forks")
def test_the_table_shows_what_happens():
    command = [sys.executable, str(HERE / "alternatives.py")]
    printed = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    results = json.loads(printed)
    assert list(results) == WAYS
    for row, (situation, position) in ROWS.items():
        for way in WAYS:
            result = results[way][situation]
            if position is not None:
                result = result[position]
            cell = table()[row][way]
            assert re.fullmatch(CELLS[cell], result, re.DOTALL), (row, way, cell, result)


def test_each_row_that_is_tried_is_in_the_table():
    assert set(ROWS) <= set(table())
