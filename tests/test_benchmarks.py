"""Tests that the results of the benchmarks are complete."""

import json
from pathlib import Path
from runpy import run_path

FOLDER = Path(__file__).parent / "benchmarks"


def test_the_results_are_those_of_all_benchmarks():
    benchmarks = run_path(str(FOLDER / "run.py"))["BENCHMARKS"]
    rows = json.loads((FOLDER / "results.json").read_text())["rows"]
    measured = {(row["benchmark"], row["backend"] or "none") for row in rows}
    assert measured == {(name, backend) for name, backends in benchmarks.items() for backend in backends}
