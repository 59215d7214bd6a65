"""Everything is struck at every place."""

import pytest
from proof import clocks
from proof.scenarios import SCENARIOS
from proof.sweep import SECOND_BLOWS, sweep


@pytest.mark.parametrize("clock", clocks.CLOCKS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_left_behind_wherever_one_blow_strikes(name, clock):
    swept(name, clock, ())


def swept(name, clock, second_blows):
    unit = 0.004 if clock == "uvloop" else 1.0

    async def main():
        return await sweep(SCENARIOS[name], unit=unit, second_blows=second_blows)

    runs, failures = clocks.run(main, clock=clock)
    print(f"{runs} runs")
    shown = [f"{' | '.join(map(str, plan))}: {what}" for plan, what in failures.items()]
    assert not failures, f"{len(failures)} of {runs} runs\n" + "\n".join(shown[:12])
    assert runs > 10
