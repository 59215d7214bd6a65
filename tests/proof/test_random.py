"""Runs random sequences of calls and failures, and compares the manager with a plain model.

`nox -s proof` runs more than a hundred thousand steps.
"""

import asyncio
from functools import partial

import anyio
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st
from proof import clocks
from proof.model import Call, Model
from proof.search import clock, innermost, let_all_tasks_run, searched
from proof.sweep import Boom, RecordingManager, is_asyncio

from ownertask import ConnectionLostError, NotConnectedError

# These values never add up to the same time, so no two deadlines coincide.
START_TIMEOUTS = [None, 3.07]
STOP_TIMEOUTS = [0, 5.3, 300.0]
DURATIONS = [1.0, 4.01, 40.003]
LOSS_TIMEOUT = 30.0

outcomes = st.sampled_from(["ok", "fail", "hang", "hang"])
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
    st.tuples(st.just("lose"), st.sampled_from([None, Boom("reported")])),
    st.tuples(st.sampled_from(["crash", "cancel owner"]), st.none()),
    st.tuples(st.just("pass time"), st.sampled_from(DURATIONS)),
)


class Harness:
    """A manager, its model, and the calls that were made to it."""

    def __init__(self, tasks):
        self.tasks = tasks
        self.manager = RecordingManager(
            partial(self.perform, "next_open"), partial(self.perform, "next_close")
        )
        self.model = Model()
        self.script = {"next_open": "ok", "next_close": "ok"}
        self.calls = []

    async def perform(self, stage):
        outcome, self.script[stage] = self.script[stage], "ok"
        if outcome == "hang":
            await anyio.sleep_forever()
        await checkpoint()
        if outcome == "fail":
            raise Boom("the stage fails")

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

    def check_end_of_call(self, call):
        """Checks the guarantees that hold at the moment when a call ends."""
        run = call.run if call.kind == "stop" and not call.wait_was_cut_short else None
        assert run is None or run.is_over, "3: stop() ended, but the owner task is alive"
        if call.kind == "start" and call.ended == "returned":
            assert self.manager.state.value == "open", "start() returned a connection that is not open"

    def do(self, step, argument):
        live = [call for call in self.calls if not call.is_over]
        now = anyio.current_time()
        if step.endswith(" and hang"):
            step = step.removesuffix(" and hang")
            self.do("next_open" if step == "start" else "next_close", "hang")
        if step in {"start", "stop", "wait_closed"}:
            self.begin_call(step, argument, now)
        elif step.startswith("cancel") and step != "cancel owner":
            if live:
                call = live[argument % len(live)]
                if step == "cancel natively" and call.task is not None:
                    # A second cancellation, if native, ends the wait of a stop().
                    call.wait_was_cut_short = call.is_cancelled
                    call.task.cancel()
                elif call.scope is not None:
                    call.scope.cancel()
                else:
                    return
                call.is_cancelled = True
                self.model.cancel(call)
        elif step in self.script:
            self.script[step] = argument
            setattr(self.model, step, argument)
        elif step == "lose":
            self.manager.connection_lost(argument)
            self.model.lose(now + LOSS_TIMEOUT)
        elif step == "crash":
            if self.manager.crash is not None:
                self.manager.crash.set()
            self.model.crash()
        elif is_asyncio():
            run = self.manager._life.run
            if run is not None and run._task is not None:
                run._task.cancel()
            self.model.cancel_owner()

    def begin_call(self, step, argument, now):
        call = Call(step)
        call.scope = call.task = None
        call.is_over = call.is_cancelled = call.wait_was_cut_short = False
        call.run = self.manager._life.run
        self.calls.append(call)
        if step == "start":
            call.deadline = call.deadline if argument is None else now + argument
            function = partial(self.manager.start, timeout=argument)
            self.model.start(call)
        elif step == "stop":
            function = partial(self.manager.stop, argument)
            self.model.stop(call, now + argument, at_once=argument == 0)
        else:
            function = self.manager.wait_closed
            self.model.wait_closed(call)
        self.tasks.start_soon(self.call, call, function)

    def check(self):
        try:
            _ = self.manager.connection
        except (NotConnectedError, ConnectionLostError):
            is_readable = False
        else:
            is_readable = True
        assert is_readable == (self.manager.state.value == "open")
        assert (self.manager.exception is not None) == (self.manager.state.value == "failed")

    async def end(self):
        self.script.update(next_open="ok", next_close="ok")
        await let_all_tasks_run()
        await self.manager.stop()
        await let_all_tasks_run()
        assert all(call.is_over for call in self.calls), "7: a call is still waiting after the run"
        assert self.manager.entered == self.manager.exited, (
            "8: entered and exited once each, in the same task"
        )
        run = self.manager._life.run
        assert run is None or (not run._wake_ups and run.starters == 0)
        self.tasks.cancel_scope.cancel()


@clock
def test_the_manager_matches_the_model_whenever_no_task_can_run(clock, record_property):
    taken = 0

    async def main(sequence):
        nonlocal taken
        async with anyio.create_task_group() as tg:
            harness = Harness(tg)
            for step, argument in sequence:
                taken += 1
                if step == "pass time":
                    await anyio.sleep(argument)
                else:
                    harness.do(step, argument)
                await let_all_tasks_run()
                harness.model.pass_time(anyio.current_time())
                harness.check()
                assert harness.manager.state.value == harness.model.state
                failure = harness.manager.exception
                assert failure is None or type(failure).__name__ == harness.model.failure
                for call in harness.calls:
                    ended = call.ended if call.is_over else None
                    assert ended == call.expected, call.kind
            await harness.end()

    @searched(60)
    @given(st.lists(steps, min_size=15, max_size=40))
    def search(sequence):
        run(main, sequence, clock)

    search()
    record_property("random steps", taken)


@clock
def test_the_guarantees_hold_when_calls_and_failures_race(clock, record_property):
    taken = 0

    async def main(sequence):
        nonlocal taken
        async with anyio.create_task_group() as tg:
            harness = Harness(tg)
            for (step, argument), turns in sequence:
                taken += 1
                if step == "pass time":
                    await anyio.sleep(argument)
                else:
                    harness.do(step, argument)
                for _ in range(turns):
                    await checkpoint()
                    harness.check()
            await harness.end()

    @searched(60)
    @given(st.lists(st.tuples(steps, st.integers(0, 4)), min_size=15, max_size=40))
    def search(sequence):
        run(main, sequence, clock)

    search()
    record_property("random steps", taken)


def run(main, sequence, clock):
    try:
        clocks.run(main, sequence, clock=clock)
    except BaseExceptionGroup as group:
        raise innermost(group) from None
