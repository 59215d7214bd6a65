"""Raises each odd exception at each stage, with each fault of a log handler."""

import anyio
import pytest
from proof import clocks
from proof.nested import World, faulty_logging, set_log_fault
from proof.odd import ODD, REPLACED, leaf_of
from proof.search import IS_LONG, clock, let_all_tasks_run

from ownertask import ConnectionLostError, ConnectionState

FAULTS = ["", "filter", "handler", "formatter"]


class Ending:
    """A manager that opens another one, and an odd exception that ends its run."""

    def __init__(self, name):
        self.name = name
        self.error = ODD[name]()
        self.world = World(exact=False)
        self.outer, self.inner = self.world.managers[:2]
        self.outer.inside = [self.inner]
        self.caught = []

    async def collect(self, function):
        try:
            await function()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            self.caught.append(error)

    def script(self, manager, *stages):
        manager.script = iter(stages)

    # How the run ends.

    async def fails_to_open(self):
        self.script(self.outer, self.name)
        await self.collect(self.outer.start)

    async def inner_one_fails_to_open(self):
        self.script(self.inner, self.name)
        await self.collect(self.outer.start)

    async def fails_to_close(self):
        self.script(self.outer, "ok", self.name)
        await self.outer.start()
        await self.outer.stop()

    async def inner_one_fails_to_close(self):
        self.script(self.inner, "ok", self.name)
        await self.outer.start()
        await self.outer.stop()

    async def is_lost(self):
        await self.outer.start()
        self.inner.connection_lost(self.error)

    async def is_lost_and_fails_to_close(self):
        self.script(self.outer, "ok", self.name)
        await self.outer.start()
        self.inner.connection_lost(self.error)

    async def is_lost_while_opening(self):
        self.script(self.outer, "hang")
        self.world.spawn(self.collect, self.outer.start)
        await let_all_tasks_run()
        self.inner.connection_lost(self.error)

    # What must hold after it.

    async def check(self):
        await let_all_tasks_run()
        for manager in (self.outer, self.inner):
            assert not manager.is_alive, f"it is still {manager.state}"
            assert not manager.alive, "it is still open"
        assert self.outer.state is ConnectionState.FAILED
        expected = [self.error, *(error for _, error in self.outer.root.errors)]
        expected += [leaf_of(error) for error in expected]
        await self.collect(self.outer.wait_closed)
        assert self.caught, "wait_closed() raised nothing"
        for error in [self.outer.exception, *self.caught]:
            chain = [error, error.__cause__] if type(error) is ConnectionLostError else [error]
            arrived = any(each is other for each in chain for other in expected)
            assert arrived or self.name in REPLACED, f"{type(error)} arrived instead"
        self.world.is_ending = True
        for manager in (self.inner, self.outer):
            async with manager as connection:
                assert manager.connection is connection, "the manager cannot be used again"
        assert not self.world.problems, self.world.problems[0]


ENDINGS = [name for name, value in vars(Ending).items() if "_" in name and not name.startswith("__")]


@clock
@pytest.mark.parametrize("ending", ENDINGS)
def test_F1_a_run_ends_and_its_exception_arrives_whatever_the_exception_does(
    clock, ending, record_property
):
    failures = []

    async def play(name, fault):
        odd = Ending(name)
        try:
            with anyio.fail_after(100):
                set_log_fault(fault)
                await getattr(odd, ending)()
                await odd.check()
        finally:
            set_log_fault("")

    taken = 0
    with faulty_logging():
        for number, name in enumerate(sorted(ODD)):
            for fault in FAULTS if IS_LONG else FAULTS[number % 4 :][:1]:
                taken += 1
                try:
                    clocks.run(play, name, fault, clock=clock)
                except BaseException as error:
                    failures.append(f"{name}, {fault or 'no'} fault of the log: {type(error)}")
    assert not failures, f"{len(failures)} of {taken} failed:\n" + "\n".join(failures)
    record_property("odd endings", taken)
