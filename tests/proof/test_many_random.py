"""Runs random sequences of calls and failures, and compares groups and pools with plain models.

`nox -s proof` runs thirty times as many sequences.
"""

from functools import partial

import anyio
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st
from proof import clocks
from proof.many_models import SLOW, GroupModel, PoolModel
from proof.search import clock, innermost, let_all_tasks_run, searched
from proof.sweep import Boom, RecordingManager

from ownertask import (
    ConnectionGroup,
    ConnectionPool,
    ConnectionState,
    ReconnectPolicy,
)

# These values never add up to the same time, so no two deadlines coincide.
MEMBER_TIMEOUT = 5.003
ACQUIRE_TIMEOUTS = [None, None, 2.93, 7.0007]
IDLE_TIMEOUTS = [None, 10.00301]
DURATIONS = [1.0, 4.01, 40.003]

POLICY = ReconnectPolicy(initial_delay=2.00017, max_delay=7.00071, jitter=0)

outcomes = st.sampled_from(["ok", "ok", "ok", "slow", "Boom", "hang"])
numbers = st.integers(0, 5)
keys = st.integers(0, 3)
durations = st.tuples(st.just("pass time"), st.sampled_from(DURATIONS))

steps_of_a_group = st.one_of(
    st.tuples(st.sampled_from(["start", "start", "stop"]), st.none()),
    st.tuples(st.sampled_from(["add", "add", "remove"]), keys),
    st.tuples(st.sampled_from(["start member", "stop member", "lose", "lose"]), keys),
    st.tuples(st.just("next"), st.tuples(keys, outcomes)),
    st.tuples(st.just("cancel"), numbers),
    durations,
)
steps_of_a_pool = st.one_of(
    *[st.tuples(st.just("acquire"), st.tuples(keys, st.none()))] * 4,
    st.tuples(st.just("acquire"), st.tuples(keys, st.sampled_from(ACQUIRE_TIMEOUTS))),
    *[st.tuples(st.just("leave"), numbers)] * 4,
    st.tuples(st.just("cancel"), numbers),
    st.tuples(st.just("discard"), keys),
    st.tuples(st.just("lose"), numbers),
    st.tuples(st.just("next"), st.tuples(keys, outcomes)),
    st.tuples(st.sampled_from(["start", "start", "start", "stop"]), st.none()),
    *[durations] * 2,
)


class Call:
    """A call in its own task.

    Attributes:
        ended: How it ended; `None` until then.
        leave: Set to let a block exit.
    """

    def __init__(self, kind):
        self.kind = kind
        self.ended = None
        self.is_inside = False
        self.leave = anyio.Event()
        self.scope = anyio.CancelScope()

    async def run(self, function):
        try:
            with self.scope:
                self.ended = await function() or "returned"
        except (Exception, BaseExceptionGroup) as error:
            self.ended = type(error).__name__
        else:
            if self.scope.cancelled_caught:
                self.ended = "cancelled"


class NoModel:
    """Stands in for a model while calls race, when nothing is predicted."""

    def __init__(self):
        self.outcomes = {}

    def __getattr__(self, name):
        return lambda *_: None


