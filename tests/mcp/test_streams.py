"""What whoever reads a watched stream makes known."""

import anyio
import pytest

from mooring.mcp.streams import watched


@pytest.mark.parametrize("way", ["receive", "iterate"])
async def test_the_end_and_an_exception_in_place_of_a_message_are_told_once_they_are_read(way):
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


async def test_what_else_a_stream_has_is_still_there():
    writer, reader = anyio.create_memory_object_stream(1)
    async with writer, reader:
        read_stream, _ = watched((reader, writer), lambda: None)
        assert read_stream.statistics().open_send_streams == 1
        await writer.send(ValueError("nobody minds"))
        assert isinstance(await read_stream.receive(), ValueError)
        await read_stream.aclose()
