"""What ownertask itself raises. What a connection raises keeps its own type.

```
ConnectionManagerError(Exception)
├── NotConnectedError(RuntimeError)
├── ConnectionStoppedError
├── ConnectionLostError
├── StartTimeoutError(TimeoutError)
├── StopTimeoutError(TimeoutError)
├── WrongEventLoopError(RuntimeError)
└── OwnerTaskError(RuntimeError)
```

Every error names its manager, in its text and as `name`, and can be pickled.
"""

from typing import Any, Self, TypeVar

from .state import ConnectionState

__all__ = [
    "ConnectionLostError",
    "ConnectionManagerError",
    "ConnectionStoppedError",
    "NotConnectedError",
    "OwnerTaskError",
    "StartTimeoutError",
    "StopTimeoutError",
    "WrongEventLoopError",
]


class ConnectionManagerError(Exception):
    """The base of all errors of ownertask's own.

    Attributes:
        name: The name of the manager.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name

    # `args` holds the finished text, which is not what the constructors take.
    # Any: the attributes of subclasses are of any type, here as in object.__reduce__.
    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args), self.__dict__.copy()

    def built_anew(self) -> Self:
        """An equal error without traceback or context, so that each raise starts clean."""
        rebuilt = _rebuild(type(self), self.args)
        rebuilt.__dict__.update(self.__dict__)
        rebuilt.__cause__ = self.__cause__
        return rebuilt


E = TypeVar("E", bound=ConnectionManagerError)


def _rebuild(kind: type[E], args: tuple[object, ...]) -> E:
    error = kind.__new__(kind)
    error.args = args
    return error


class NotConnectedError(ConnectionManagerError, RuntimeError):
    """`connection` was read while nothing is open.

    Attributes:
        state: The state that the manager was in.
    """

    def __init__(self, name: str, state: ConnectionState) -> None:
        super().__init__(name, f"not connected (state: {state.value}); call start() first")
        self.state = state


class ConnectionStoppedError(ConnectionManagerError):
    """The run that `start()` waited for was stopped by somebody."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "stop() was called while start() was waiting for the connection")


class ConnectionLostError(ConnectionManagerError):
    """The connection ended, and nobody had asked for it.

    `__cause__` is the reason, if one is known.
    """

    def __init__(self, name: str, message: str = "the connection was lost") -> None:
        super().__init__(name, message)


class StartTimeoutError(ConnectionManagerError, TimeoutError):
    """The connection was not open in time.

    Attributes:
        timeout: The bound that was exceeded, in seconds.
    """

    def __init__(self, name: str, timeout: float, detail: str = "") -> None:
        super().__init__(name, f"not connected after {timeout:g} s{detail}")
        self.timeout = timeout


class StopTimeoutError(ConnectionManagerError, TimeoutError):
    """The owner task is still alive after it was cancelled.

    Until it ends the manager stays `CLOSING`, and opens no second connection. The text says which
    task it is, and where it waits.
    """

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(name, f"could not be stopped; {detail}")


class WrongEventLoopError(ConnectionManagerError, RuntimeError):
    """The run belongs to another event loop."""

    def __init__(self, name: str, method: str) -> None:
        super().__init__(
            name,
            f"{method}() was called from another event loop; "
            "call it in the event loop in which the manager was started",
        )


class OwnerTaskError(ConnectionManagerError, RuntimeError):
    """A call from inside the owner task, where it would wait for itself."""

    def __init__(self, name: str, method: str) -> None:
        super().__init__(
            name, f"{method}() was called from inside the connection's own task and would deadlock"
        )
