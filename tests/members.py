"""Managers to use as members of groups, and checks that apply to every group.

Tests that measure time run in virtual time. Their functions may use hours.
"""

from contextlib import asynccontextmanager

from anyio.lowlevel import checkpoint
from probe import Probe, Stage
from reopening import settle

from ownertask import ConnectionManager, ConnectionState

HOUR = 3600

NOT_ALIVE = {ConnectionState.NEW, ConnectionState.CLOSED, ConnectionState.FAILED}


class Member(Probe):
    """A probe that counts how often its connection closed without being cancelled.

    Args:
        name: The name of the manager.
        opening: Awaited while it opens.
        closing: Awaited while it closes.
        policy: The `reconnect` policy.
    """

    def __init__(self, name="member", opening=checkpoint, closing=checkpoint, *, policy=None):
        super().__init__(opening, self._close, name=name)
        self.close = closing
        self.graceful = 0
        self.reconnect = policy

    async def _close(self):
        await self.close()
        self.graceful += 1


class Outer(ConnectionManager[object]):
    """Opens another manager's connection inside its own run."""

    def __init__(self, inner, name="outer"):
        super().__init__(name=name)
        self.inner = inner

    def open_connection(self):
        return self.open_inner(self.inner)


def members(*keys):
    """Returns a member for each key."""
    return {key: Member(f"member {key}") for key in keys}


@asynccontextmanager
async def stuck():
    """Yields a stage that cannot be cancelled. It ends with the block, even if the test fails."""
    stage = Stage(shield=True)
    try:
        yield stage
    finally:
        stage.let_go.set()
        await settle()


async def at_each_step(scenario, at_most=500):
    """Calls `scenario` again and again, so that it can interrupt a call at each step of the event loop.

    Its argument is an async function that waits for 0, 1, 2, ... steps. The scenario returns whether the
    call was still waiting after these steps. If the call waits forever, `at_most` ends the search.
    """
    for number in range(at_most):

        async def steps(number=number):
            for _ in range(number):
                await checkpoint()

        print("steps:", number)
        if not await scenario(steps):
            assert number > 2, "the call was never interrupted"
            return
    assert at_most < 500, "the call does not end"


def assert_consistent(group):
    """Checks the conditions that an open group meets at any time."""
    view = group.connection
    assert set(view) == {
        key for key, member in group.managers.items() if member.state is ConnectionState.OPEN
    }
    assert len(view) == len(list(view))
    for key, connection in view.items():
        assert group.managers[key].connection is connection
    assert not set(group.failures) & set(view)
    assert set(group.failures) <= set(group.managers)


def assert_ended(*managers):
    for manager in managers:
        assert manager.state in NOT_ALIVE, f"{manager.name} is {manager.state.value}"
        assert manager.reconnecting is None
        assert not getattr(manager, "is_acquired", False), f"{manager.name} was not closed"


async def assert_over(group, *others):
    """Checks that nothing of a group and of other members is alive, and that each member can be used."""
    managers = (*group.managers.values(), *others)
    assert_ended(group, *managers)
    await settle()
    assert_ended(group, *managers)
    for manager in managers:
        if isinstance(manager, Member):
            manager.opening = manager.close = checkpoint
            manager.reconnect = manager.start_timeout = None
            await manager.start()
            await manager.stop()
