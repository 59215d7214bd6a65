"""The phases of a connection, and how long each one takes."""

from collections.abc import Callable
from time import perf_counter

__all__ = ["Phases"]


class Phases:
    """Measures phases that follow each other.

    Attributes:
        current: The phase that is under way, or `None`.
    """

    def __init__(
        self, on_begin: Callable[[str], object], on_end: Callable[[str, float, str], object]
    ) -> None:
        """Creates phases.

        Args:
            on_begin: Called with the name of each phase that begins.
            on_end: Called with the name of each phase that ends, its duration in seconds, and how it
                ended: an empty string, `failed` or `interrupted`.
        """
        self.current: str | None = None
        self._began = 0.0
        self._on_begin = on_begin
        self._on_end = on_end

    def begin(self, phase: str) -> None:
        """Begins a phase, and ends the current one. Does nothing if that phase is under way."""
        if self.current != phase:
            self.end()
            self.current, self._began = phase, perf_counter()
            self._on_begin(phase)

    def end(self, how: str = "") -> None:
        """Ends the current phase, if there is one."""
        phase, self.current = self.current, None
        if phase is not None:
            self._on_end(phase, perf_counter() - self._began, how)
