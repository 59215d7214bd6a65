"""Cases that a search in groups and pools found, or that its author met while writing it."""

import anyio
import pytest
from anyio.lowlevel import checkpoint
from probe import Probe, raises
from proof import clocks
from proof.many import lasting, shielded
from proof.search import clock

from ownertask import (
    ConnectionGroup,
    ConnectionPool,
    ConnectionState,
    ConnectionStoppedError,
    ReconnectPolicy,
)


@clock
def test_a_member_of_a_strict_group_can_be_removed_while_it_is_late(clock):
    async def main():
        stubborn = Probe(opening=shielded(8))
        group = ConnectionGroup({"stubborn": stubborn, "other": Probe()}, strict=True, member_timeout=5)

        async def remove():
            await anyio.sleep(1)
            await group.remove("stubborn")

        async with anyio.create_task_group() as tg:
            tg.start_soon(remove)
            assert set(await group.start()) == {"other"}
        await group.stop()

    clocks.run(main, clock=clock)


@clock
def test_the_totals_of_a_pool_do_not_go_back_while_it_closes(clock):
    async def main():
        pool = ConnectionPool(lambda _key: Probe(closing=lasting(3)))
        await pool.start()
        async with pool.acquire("a"):
            pass
        async with anyio.create_task_group() as tg:
            tg.start_soon(pool.stop)
            await anyio.sleep(1)
            assert pool.stats().opened == 1
        assert pool.stats().opened == 1

    clocks.run(main, clock=clock)


@clock
def test_a_user_of_a_member_that_is_stopped_gets_another_one_without_spinning(clock):
    async def main():
        created = []

        def create(_key):
            created.append(Probe(closing=lasting(3)))
            created[-1].reconnect = ReconnectPolicy()
            return created[-1]

        async with ConnectionPool(create) as pool, anyio.create_task_group() as tg:
            async with pool.acquire("a"):
                pass
            tg.start_soon(created[0].stop)
            for _ in range(5):
                await checkpoint()
            with anyio.fail_after(10):
                async with pool.acquire("a"):
                    assert len(created) == 2

    clocks.run(main, clock=clock)


@clock
def test_stop_does_not_report_a_removed_member_that_its_owner_has_started_again(clock):
    async def main():
        removed = Probe(closing=lasting(1))
        group = ConnectionGroup({"removed": removed, "other": Probe(closing=lasting(3))})
        await group.start()

        async def remove():
            await group.remove("removed")
            await removed.start()

        async with anyio.create_task_group() as tg:
            tg.start_soon(remove)
            await checkpoint()
            tg.start_soon(group.stop)
        assert removed.is_acquired
        await removed.stop()

    clocks.run(main, clock=clock)


@clock
def test_a_connection_that_is_opened_again_is_not_idle_for_the_user_who_waits_for_it(clock):
    async def main():
        created = []

        def create(_key):
            created.append(Probe())
            created[-1].reconnect = ReconnectPolicy(initial_delay=3, jitter=0)
            return created[-1]

        async with ConnectionPool(create, idle_timeout=2) as pool:
            async with pool.acquire("a"):
                pass
            created[0].connection_lost(OSError("gone"))
            await anyio.sleep(1)
            async with pool.acquire("a"):
                assert len(created) == 1
            assert pool.stats().idle == 1

    clocks.run(main, clock=clock)


@clock
def test_stop_ends_a_wait_for_a_slot_before_the_connections_are_closed(clock):
    async def main():
        pool = ConnectionPool(lambda _key: Probe(closing=lasting(5)), max_open=1)
        await pool.start()
        async with anyio.create_task_group() as tg, pool.acquire("a"):

            async def wait():
                with pytest.raises(ConnectionStoppedError):
                    async with pool.acquire("b"):
                        pass
                assert anyio.current_time() - began < 1

            tg.start_soon(wait)
            await anyio.sleep(1)
            began = anyio.current_time()
            await pool.stop()

    clocks.run(main, clock=clock)


@clock
def test_a_connection_that_cannot_be_closed_does_not_end_the_pool(clock):
    async def main():
        async with ConnectionPool(lambda _key: Probe(closing=shielded(100)), idle_timeout=1) as pool:
            async with pool.acquire("a"):
                pass
            await anyio.sleep(80)  # more than the time for closing and the grace
            async with pool.acquire("b"):
                assert pool.state is ConnectionState.OPEN
            await anyio.sleep(200)  # until both are closed

    clocks.run(main, clock=clock)


@clock
def test_a_late_member_that_has_opened_and_was_stopped_is_not_a_failure(clock):
    async def main():
        late = Probe(opening=lasting(8))
        late.reconnect = ReconnectPolicy()
        group = ConnectionGroup({"late": late}, member_timeout=5)
        async with group:
            assert set(group.failures) == {"late"}
            await late.wait_open()
            for _ in range(5):
                await checkpoint()
            await late.stop()
            assert not group.failures

    clocks.run(main, clock=clock)


@clock
def test_a_strict_group_survives_a_member_whose_own_stop_fails(clock):
    async def main():
        member = Probe(closing=raises(OSError("refused")))
        group = ConnectionGroup({"member": member}, strict=True)
        async with group:
            await member.stop()
            for _ in range(5):
                await checkpoint()
            assert member.state is ConnectionState.FAILED
            assert group.state is ConnectionState.OPEN

    clocks.run(main, clock=clock)


@clock
def test_a_strict_start_raises_the_first_of_two_failures(clock):
    async def main():
        members = {
            error: Probe(opening=raises(error)) for error in (OSError("first"), OSError("second"))
        }
        with pytest.raises(OSError, match="first"):
            await ConnectionGroup(members, strict=True).start()

    clocks.run(main, clock=clock)


@clock
def test_add_waits_for_its_turn_and_ends_when_the_group_stops(clock):
    async def main():
        first, second = Probe(opening=lasting(3)), Probe(opening=lasting(3))
        group = ConnectionGroup({}, max_concurrent_starts=1)
        await group.start()

        async def add(key, manager):
            with pytest.raises(ConnectionStoppedError):
                await group.add(key, manager)
            assert not manager.is_acquired

        async with anyio.create_task_group() as tg:
            tg.start_soon(add, "first", first)
            await anyio.sleep(1)
            tg.start_soon(add, "second", second)
            await anyio.sleep(1)
            assert first.entered
            assert not second.entered
            await group.stop()
        assert not second.entered

    clocks.run(main, clock=clock)
