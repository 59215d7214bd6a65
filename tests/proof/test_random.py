"""Runs random sequences of calls and failures, and compares the manager with a plain model.

`nox -s proof` runs more than a hundred thousand steps.
"""

import asyncio
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st
from proof import clocks
from proof.model import Call, Model
from proof.search import clock, innermost, let_all_tasks_run, searched
from proof.sweep import Boom, RecordingManager, has_ended, is_asyncio

from ownertask import ConnectionLostError, ConnectionState, NotConnectedError, ReconnectPolicy
from ownertask._owner import current_event_loop

# These values never add up to the same time, so no two deadlines coincide.
START_TIMEOUTS = [None, 3.07]
STOP_TIMEOUTS = [0, 5.3, 300.0]
WAIT_TIMEOUTS = [None, 2.93]
ATTEMPT_TIMEOUTS = [None, 6.00037]
DURATIONS = [1.0, 4.01, 40.003]
endless = ReconnectPolicy(initial_delay=2.00017, max_delay=7.00071, jitter=0, stable_after=20.0003)
limited = ReconnectPolicy(
    initial_delay=2.00017, multiplier=3.7, jitter=0, stable_after=3.0003, max_retries=2
)
at_once = ReconnectPolicy(initial_delay=0, jitter=0)

ERRORS = {"Boom": Boom, "TypeError": TypeError}  # the second is permanent

outcomes = st.sampled_from(["ok", "Boom", "hang", "hang"]).map(lambda outcome: [outcome])
series_of_outcomes = st.one_of(
    outcomes,
    st.sampled_from([["Boom"] * 2, ["Boom"] * 4, ["Boom", "hang"], ["hang", "hang"], ["TypeError"]]),
)
reasons = st.sampled_from([None, Boom("reported")])
steps = st.one_of(
    st.tuples(st.just("start"), st.none()),
    st.tuples(st.just("start"), st.sampled_from(START_TIMEOUTS)),
    st.tuples(st.just("start and hang"), st.sampled_from(START_TIMEOUTS)),
    st.tuples(st.just("stop"), st.sampled_from(STOP_TIMEOUTS)),
    st.tuples(st.just("stop and hang"), st.sampled_from(STOP_TIMEOUTS)),
    st.tuples(st.just("wait_closed"), st.none()),
    st.tuples(st.just("cancel"), st.integers(0, 3)),
    st.tuples(st.just("cancel natively"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["next_open", "next_close"]), outcomes),
    st.tuples(st.just("lose"), reasons),
    st.tuples(st.sampled_from(["crash", "cancel owner"]), st.none()),
    st.tuples(st.just("pass time"), st.sampled_from(DURATIONS)),
)
steps_with_a_policy = st.one_of(
    st.tuples(st.just("start"), st.sampled_from(START_TIMEOUTS)),
    st.tuples(st.just("enter"), st.none()),
    st.tuples(st.just("enter"), st.none()),
    st.tuples(st.just("exit"), st.integers(0, 1)),
    st.tuples(st.sampled_from(["enter only", "exit only"]), st.none()),
    st.tuples(st.just("wait_open"), st.sampled_from(WAIT_TIMEOUTS)),
    st.tuples(st.just("stop"), st.sampled_from(STOP_TIMEOUTS)),
    st.tuples(st.just("wait_closed"), st.none()),
    st.tuples(st.sampled_from(["cancel", "cancel natively"]), st.integers(0, 3)),
    st.tuples(st.sampled_from(["next_open", "next_close"]), series_of_outcomes),
    st.tuples(st.just("next_open"), series_of_outcomes),
    st.tuples(st.just("lose"), reasons),
    st.tuples(
        st.just("lose and hang"), st.sampled_from([None, Boom("reported"), TypeError("reported")])
    ),
    st.tuples(st.sampled_from(["crash", "crash", "cancel owner"]), st.none()),
    st.tuples(st.just("pass time"), st.sampled_from(DURATIONS)),
    st.tuples(st.just("pass time"), st.sampled_from(DURATIONS)),
)


class Manager(RecordingManager):
    """Also records whether two owner tasks are alive, and the changes of the state."""

    def __init__(self, opening, closing):
        super().__init__(opening, closing)
        self.problems = []
        self.last_state = ConnectionState.NEW
        self.add_listener(Manager.record)

    def record(self, old, new):
        if old is not self.last_state:
            self.problems.append(f"a change from {old} is announced after {self.last_state}")
        self.last_state = new

    def open_connection(self):
        if self.is_acquired or len(current_event_loop().owner_tasks) != 1:
            self.problems.append("9: two owner tasks are alive at once")
        return super().open_connection()


