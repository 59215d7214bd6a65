"""Tests for watched streams, which report their end and otherwise act like the SDK's streams."""

import anyio
import pytest

from ownertask import ConnectionManager, ConnectionState
from ownertask.mcp.streams import watched


class Ends:
    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1


def stream_of(*messages):
    sender, receiver = anyio.create_memory_object_stream(len(messages))
    for message in messages:
        sender.send_nowait(message)
    sender.close()
    return receiver


async def test_iteration_and_receive_call_on_end_when_they_reach_the_end():
    ends = Ends()
    reader, writer = watched((stream_of(1, 2), "writer"), ends)
    assert writer == "writer"
    async with reader:
        assert [message async for message in reader] == [1, 2]
        assert ends.count == 1
        with pytest.raises(anyio.EndOfStream):
            await reader.receive()
        assert ends.count == 2
    with pytest.raises(anyio.ClosedResourceError):
        await reader.receive()


@pytest.mark.parametrize("way", ["receive", "iterate"])
async def test_callbacks_are_called_when_an_exception_or_the_end_is_read(way):
    writer, reader = anyio.create_memory_object_stream(5)
    told = []
    async with writer:
        read_stream, write_stream = watched((reader, writer), lambda: told.append("end"), told.append)
        assert write_stream is writer
        error = ValueError("no message")
        for item in ("message", error):
            await writer.send(item)
    async with read_stream:
        if way == "receive":
            assert [await read_stream.receive(), await read_stream.receive()] == ["message", error]
            assert told == [error]
            with pytest.raises(anyio.EndOfStream):
                await read_stream.receive()
        else:
            assert [item async for item in read_stream] == ["message", error]
    assert told == [error, "end"]
    with pytest.raises(anyio.ClosedResourceError):
        await reader.receive()


async def test_messages_and_exceptions_are_passed_on_unchanged():
    ends, error = Ends(), ValueError("no JSON")
    reader, _ = watched((stream_of(error, 2), None), ends)
    assert await reader.receive() is error
    assert await anext(reader) == 2
    await reader.aclose()
    assert ends.count == 0


async def test_other_attributes_of_the_stream_are_available():
    class Stream:
        last_context = None

        async def receive(self):
            self.last_context = "the caller's"

    reader, _ = watched((Stream(), None), Ends())
    assert reader.last_context is None
    await reader.receive()
    assert reader.last_context == "the caller's"
    reader, _ = watched((stream_of(1), None), Ends())
    assert getattr(reader, "last_context", None) is None
    assert reader.statistics().current_buffer_used == 1
    assert reader.receive_nowait() == 1
    await reader.aclose()


async def test_a_fact_is_added_once_as_a_note_to_the_error_of_its_run():
    class Knowing(ConnectionManager[int]):
        def open_connection(self):
            return self

        async def __aenter__(self):
            self._add_fact("the moon is full")
            self._add_fact("the moon is full")
            return 1

        async def __aexit__(self, *_):
            return None

    manager = Knowing()
    manager._add_fact("there is no run yet")
    await manager.start()
    manager.connection_lost(OSError("gone"))
    for _ in range(2):
        with pytest.raises(Exception, match="lost") as caught:
            await manager.wait_closed()
        assert caught.value.__notes__ == ["the moon is full"]
    await manager.start()
    await manager.stop()
    assert manager.state is ConnectionState.CLOSED
