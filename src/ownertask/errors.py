"""The errors that ownertask raises. Errors raised by a connection keep their own type.

```
ConnectionManagerError(Exception)
├── NotConnectedError(RuntimeError)
├── ConnectionStoppedError
├── ConnectionLostError
├── StartTimeoutError(TimeoutError)
├── StopTimeoutError(TimeoutError)
├── ManagerInUseError(RuntimeError)
├── WrongEventLoopError(RuntimeError)
└── OwnerTaskError(RuntimeError)
```

Every error names its manager in its text and in its `name` attribute. Every error can be pickled.
"""

from typing import Any, TypeVar

from ._reason import reason
from .state import ConnectionState

__all__ = [
    "ConnectionLostError",
    "ConnectionManagerError",
    "ConnectionStoppedError",
    "ManagerInUseError",
    "NotConnectedError",
    "OwnerTaskError",
    "StartTimeoutError",
    "StopTimeoutError",
    "WrongEventLoopError",
]


class ConnectionManagerError(Exception):
    """The base class of all errors that ownertask defines.

    Attributes:
        name: The name of the manager.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name

    # `args` holds the finished text, not the constructor's arguments.
    # Any: subclasses may have attributes of any type, as in object.__reduce__.
    def __reduce__(self) -> tuple[Any, ...]:
        attributes = self.__dict__.copy()
        if "__notes__" in attributes:  # each copy has its own list
            attributes["__notes__"] = list(attributes["__notes__"])
        return _rebuild, (type(self), self.args), attributes


E = TypeVar("E", bound=ConnectionManagerError)


def _rebuild(kind: type[E], args: tuple[object, ...]) -> E:
    error = kind.__new__(kind)
    error.args = args
    return error


class NotConnectedError(ConnectionManagerError, RuntimeError):
    """`connection`, `current` or `wait_open()` was used, but no connection is open.

    If the last run failed, `__cause__` is its exception.

    Attributes:
        state: The state of the manager at that time.
    """

    def __init__(self, name: str, state: ConnectionState) -> None:
        is_opening = state is ConnectionState.OPENING
        hint = "wait_open() waits for the connection" if is_opening else "call start() first"
        super().__init__(name, f"not connected (state: {state.value}); {hint}")
        self.state = state


class ConnectionStoppedError(ConnectionManagerError):
    """`stop()` was called while `start()`, `acquire()` or `add()` was waiting for the connection."""

    def __init__(self, name: str, call: str = "start()") -> None:
        super().__init__(name, f"stop() was called while {call} was waiting for the connection")


class ConnectionLostError(ConnectionManagerError):
    """The connection ended unexpectedly.

    `__cause__` is the reason, if one is known. The text contains the reason, too.

    Example:
        ```python
        try:
            session = manager.connection
        except ConnectionLostError as error:
            print(error)  # calculator: the connection was lost: the server exited with status 1
            print(repr(error.__cause__))  # ServerExitedError(1, '')
        ```
    """

    def __init__(
        self,
        name: str,
        message: str = "the connection was lost",
        cause: BaseException | None = None,
    ) -> None:
        super().__init__(name, message if cause is None else f"{message}: {reason(cause)}")
        self.__cause__ = cause


class StartTimeoutError(ConnectionManagerError, TimeoutError):
    """The connection did not open within `start_timeout`, or within the `timeout` of a call.

    `__cause__` is the exception of the attempt, if it raised one. Otherwise, with a `ReconnectPolicy`,
    `__cause__` is the failure that the attempt followed, if any.

    Attributes:
        timeout: The timeout that expired, in seconds.
    """

    def __init__(self, name: str, timeout: float, detail: str = "") -> None:
        super().__init__(name, f"not connected after {timeout:g} s{detail}")
        self.timeout = timeout


class StopTimeoutError(ConnectionManagerError, TimeoutError):
    """The owner task is still running 10 seconds after it was cancelled.

    The manager stays `CLOSING` and opens no other connection until the task ends. The text names the
    task and the line of code in which it is waiting.
    """

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(name, f"could not be stopped; {detail}")


class ManagerInUseError(ConnectionManagerError, RuntimeError):
    """The manager is running or is part of another manager, and the call requires an unused manager."""


class WrongEventLoopError(ConnectionManagerError, RuntimeError):
    """The manager is running in another event loop."""

    def __init__(self, name: str, use: str) -> None:
        super().__init__(
            name,
            f"{use} from another event loop; use the manager in the event loop in which it was started",
        )


class OwnerTaskError(ConnectionManagerError, RuntimeError):
    """A method was called from inside the connection and would deadlock."""

    def __init__(self, name: str, method: str) -> None:
        super().__init__(
            name,
            f"{method}() was called from inside the connection and would deadlock; "
            "call it from a task outside the connection",
        )
