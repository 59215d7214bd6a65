"""Checks that the results of `nox -s comparison`, which tries other libraries, are complete."""

from pathlib import Path

from comparison.behaviors import rows
from tables import results_of

FOLDER = Path(__file__).with_name("comparison")
LIBRARIES = results_of("comparison")["libraries"]


def test_each_library_has_an_outcome_in_each_row():
    for name, result in LIBRARIES.items():
        assert list(result["outcomes"]) == rows(), name


def test_each_script_has_results():
    scripts = {path.stem.removeprefix("with_") for path in FOLDER.glob("with_*.py")}
    names = {name.partition(",")[0].replace("-", "_") for name in LIBRARIES}
    assert {"session_group" if name == "ClientSessionGroup" else name for name in names} == scripts


def test_outcomes_are_short():
    outcomes = {outcome for result in LIBRARIES.values() for outcome in result["outcomes"].values()}
    assert not {outcome for outcome in outcomes if len(outcome.split()) > 5}
