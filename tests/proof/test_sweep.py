"""Everything is struck at every place; see `sweep.py`. `nox -s proof` strikes twice everywhere."""

import os

import pytest
from proof import clocks
from proof.scenarios import SCENARIOS
from proof.sweep import SECOND_BLOWS, sweep

IS_LONG = os.environ.get("OWNERTASK_PROOF") == "long"

TWICE = list(SCENARIOS) if IS_LONG else ["start", "stop"]


def places(names):
    for clock in clocks.CLOCKS:
        for name in names:
            # uvloop's clock cannot jump, and this would take its time.
            if clock != "uvloop" or SCENARIOS[name].bound == 0:
                yield pytest.param(name, clock, id=f"{name}-{clock}")


@pytest.mark.parametrize(("name", "clock"), list(places(SCENARIOS)))
def test_nothing_is_left_behind_wherever_something_strikes(name, clock, record_property):
    record_property("runs", swept(name, clock))


@pytest.mark.parametrize(("name", "clock"), list(places(TWICE)))
def test_nothing_is_left_behind_wherever_something_strikes_twice(name, clock, record_property):
    record_property("runs", swept(name, clock, second_blows=SECOND_BLOWS))


def swept(name, clock, **options):
    unit = 0.001 if clock == "uvloop" else 1

    async def main():
        return await sweep(SCENARIOS[name], unit=unit, **options)

    runs, failures = clocks.run(main, clock=clock)
    assert runs > 10
    shown = [f"{' | '.join(map(str, plan))}: {what}" for plan, what in failures.items()][:9]
    assert not failures, f"{len(failures)} of {runs} runs\n" + "\n".join(shown)
    return runs
