"""Finds resources that a connection, or any other code, left behind."""

from .._arguments import checked_seconds
from ._leaks import Snapshot, what_is_left

__all__ = ["Resources"]


class Resources:
    """Finds the tasks, threads, descriptors and processes that did not exist when it was created.

    Use it to check that opening and closing a connection leaves nothing behind.

    Tasks are compared in the running event loop. The other resources are compared in the whole process,
    so nothing else in the process should open or close anything at the same time. Idle worker threads of
    asyncio, anyio and trio do not count, nor do resources that only wait for the garbage collector.
    Processes are compared on Linux only, descriptors on Linux and on systems with `/dev/fd`.

    Some libraries open resources when they are first used, and keep them. uvloop opens descriptors when
    the network is first used, and each time that the event loop begins to run. If `left()` reports such
    resources, use the library once before you create this object.

    Example:
        ```python
        before = Resources()
        async with manager:
            before.look()
        assert await before.left() == []
        ```
    """

    def __init__(self) -> None:
        """Records the resources that exist now.

        Raises:
            anyio.NoEventLoopError: No event loop is running.
        """
        self._before = Snapshot()

    def look(self) -> None:
        """Remembers the new processes that exist now, including descendants of children.

        Call it while the connection is open. After a child process has exited, the operating system no
        longer shows that its descendants belong to this process. So without this call, `left()` would
        not find a server that keeps running after its launcher has exited.
        """
        self._before.look()

    async def left(self, within: float = 2.0) -> list[str]:
        """Waits until no new resource is left, or until the time limit is reached.

        The task that calls this method does not count. The method may be called again.

        Args:
            within: Maximum time for resources to disappear, in seconds; 0 does not wait. For example, a
                worker thread takes time to end. `math.inf` waits indefinitely.

        Returns:
            Descriptions of the new resources that still exist, in alphabetical order.

        Raises:
            TypeError: `within` is not a number.
            ValueError: `within` is negative or NaN.
        """
        left = await what_is_left(self._before, checked_seconds("within", within))
        return sorted(description for kind in left.values() for description in kind)