class Harness:
    """What the steps for groups and for pools share.

    Args:
        tasks: A task group.
        exact: Whether all tasks run until they are idle after each step, so that the model applies.
    """

    def __init__(self, tasks, *, exact):
        self.tasks = tasks
        self.is_exact = exact
        self.outcomes = {}
        self.closing = {}
        self.calls = []
        self.managers = []

    def create(self, key, *, reconnect=None):
        async def open_it():
            await checkpoint()
            outcome = self.outcomes.get(key, "ok")
            if outcome == "Boom":
                raise Boom("it fails")
            if outcome != "ok":
                await (anyio.sleep(SLOW) if outcome == "slow" else anyio.sleep_forever())

        async def close_it():
            if not self.is_exact and self.outcomes.get(key) == "slow":
                await anyio.sleep(SLOW)

        manager = RecordingManager(open_it, close_it, reconnect=reconnect)
        self.managers.append(manager)
        return manager

    def begin(self, kind, function, *predicted):
        call = Call(kind)
        self.calls.append(call)
        self.tasks.start_soon(call.run, partial(function, call))
        return call

    def chosen(self, number):
        """Returns one of the calls that have not ended."""
        live = [call for call in self.calls if call.ended is None]
        return live[number % len(live)] if live else None

    async def advance(self, taken):
        step, argument, turns = taken
        if step == "pass time":
            await anyio.sleep(argument)
        else:
            self.do(step, argument)
        if self.is_exact:
            await let_all_tasks_run(30)
            self.model.pass_time(anyio.current_time())
            self.compare()
        else:
            for _ in range(turns):
                await checkpoint()
                self.check()

    def do(self, step, argument):
        self.model.now = anyio.current_time()
        if step == "next":
            self.outcomes[argument[0]] = self.model.outcomes[argument[0]] = argument[1]
        elif step == "cancel":
            if (call := self.chosen(argument)) is not None and call.kind != "stop":
                call.scope.cancel()
                self.predict_cancellation(call)
        else:
            getattr(self, step.replace(" ", "_"))(argument)

    def compare_calls(self):
        for call in self.calls:
            expected = self.model.expected.get(call)
            assert call.ended == expected, f"{call.kind}: {call.ended}, not {expected}"

    def check(self):
        """Checks what holds at any time, even if tasks can run."""

    async def end(self, holder):
        self.outcomes.clear()
        for call in self.calls:
            call.leave.set()
        await let_all_tasks_run()
        await holder.stop()
        assert not any(manager.is_acquired for manager in self.managers), "3: a connection is open"
        await let_all_tasks_run()
        attempts = sum(len(manager.entered) for manager in self.managers)
        await anyio.sleep(1000)  # would begin another attempt
        await let_all_tasks_run()
        assert sum(len(manager.entered) for manager in self.managers) == attempts
        assert all(call.ended is not None for call in self.calls), "7: a call is still waiting"
        for manager in self.managers:
            assert manager.entered == manager.exited, "8: entered and exited once each"
        async with ConnectionGroup(dict(enumerate(self.managers))) as connections:
            assert len(connections) == len(self.managers), "a manager is still in use"


class GroupHarness(Harness):
    def __init__(self, tasks, *, exact, strict, limit, policy=None):
        super().__init__(tasks, exact=exact)
        self.policy = policy
        self.group = ConnectionGroup(
            {0: self.create(0), 1: self.create(1, reconnect=policy)},
            strict=strict,
            member_timeout=MEMBER_TIMEOUT,
            max_concurrent_starts=limit,
        )
        model = partial(GroupModel, [0, 1], strict=strict, timeout=MEMBER_TIMEOUT, limit=limit)
        self.model = model() if exact else NoModel()

    def start(self, _):
        async def start(_call):
            await self.group.start()

        self.model.start(self.begin("start", start))

    def stop(self, _):
        async def stop(_call):
            await self.group.stop()

        self.model.stop(self.begin("stop", stop))

    def add(self, key):
        manager = self.create(key)

        async def add(_call):
            await self.group.add(key, manager)

        self.model.add(self.begin("add", add), key)

    def remove(self, key):
        async def remove(_call):
            await self.group.remove(key)

        self.model.remove(self.begin("remove", remove), key)

    def member(self, key):
        """Returns a member if it can be started alone: the group is open."""
        is_alone = self.group.state is not ConnectionState.OPEN or (
            self.is_exact and key in self.model.adding
        )
        return None if is_alone else self.group.managers.get(key)

    def start_member(self, key):
        if (manager := self.member(key)) is not None:

            async def start(_call):
                await manager.start()

            self.model.start_member(self.begin("start member", start), key)

    def stop_member(self, key):
        if (manager := self.member(key)) is not None:

            async def stop(_call):
                await manager.stop()

            self.model.stop_member(self.begin("stop member", stop), key)

    def lose(self, key):
        manager = self.group.managers.get(key)
        if manager is not None and is_open(manager):
            manager.connection_lost(Boom("lost"))
            self.model.lose(key)

    def predict_cancellation(self, call):
        self.model.cancel(call)

    def compare(self):
        model = self.model
        assert self.group.state.value == model.state
        failure = self.group.exception
        assert (failure and type(failure).__name__) == model.failure
        assert list(self.group.managers) == list(model.members)
        for key, manager in self.group.managers.items():
            member = model.members[key]
            states = {"closed": {"closed", "new"}, "either": {"closed", "new", "failed"}}
            state = member.before if member.state == "queued" else member.state
            assert manager.state.value in states.get(state, {state}), key
        certain = {key: each for key, each in model.members.items() if each.state != "either"}
        failures = {
            key: type(error).__name__ for key, error in self.group.failures.items() if key in certain
        }
        assert failures == {key: each.failure for key, each in certain.items() if each.failure}
        self.compare_calls()
        self.check()

    def check(self):
        if self.group.state is ConnectionState.OPEN:
            managers = self.group.managers
            is_open = {key for key, each in managers.items() if each.state is ConnectionState.OPEN}
            assert set(self.group.connection) == is_open