class Harness:
    """A manager, its model, and the calls that were made to it.

    Args:
        exact: Whether all tasks run until they are idle after each step, so that the model applies.
    """

    def __init__(self, tasks, *, exact, policy=None, start_timeout=None):
        self.tasks = tasks
        self.manager = Manager(partial(self.perform, "next_open"), partial(self.perform, "next_close"))
        self.manager.reconnect = policy
        self.manager.start_timeout = start_timeout
        self.model = Model(policy, start_timeout, self.is_kept) if exact else None
        self.script = {"next_open": [], "next_close": []}
        self.calls = []

    def is_kept(self):
        return self.manager._life.run.series.is_kept

    def predict(self, event, *args, **options):
        if self.model is not None:
            self.model.now = anyio.current_time()
            getattr(self.model, event)(*args, **options)

    async def perform(self, stage):
        outcome = self.script[stage].pop(0) if self.script[stage] else "ok"
        if outcome == "hang":
            await anyio.sleep_forever()
        await checkpoint()
        if outcome in ERRORS:
            raise ERRORS[outcome]("the stage fails")

    async def call(self, call, function):
        call.task = asyncio.current_task() if is_asyncio() else None
        try:
            with anyio.CancelScope() as call.scope:
                call.ended = "cancelled"
                try:
                    await function()
                except Exception as error:
                    call.ended = type(error).__name__
                else:
                    call.ended = "returned"
                self.check_end_of_call(call)
        except asyncio.CancelledError:
            call.ended = "cancelled"
        if call.ended == "cancelled":
            self.check_end_of_call(call)
        call.is_over = True
        call.task = call.run = None  # blocks refer weakly to the task

    async def block(self, call):
        async with self.manager:
            assert self.manager.state.value == "open", "a block was entered, but it is not open"
            call.has_entered = True
            try:
                await call.leave.wait()
            finally:
                call.has_entered = False

    def check_end_of_call(self, call):
        """Checks the guarantees that hold at the moment when a call ends."""
        run = call.run if call.kind == "stop" and not call.wait_was_cut_short else None
        assert has_ended(run), "3: stop() ended, but the owner task is alive"
        if call.kind in {"start", "wait_open"} and call.ended == "returned":
            is_open = self.manager.state.value == "open"
            assert is_open, f"{call.kind}() returned a connection that is not open"

    def do(self, step, argument):
        if step.endswith(" and hang"):
            step = step.removesuffix(" and hang")
            self.do("next_open" if step == "start" else "next_close", ["hang"])
        if step in {"start", "stop", "wait_closed", "wait_open", "enter", "enter only", "exit only"}:
            self.begin_call(step, argument)
        elif step == "exit":
            inside = [call for call in self.calls if call.has_entered]
            if inside:
                call = inside[argument % len(inside)]
                call.has_entered = False
                call.leave.set()
                self.predict("exit", call)
        elif step in {"cancel", "cancel natively"}:
            self.cancel(step, argument)
        elif step in self.script:
            self.script[step] = list(argument)
            if self.model is not None:
                setattr(self.model, step, list(argument))
        elif step == "lose":
            self.manager.connection_lost(argument)
            self.predict("lose", None if argument is None else type(argument).__name__)
        elif step == "crash":
            if self.manager.crash is not None:
                self.manager.crash.set()
            self.predict("crash")
        elif is_asyncio():
            run = self.manager._life.run
            if run is not None and run._task is not None:
                run._task.cancel()
            self.predict("cancel_owner")

    def cancel(self, step, argument):
        live = [call for call in self.calls if not call.is_over]
        if not live:
            return
        call = live[argument % len(live)]
        natively = step == "cancel natively" and call.task is not None
        if natively:
            # A second cancellation, if native, ends the wait of a stop().
            call.wait_was_cut_short = call.is_cancelled
            call.task.cancel()
        elif call.scope is not None:
            if call.has_entered:
                self.do("next_close", [])  # it may be cancelled before or after it fails
            call.scope.cancel()
        else:
            return
        call.is_cancelled = True
        self.predict("cancel", call, natively=natively)

    def begin_call(self, step, argument):
        call = Call(step)
        call.scope = call.task = None
        call.is_over = call.is_cancelled = call.wait_was_cut_short = call.has_entered = False
        call.leave = anyio.Event()
        # A run that is over must not be kept alive, because the library does not keep it either.
        call.run = self.manager._life.run if step == "stop" else None
        self.calls.append(call)
        if argument is not None and step != "stop":
            call.deadline = anyio.current_time() + argument
        functions = {
            "start": partial(self.manager.start, argument),
            "wait_open": partial(self.manager.wait_open, argument),
            "stop": partial(self.manager.stop, argument),
            "wait_closed": self.manager.wait_closed,
            "enter": partial(self.block, call),
            "enter only": self.manager.__aenter__,
            "exit only": partial(self.manager.__aexit__, None, None, None),
        }
        if step == "stop":
            self.predict("stop", call, argument)
        else:
            self.predict(
                {"enter": "start", "enter only": "start", "exit only": "exit"}.get(step, step), call
            )
        self.tasks.start_soon(self.call, call, functions[step])

    def check(self):
        try:
            _ = self.manager.connection
        except (NotConnectedError, ConnectionLostError):
            is_readable = False
        else:
            is_readable = True
        state = self.manager.state
        assert is_readable == (state.value == "open")
        assert (self.manager.exception is not None) == (state.value == "failed")
        assert self.manager.reconnecting is None or state.value == "opening"
        assert not self.manager.problems, self.manager.problems[0]
        assert state is self.manager.last_state, "a change was not announced"

    def compare(self):
        """Compares the manager with the model. No task can run."""
        self.model.pass_time(anyio.current_time())
        self.check()
        assert self.manager.state.value == self.model.state
        failure = self.manager.exception
        assert failure is None or type(failure).__name__ == self.model.failure
        self.compare_reconnecting()
        for call in self.calls:
            ended = call.ended if call.is_over else None
            assert ended == call.expected, call.kind

    def compare_reconnecting(self):
        actual, expected = self.manager.reconnecting, self.model.reconnecting
        assert (actual is None) == (expected is None), f"reconnecting is {actual}"
        if actual is not None:
            failures, due, failure = expected
            assert (actual.failures, type(actual.exception).__name__) == (failures, failure)
            assert actual.due == pytest.approx(due, abs=1e-6)

    async def end(self):
        self.script.update(next_open=[], next_close=[])
        for call in self.calls:
            call.leave.set()
        await let_all_tasks_run()
        await self.manager.stop()
        attempts = len(self.manager.entered)
        await let_all_tasks_run()
        await anyio.sleep(1000)  # would begin another attempt
        await let_all_tasks_run()
        assert len(self.manager.entered) == attempts, "another attempt follows the last stop()"
        assert all(call.is_over for call in self.calls), "7: a call is still waiting after the run"
        assert self.manager.entered == self.manager.exited, (
            "8: entered and exited once each, in the same task"
        )
        run = self.manager._life.run
        assert run is None or (not run._waiters and run._series is None)
        assert not self.manager.problems, self.manager.problems[0]
        self.tasks.cancel_scope.cancel()


