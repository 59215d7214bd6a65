"""Tests for watched streams, which report their end and otherwise act like the SDK's streams."""

import copy

import anyio
import pytest

from ownertask import ConnectionManager, ConnectionState
from ownertask.mcp.streams import observed, watched, watched_for_writing


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


async def read_by_iterating(reader):
    return [item async for item in reader]


async def read_by_receive(reader):
    items = []
    with pytest.raises(anyio.EndOfStream):
        while True:
            items.append(await reader.receive())
    return items


async def read_by_receive_nowait(reader):
    items = []
    with pytest.raises(anyio.EndOfStream):
        while True:
            items.append(reader.receive_nowait())
    return items


@pytest.mark.parametrize("read", [read_by_iterating, read_by_receive, read_by_receive_nowait])
@pytest.mark.parametrize(
    "duplicate",
    [
        lambda reader: reader,
        lambda reader: reader.clone(),
        copy.copy,
        lambda reader: reader.clone().clone(),
        lambda reader: copy.copy(reader.clone()),
        lambda reader: copy.copy(reader).clone(),
    ],
    ids=["itself", "clone", "copy", "clone of a clone", "copy of a clone", "clone of a copy"],
)
# The copy of a memory stream counts as a stream of its own that nobody has closed.
@pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_F16_callbacks_are_called_whichever_way_the_stream_is_read(duplicate, read):
    told = []
    error = ValueError("no message")
    original, _ = watched((stream_of(1, error, 2), None), lambda: told.append("end"), told.append)
    reader = duplicate(original)
    assert await read(reader) == [1, error, 2]
    assert told == [error, "end"]
    reader.close()
    original.close()


async def test_F16_a_clone_is_closed_on_its_own_as_a_clone_of_the_stream_itself():
    ends = Ends()
    sender, receiver = anyio.create_memory_object_stream(1)
    original, _ = watched((receiver, None), ends)
    with sender, original:
        with original.clone() as clone:
            assert original.statistics().open_receive_streams == 2
            sender.send_nowait(1)
            assert clone.receive_nowait() == 1
            with pytest.raises(anyio.WouldBlock):
                clone.receive_nowait()
        with pytest.raises(anyio.ClosedResourceError):
            clone.receive_nowait()
        with pytest.raises(anyio.ClosedResourceError):
            clone.clone()
        assert original.statistics().open_receive_streams == 1
        sender.send_nowait(2)
        assert await original.receive() == 2
    assert ends.count == 0
    with pytest.raises(anyio.ClosedResourceError):
        original.receive_nowait()


async def test_F16_a_watched_stream_has_no_method_that_the_stream_lacks_and_can_be_copied_all_the_same():
    class Stream:
        async def receive(self):
            raise anyio.EndOfStream

        async def aclose(self):
            pass

    ends = Ends()
    reader, _ = watched((Stream(), None), ends)
    for name in ("receive_nowait", "clone", "close", "statistics", "__deepcopy__", "__setstate__", "_x"):
        assert not hasattr(reader, name)
    duplicate = copy.copy(reader)
    assert not hasattr(duplicate, "clone")
    assert [item async for item in duplicate] == []
    assert ends.count == 1


@pytest.mark.parametrize("read", [read_by_iterating, read_by_receive, read_by_receive_nowait])
async def test_F21_a_stream_that_is_watched_twice_calls_back_to_both_without_another_layer(read):
    told = []
    error = ValueError("no message")
    inner, writer = watched(
        (stream_of(1, error), "writer"), lambda: told.append("first"), lambda _: told.append(1)
    )
    outer, same_writer = watched(
        (inner, writer), lambda: told.append("second"), lambda _: told.append(2), told.append
    )
    assert same_writer == "writer"
    assert outer._stream is inner._stream
    assert await read(outer) == [1, error]
    assert told == [1, 2, "first", "second"]
    await outer.aclose()
    assert told == [1, 2, "first", "second"]  # a reader that reached the end does not leave early


@pytest.mark.parametrize("failure", [None, anyio.EndOfStream, anyio.ClosedResourceError])
@pytest.mark.parametrize("way", ["aclose", "close", "async with", "with", "async with an error"])
async def test_H6_leaving_a_stream_calls_on_left_unless_the_reader_reached_the_end(failure, way):
    told = []
    sender, receiver = anyio.create_memory_object_stream(1)
    with sender:
        reader, _ = watched((receiver, None), Ends(), on_left=lambda *left: told.append(left))
        with pytest.raises(anyio.WouldBlock):
            reader.receive_nowait()
        if failure is not None:
            (sender if failure is anyio.EndOfStream else receiver).close()
            with pytest.raises(failure):
                await reader.receive()
        clone = None if failure is anyio.ClosedResourceError else reader.clone()
        error = None
        if way == "aclose":
            await reader.aclose()
        elif way == "close":
            reader.close()
        elif way == "with":
            with reader:
                pass
        elif way == "async with":
            async with reader:
                pass
        else:
            error = LookupError("a bug")
            with pytest.raises(LookupError):
                async with reader:
                    raise error
        expected = [] if failure is anyio.EndOfStream else [(error, failure)]
        assert told == expected
        if clone is not None:
            clone.close()
        assert told == expected


@pytest.mark.parametrize("way", ["aclose", "async with"])
async def test_F21_a_write_stream_calls_back_only_when_it_accepts_no_more_messages(way):
    breaks = Ends()
    sender, receiver = anyio.create_memory_object_stream(1)
    same_reader, writer = watched_for_writing((receiver, sender), breaks)
    assert same_reader is receiver
    await writer.send(1)
    assert await receiver.receive() == 1
    assert breaks.count == 0
    receiver.close()
    with pytest.raises(anyio.BrokenResourceError):
        await writer.send(2)
    assert breaks.count == 1
    if way == "aclose":
        await writer.aclose()
    else:
        async with writer as entered:
            assert entered is writer
    with pytest.raises(anyio.ClosedResourceError):
        await writer.send(3)
    assert breaks.count == 2


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


@pytest.mark.parametrize("way", ["receive", "iterate"])
async def test_an_observer_sees_each_message_that_is_read_during_its_block(way):
    class Observer:
        def reading(self):
            seen.append("reading")

        def received(self, item, *, answers_itself):
            seen.append(item)

    async def read():
        return await (reader.receive() if way == "receive" else reader.__anext__())

    seen = []
    reader, _ = watched((stream_of(1, 2, 3), "writer"), Ends())
    async with reader:
        assert await read() == 1
        with observed(reader, Observer()) as is_observed:
            assert is_observed
            assert await read() == 2
        assert await read() == 3
    assert seen == ["reading", 2]
