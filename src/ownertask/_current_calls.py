"""The methods that `Current` passes on, and what happens when one of them is called.

A call is sent once, to the connection that is open at that moment. It may have to wait for a connection
first, but nothing is awaited between that wait and the call. If the connection is lost during the call,
the exception that the call raises gets a note.
"""

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from types import CoroutineType, FunctionType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from ._failure import add_note
from ._reason import reason
from .errors import ConnectionLostError, NotConnectedError, WrongEventLoopError

if TYPE_CHECKING:
    from .current import Current
    from .manager import ConnectionManager

    AnyManager: TypeAlias = ConnectionManager[object]

__all__ = ["NOT_OPEN", "method_named"]

NOT_OPEN: Final = (ConnectionLostError, NotConnectedError)


def method_named(name: str, *, is_coroutine_function: bool = False) -> FunctionType:
    """Returns a method of `Current` that calls the method `name` of the open connection."""

    # Any: the types depend on the connection.
    def called(connection: Any) -> Callable[..., Any]:  # noqa: ANN401
        return cast(
            "Callable[..., Any]", connection if name == "__call__" else getattr(connection, name)
        )

    async def wait_and_call(self: "Current", /, *args: object, **kwargs: object) -> object:
        manager = self.ownertask_manager
        # Do not await between this line and the call: the connection could be lost.
        (connection,) = _opened(manager) or (await manager.wait_open(),)
        try:
            result: object = called(connection)(*args, **kwargs)
            if isinstance(result, CoroutineType) or isawaitable(result):
                return await cast("Awaitable[object]", result)
        except Exception as error:
            _note_loss(error, manager, connection)
            raise
        return result

    def call(self: "Current", /, *args: object, **kwargs: object) -> object:
        manager, names = self.ownertask_manager, self.ownertask_learned.coroutine_names
        try:
            connection = manager.connection
        except NOT_OPEN:
            if name not in names:
                raise
            return wait_and_call(self, *args, **kwargs)
        result: object = called(connection)(*args, **kwargs)
        if not isinstance(result, CoroutineType):
            return result
        names.add(name)
        # Any: a coroutine of any kind.
        coroutine = cast("CoroutineType[Any, Any, object]", result)
        around = cast("Any", _finish(_Coroutine(coroutine), manager, connection))
        around.__qualname__ = coroutine.__qualname__  # for warnings
        return cast("object", around)

    method = cast("FunctionType", wait_and_call if is_coroutine_function else call)
    method.__name__ = method.__qualname__ = name
    return method


def _opened(manager: "AnyManager") -> tuple[object, ...]:
    """Returns the open connection in a tuple, which is empty if there is none."""
    try:
        return (manager.connection,)
    except NOT_OPEN:
        return ()


class _Coroutine:
    """Closes a coroutine that nobody awaited, so that only the coroutine around it causes a warning."""

    # Any: a coroutine of any kind.
    def __init__(self, coroutine: "CoroutineType[Any, Any, object]") -> None:
        self.coroutine = coroutine

    def __del__(self) -> None:
        self.coroutine.close()


async def _finish(call: _Coroutine, manager: "AnyManager", connection: object) -> object:
    try:
        _opened(manager)  # raises an error in another event loop
        return await call.coroutine
    except WrongEventLoopError:
        call.coroutine.close()
        raise
    except Exception as error:
        _note_loss(error, manager, connection)
        raise


def _note_loss(error: Exception, manager: "AnyManager", connection: object) -> None:
    """Adds a note to the exception of a call if its connection is no longer the open one."""
    lost, why = "lost or closed", ""  # it is not known which
    try:
        if manager.connection is connection:
            return
    except ConnectionLostError as loss:
        lost = "lost"
        why = "" if loss.__cause__ is None else f": {reason(loss.__cause__)}"
    except NotConnectedError:
        pass
    add_note(error, f"ownertask: {manager.name} {lost} its connection during this call{why}")