async def play(sequence, policy=None, start_timeout=None):
    """Takes the steps, and compares the manager with the model after each."""
    async with anyio.create_task_group() as tg:
        harness = Harness(tg, exact=True, policy=policy, start_timeout=start_timeout)
        for step, argument in sequence:
            if step == "pass time":
                await anyio.sleep(argument)
            else:
                harness.do(step, argument)
            await let_all_tasks_run()
            harness.compare()
        await harness.end()


async def race(sequence, policy=None, start_timeout=None):
    """Takes the steps, with few iterations of the event loop in between."""
    async with anyio.create_task_group() as tg:
        harness = Harness(tg, exact=False, policy=policy, start_timeout=start_timeout)
        for (step, argument), turns in sequence:
            if step == "pass time":
                await anyio.sleep(argument)
            else:
                harness.do(step, argument)
            for _ in range(turns):
                await checkpoint()
                harness.check()
        await harness.end()


@clock
def test_the_manager_matches_the_model_whenever_no_task_can_run(clock, record_property):
    taken = 0

    @searched(60)
    @given(st.lists(steps, min_size=15, max_size=40))
    def search(sequence):
        nonlocal taken
        taken += run(play, sequence, clock=clock)

    search()
    record_property("random steps", taken)


@clock
def test_K1_K2_K7_with_a_policy_the_manager_matches_the_model(clock, record_property):
    taken = 0

    @searched(80)
    @given(
        st.lists(steps_with_a_policy, min_size=15, max_size=30),
        st.sampled_from([endless, endless, limited, None]),
        st.sampled_from(ATTEMPT_TIMEOUTS),
    )
    def search(sequence, policy, start_timeout):
        nonlocal taken
        taken += run(play, sequence, policy, start_timeout, clock=clock)

    search()
    record_property("random steps with a policy", taken)


@clock
def test_K7_two_tasks_use_blocks_start_stop_and_losses_in_any_order(clock, record_property):
    taken = 0
    order = [
        *[("enter", None), ("exit", 0)] * 2,
        *[("start", None), ("stop", 300.0), ("lose", None), ("lose", None)],
        *[("pass time", 1.0), ("pass time", 4.01)],
    ]

    @searched(80)
    @given(st.permutations(order), series_of_outcomes, series_of_outcomes)
    def search(sequence, opening, closing):
        nonlocal taken
        script = [("next_open", opening), ("next_close", closing)]
        taken += run(play, [*script, *sequence], endless, clock=clock)

    search()
    record_property("random steps with a policy", taken)


@pytest.mark.parametrize("policy", [None, at_once, endless], ids=["", "at once", "delayed"])
@clock
def test_the_guarantees_hold_when_calls_and_failures_race(clock, policy, record_property):
    taken = 0
    kinds = steps if policy is None else steps_with_a_policy

    @searched(60 if policy is None else 40)
    @given(st.lists(st.tuples(kinds, st.integers(0, 4)), min_size=15, max_size=40))
    def search(sequence):
        nonlocal taken
        taken += run(race, sequence, policy, clock=clock)

    search()
    record_property("random steps", taken)


def run(function, sequence, *args, clock):
    """Returns the number of steps."""
    try:
        clocks.run(function, sequence, *args, clock=clock)
    except BaseExceptionGroup as group:
        raise innermost(group) from None
    return len(sequence)