class PoolHarness(Harness):
    def __init__(self, tasks, *, exact, max_open, idle_timeout, policy=None):
        super().__init__(tasks, exact=exact)
        self.policy = policy
        self.max_open = max_open
        self.pool = ConnectionPool(self.open_one, max_open=max_open, idle_timeout=idle_timeout)
        model = partial(PoolModel, max_open=max_open, idle_timeout=idle_timeout)
        self.model = model() if exact else NoModel()

    def open_one(self, key):
        manager = self.create(key, reconnect=self.policy)
        manager.number = len(self.managers)
        return manager

    def acquire(self, argument):
        key, timeout = argument

        async def acquire(call):
            async with self.pool.acquire(key, timeout) as connection:
                is_that = [
                    each for each in self.managers if is_open(each) and each.connection is connection
                ]
                assert is_that, "G6: a user got a connection that is not open"
                call.number = is_that[0].number
                call.is_inside = True
                await call.leave.wait()

        self.model.acquire(self.begin("acquire", acquire), key, timeout)

    def leave(self, number):
        inside = [call for call in self.calls if call.is_inside and call.ended is None]
        if inside:
            call = inside[number % len(inside)]
            call.is_inside = False
            call.leave.set()
            self.model.leave(call, "returned")

    def discard(self, key):
        async def discard(_call):
            await self.pool.discard(key)

        self.model.end(self.begin("discard", discard), "returned")
        self.model.discard(key)

    def lose(self, number):
        live = [manager for manager in self.managers if is_open(manager)]
        if live:
            manager = live[number % len(live)]
            manager.connection_lost(Boom("lost"))
            self.model.lose(manager.number)

    def start(self, _):
        async def start(_call):
            await self.pool.start()

        self.model.end(self.begin("start", start), "returned")
        self.model.start()

    def stop(self, _):
        async def stop(_call):
            await self.pool.stop()

        self.model.end(self.begin("stop", stop), "returned")
        self.model.stop()

    def predict_cancellation(self, call):
        self.model.leave(call, "cancelled")

    def compare(self):
        for call in self.calls:
            ended = call.ended if call.ended is not None or not call.is_inside else call.number
            expected = self.model.expected.get(call)
            assert ended == expected, f"{call.kind}: {ended}, not {expected}"
        assert tuple(self.pool.stats()) == self.model.stats()
        alive = {manager.number for manager in self.managers if manager.is_acquired}
        assert alive == {entry.number for entry in self.model.with_slot}
        self.check()

    def check(self):
        alive = sum(manager.is_acquired for manager in self.managers)
        assert self.max_open is None or alive <= self.max_open, f"{alive} connections exist"
        stats = self.pool.stats()
        assert 0 <= stats.idle <= stats.open <= alive
        assert stats.waiting >= 0


