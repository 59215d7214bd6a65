"""Prints text for people: plain, or on a terminal with color and a status line, if rich is installed."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TextIO

from anyio import sleep

from .masking import Mask

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

__all__ = ["OutputError", "Screen", "escaped", "output_errors"]

FRAME_TIME: Final = 0.1
"""Time between two frames of the status line, in seconds."""

MIN_COLUMNS: Final = 10
"""The minimum width. A narrower terminal wraps the lines."""


class OutputError(Exception):
    """The output cannot be written, for example because its reader is gone.

    Attributes:
        error: The reason.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def escaped(text: str) -> str:
    """Escapes each character that could control a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


class Screen:
    """Prints lines to a stream. Exit it to remove the status line.

    Attributes:
        console: The console of rich, or `None` for plain text.
        mask: Hides secrets.
    """

    def __init__(self, stream: TextIO | None, mask: Mask) -> None:
        self.mask = mask
        self._stream = stream
        self._live: Live | None = None
        can_move = self.width is not None and os.environ.get("TERM") not in {"dumb", "unknown"}
        self.console: Console | None = _console(stream) if can_move else None

    @property
    def width(self) -> int | None:
        """The number of columns of the terminal, or `None` if the output is not a terminal."""
        if self._stream is None or not self._stream.isatty():
            return None
        return max(shutil.get_terminal_size().columns, MIN_COLUMNS)

    def clean(self, text: str) -> str:
        """Returns a text from a server or an exception in one line, without secrets."""
        return self.printable(self.mask(text))

    def printable(self, text: str) -> str:
        """Returns a text in one line, and escapes each character that the stream cannot print."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return escaped(text).encode(encoding, "backslashreplace").decode(encoding)

    def line(self, text: str = "", style: str = "") -> None:
        """Prints one line. Characters that cannot be printed are escaped.

        Args:
            text: The line, without secrets; see `clean()`.
            style: A style of rich.

        Raises:
            OutputError: The line cannot be written.
        """
        text = self.printable(text)
        with output_errors():
            if self.console is not None:
                from rich.text import Text

                self.console.print(Text(text, style), soft_wrap=True)
            elif self._stream is not None:
                self._stream.write(f"{text}\n")
                self._stream.flush()

    def status(self, text: str) -> None:
        """Changes the status line, if there is a console. An empty text removes it.

        Args:
            text: The text of the line, without secrets.

        Raises:
            OutputError: The line cannot be written.
        """
        if self.console is None:
            return
        if not text:
            self._stop_moving()
            return
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        shown = Text(self.printable(text), no_wrap=True, overflow="ellipsis")
        spinner = Spinner("line", shown)
        with output_errors():
            if self._live is None:
                self._live = Live(
                    spinner,
                    console=self.console,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
            self._live.update(spinner, refresh=True)

    async def animate(self) -> None:
        """Animates the status line until the call is cancelled.

        rich could do this in a thread, but the check would report that thread as left behind.
        """
        while self.console is not None:
            await sleep(FRAME_TIME)
            if self._live is not None:
                with output_errors():
                    self._live.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OutputError):  # the terminal is gone
            self._stop_moving()

    def _stop_moving(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with output_errors():
                live.stop()


def _console(stream: TextIO | None) -> "Console | None":
    """Returns a console, or `None` if rich is not installed. It is part of the extra `cli`."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, highlight=False, markup=False, emoji=False)


@contextmanager
def output_errors() -> Generator[None]:
    """Turns an `OSError` into an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(error) from None
