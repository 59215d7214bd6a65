"""Interrupts every scenario at every point; see `sweep.py`.

`nox -s proof` also interrupts every scenario twice. Without it, only three of them are.
"""

import os

import pytest
from proof import clocks
from proof.scenarios import SCENARIOS
from proof.sweep import SECOND_INTERRUPTIONS, sweep

IS_LONG = os.environ.get("OWNERTASK_PROOF") == "long"

TWICE = list(SCENARIOS) if IS_LONG else ["start", "stop", "run with a shielded close"]


def cases(names):
    for clock in clocks.CLOCKS:
        for name in names:
            # uvloop's clock cannot jump, so other scenarios would take real time.
            if clock != "uvloop" or SCENARIOS[name].bound == 0:
                yield pytest.param(name, clock, id=f"{name}-{clock}")


@pytest.mark.parametrize(("name", "clock"), list(cases(SCENARIOS)))
def test_nothing_is_left_behind_wherever_a_scenario_is_interrupted(name, clock, record_property):
    record_property("runs", run_sweep(name, clock))


@pytest.mark.parametrize(("name", "clock"), list(cases(TWICE)))
def test_nothing_is_left_behind_wherever_a_scenario_is_interrupted_twice(name, clock, record_property):
    record_property("runs", run_sweep(name, clock, second_interruptions=SECOND_INTERRUPTIONS))


def run_sweep(name, clock, **options):
    unit = 0.001 if clock == "uvloop" else 1

    async def main():
        return await sweep(SCENARIOS[name], unit=unit, **options)

    runs, failures = clocks.run(main, clock=clock)
    assert runs > 10
    shown = [f"{' | '.join(map(str, plan))}: {problems}" for plan, problems in failures.items()][:9]
    assert not failures, f"{len(failures)} of {runs} runs\n" + "\n".join(shown)
    return runs