def is_open(manager):
    return manager.state is ConnectionState.OPEN


async def play(create, sequence, *, exact, **options):
    async with anyio.create_task_group() as tg:
        harness = create(tg, exact=exact, **options)
        for taken in sequence:
            await harness.advance(taken)
        await harness.end(harness.group if isinstance(harness, GroupHarness) else harness.pool)
        tg.cancel_scope.cancel()


def run(clock, function, *args, **options):
    try:
        clocks.run(partial(function, *args, **options), clock=clock)
    except BaseExceptionGroup as group:
        raise innermost(group) from None


def sequences(steps, *, exact):
    """Returns a strategy for lists of steps. The outcomes are chosen first, and then a call starts."""
    turns = st.just(0) if exact else st.integers(0, 4)
    taken = st.tuples(steps, turns).map(lambda pair: (*pair[0], pair[1]))
    chosen = st.tuples(*[outcomes] * 4).map(lambda each: [("next", pair, 0) for pair in enumerate(each)])
    following = st.lists(taken, min_size=15, max_size=40)
    return st.tuples(chosen, following).map(lambda pair: [*pair[0], ("start", None, 1), *pair[1]])


strictness = st.booleans()
limits = st.sampled_from([None, 1, 2])
bounds = st.sampled_from([None, 1, 2, 2, 3])


@clock
def test_a_group_matches_the_model_whenever_no_task_can_run(clock, record_property):
    taken = 0

    @searched(40)
    @given(sequences(steps_of_a_group, exact=True), strictness, limits)
    def search(sequence, strict, limit):
        nonlocal taken
        taken += len(sequence)
        run(clock, play, GroupHarness, sequence, exact=True, strict=strict, limit=limit)

    search()
    record_property("random steps of groups", taken)


@clock
def test_G5_a_pool_matches_the_model_whenever_no_task_can_run(clock, record_property):
    taken = 0

    @searched(60)
    @given(sequences(steps_of_a_pool, exact=True), bounds, st.sampled_from(IDLE_TIMEOUTS))
    def search(sequence, max_open, idle_timeout):
        nonlocal taken
        taken += len(sequence)
        options = {"max_open": max_open, "idle_timeout": idle_timeout}
        run(clock, play, PoolHarness, sequence, exact=True, **options)

    search()
    record_property("random steps of pools", taken)


@clock
def test_G4_a_group_leaves_nothing_when_calls_and_failures_race(clock, record_property):
    taken = 0

    @searched(40)
    @given(sequences(steps_of_a_group, exact=False), strictness, limits, st.sampled_from([None, POLICY]))
    def search(sequence, strict, limit, policy):
        nonlocal taken
        taken += len(sequence)
        options = {"strict": strict, "limit": limit, "policy": policy}
        run(clock, play, GroupHarness, sequence, exact=False, **options)

    search()
    record_property("random steps of groups", taken)


@clock
def test_G5_a_pool_leaves_nothing_when_calls_and_failures_race(clock, record_property):
    taken = 0

    @searched(40)
    @given(
        sequences(steps_of_a_pool, exact=False),
        bounds,
        st.sampled_from([*IDLE_TIMEOUTS, 0]),
        st.sampled_from([None, POLICY]),
    )
    def search(sequence, max_open, idle_timeout, policy):
        nonlocal taken
        taken += len(sequence)
        options = {"max_open": max_open, "idle_timeout": idle_timeout, "policy": policy}
        run(clock, play, PoolHarness, sequence, exact=False, **options)

    search()
    record_property("random steps of pools", taken)
