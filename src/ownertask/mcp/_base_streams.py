"""The base classes of the streams that ownertask's own transports yield."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Self

from anyio import EndOfStream

if TYPE_CHECKING:
    from mcp.shared.message import SessionMessage

__all__ = ["BaseReadStream", "BaseStream"]


class BaseStream:
    """The base class of the streams that ownertask's own transports yield.

    Attributes:
        is_closed: Whether further calls raise `ClosedResourceError`.
    """

    is_closed: bool = False

    def close(self) -> None:
        """Refuses further calls."""
        self.is_closed = True

    async def aclose(self) -> None:
        """Refuses further calls."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()


class BaseReadStream(BaseStream, ABC):
    """A stream of messages."""

    last_context = None  # the SDK looks it up with each message

    @abstractmethod
    async def receive(self) -> "SessionMessage | Exception":
        """Returns the next message."""

    async def __anext__(self) -> "SessionMessage | Exception":
        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None

    def __aiter__(self) -> Self:
        return self
