"""How a server ended, and what it wrote to its stderr before."""

import signal
from typing import Final

from typing_extensions import override

from ._stderr import StderrTail

__all__ = ["ServerExitedError", "ServerRecord"]

LAST_LINE_CHARACTERS: Final = 200


class ServerExitedError(Exception):
    """The server process exited on its own, or something other than ownertask killed it.

    This error is the cause of a `ConnectionLostError`. A note contains `stderr_tail`.

    Example:
        ```python
        try:
            await manager.wait_closed()
        except ConnectionLostError as error:
            if isinstance(error.__cause__, ServerExitedError):
                print("exit status:", error.__cause__.returncode)
                print(error.__cause__.stderr_tail)
        ```

    Attributes:
        returncode: The exit status. As in `subprocess`, -N means that signal N killed the server. `None`
            means that other code in this process took the status, for example with `os.wait()`. On
            macOS, the status is 0 in that case.
        stderr_tail: The last lines of the server's stderr, at most 8192 bytes.
    """

    def __init__(self, returncode: int | None, stderr_tail: str = "") -> None:
        super().__init__(returncode, stderr_tail)
        self.returncode = returncode
        self.stderr_tail = stderr_tail
        if stderr_tail:
            self.add_note(f"the server's stderr ended with:\n{stderr_tail}")

    @override
    def __str__(self) -> str:
        lines = self.stderr_tail.split("\n")
        last_line = next((line.strip() for line in reversed(lines) if line.strip()), "")
        said = f"; its stderr ended with {last_line[-LAST_LINE_CHARACTERS:]!r}" if last_line else ""
        return f"the server {_how(self.returncode)}{said}"

    # A copy has its own list of notes.
    @override
    def __reduce__(self) -> tuple[object, ...]:
        attributes = self.__dict__.copy()
        if "__notes__" in attributes:
            attributes["__notes__"] = list(attributes["__notes__"])
        return type(self), self.args, attributes


def _how(returncode: int | None) -> str:
    if returncode is None:
        return "exited with an unknown status"
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:  # a real-time signal
        name = f"signal {-returncode}"
    return f"was killed by {name}"


class ServerRecord:
    """Describes the current or last server of a manager."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.returncode: int | None = None
        self.stderr = StderrTail()

    def exit_error(self) -> ServerExitedError:
        """Returns the reason for the loss of the connection to a server that has exited."""
        return ServerExitedError(self.returncode, str(self.stderr))
