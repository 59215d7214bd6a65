"""The logger `ownertask`.

A filter or a handler of the application that raises an exception cannot affect a connection.
"""

from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from logging import Logger

__all__ = ["DEBUG", "ERROR", "WARNING", "log"]

DEBUG: Final = 10
WARNING: Final = 30
ERROR: Final = 40


# Importing logging takes at least as long as importing the rest of ownertask, so it is imported when a
# run begins. The function is cached, because executing the import statement each time is slow.
@cache
def _logger() -> "Logger":
    from logging import getLogger

    return getLogger("ownertask")


def log(level: int, message: str, *args: object, exc_info: BaseException | None = None) -> None:
    """Logs a message. If that raises an exception, prints the exception to `sys.stderr`."""
    try:
        if _logger().isEnabledFor(level):
            _logger().log(level, message, *args, exc_info=exc_info)
    except KeyboardInterrupt:  # from the user, not from the handler
        raise
    except BaseException:  # noqa: BLE001 - it must not affect the connection
        import traceback  # rarely needed

        with suppress(Exception):  # Python 3.11 cannot print an exception with an odd __getattr__
            traceback.print_exc()
