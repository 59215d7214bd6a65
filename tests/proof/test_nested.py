"""Runs random sequences of calls and failures on managers that open each other, up to four deep.

Each manager may be started by itself, or be part of another one. Event loops are closed without a stop,
callbacks of earlier runs report losses late, and connections and log handlers raise odd exceptions.
`nox -s proof` runs more than a hundred thousand steps.
"""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proof import clocks
from proof.nested import COUNT, World, faulty_logging, set_log_fault
from proof.odd import ODD
from proof.search import clock, innermost, searched

managers = st.integers(0, COUNT - 1)
odd = st.sampled_from(sorted(ODD))
reasons = st.one_of(st.none(), odd)
calls = st.one_of(
    st.tuples(st.just("start"), managers, st.none()),
    st.tuples(st.just("start"), managers, st.sampled_from([None, 3.07])),
    st.tuples(st.sampled_from(["enter", "enter", "enter only"]), managers, st.none()),
    st.tuples(st.just("run"), managers, st.none()),
    st.tuples(st.just("stop"), managers, st.sampled_from([0, 5.3, 300.0])),
    st.tuples(st.just("wait_closed"), managers, st.none()),
)
ends_of_calls = st.one_of(
    st.tuples(st.sampled_from(["exit", "exit", "exit only"]), managers, st.none()),
    st.tuples(st.sampled_from(["cancel", "cancel natively"]), st.integers(0, 3), st.none()),
    st.tuples(st.just("pass time"), st.sampled_from([1.0, 4.01, 40.003]), st.none()),
)
losses = st.one_of(
    st.tuples(st.just("lose"), managers, reasons),
    st.tuples(st.just("lose late"), st.integers(0, 7), st.tuples(managers, reasons, st.booleans())),
)
preparations = st.one_of(
    st.tuples(st.just("open inside"), managers, st.sets(managers, max_size=2)),
    st.tuples(st.just("collect"), st.none(), st.none()),
    st.tuples(st.just("log"), st.sampled_from(["", "filter", "handler", "formatter"]), st.none()),
)
steps = st.one_of(calls, calls, ends_of_calls, losses, preparations)
# How one manager's stages go, one after another.
outcomes = st.one_of(st.sampled_from(["ok", "ok", "slow", "hang"]), odd)
scripts = st.lists(st.lists(outcomes, min_size=5, max_size=5), min_size=COUNT, max_size=COUNT)
# For each manager, which ones it opens inside its first run.
shapes = st.sampled_from(
    [
        [{1}, {2}, {3}, set()],
        [{1}, {2}, set(), {2}],
        [{1, 2}, {3}, {3}, set()],
        [{2}, {2}, {3}, set()],
        [{1}, set(), {3}, set()],
    ]
)
# A sequence for each event loop, how the loop ends, and whether its garbage is collected then.
loops = st.tuples(
    st.lists(st.tuples(steps, st.integers(0, 4)), min_size=6, max_size=16),
    st.sampled_from(["stopped", "ended", "abandoned", "abandoned"]),
    st.sampled_from([False, False, True]),
)


first = st.just(0)
numbers = st.integers(0, 3)
block_steps = st.one_of(
    st.tuples(st.sampled_from(["start", "run"]), first, st.none()),
    st.tuples(st.just("start"), first, st.just(3.07)),
    st.tuples(st.sampled_from(["enter", "enter instead"]), first, st.none()),
    st.tuples(st.just("enter only"), first, st.none()),
    st.tuples(st.just("exit"), numbers, st.none()),
    st.tuples(st.just("exit only"), first, st.none()),
    st.tuples(st.sampled_from(["enter only", "exit only"]), first, st.none()),
    st.tuples(st.just("cancel"), numbers, st.none()),
    st.tuples(st.sampled_from(["stop", "lose"]), first, st.none()),
    st.tuples(st.just("pass time"), st.just(4.01), st.none()),
)


@pytest.fixture(autouse=True)
def _faulty_logging():
    with faulty_logging():
        yield


async def play(world, sequence, ending, abandon=None):
    for (step, first, second), turns in sequence:
        await world.do(step, first, second, turns)
    if ending == "stopped":
        await world.end()
    elif ending == "abandoned":
        await abandon()


def search(shape, scripts, sequences, clock, **options):
    """Plays each sequence in its own event loop. Returns the number of steps."""
    world = World(**options)
    for number, inside in enumerate(shape):
        world.open_inside(number, inside)
        world.managers[number].script = iter(scripts[number])
    taken = 0
    for sequence, ending, collects in sequences:
        taken += len(sequence)
        if ending == "abandoned":
            clocks.run_and_abandon(play, world, sequence, ending, clock=clock)
        else:
            clocks.run(play, world, sequence, ending, clock=clock)
        set_log_fault("")
        world.end_loop()
        if collects:
            gc.collect()
        assert not world.problems, world.problems[0]
    clocks.run(world.use_all, clock=clock)
    assert not world.problems, world.problems[0]
    return taken


# An abandoned task is collected while it waits, and anyio's cancel scopes complain about that.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("exact", [True, False], ids=["idle", "racing"])
@clock
def test_nested_managers_keep_the_guarantees(clock, exact, record_property):
    taken = 0

    @searched(50)
    @given(shapes, scripts, st.lists(loops, min_size=2, max_size=3))
    def run(shape, scripts, sequences):
        nonlocal taken
        try:
            taken += search(shape, scripts, sequences, clock, exact=exact)
        except BaseExceptionGroup as group:
            raise innermost(group) from None

    run()
    record_property("nested steps", taken)


@clock
def test_the_last_exit_of_several_blocks_stops_what_a_block_began(clock, record_property):
    taken = 0

    @searched(100)
    @given(
        st.lists(st.sampled_from(["ok", "ok", "slow", "slow", "hang"]), min_size=30, max_size=30),
        st.lists(st.tuples(block_steps, st.just(0)), min_size=10, max_size=30),
    )
    def run(script, sequence):
        nonlocal taken
        taken += search([set()], [script], [(sequence, "stopped", False)], clock, exact=True, turns=20)

    run()
    record_property("steps with blocks", taken)
