"""Prints the progress and the reports of `ownertask check` as text."""

from collections.abc import Sequence
from statistics import median
from textwrap import wrap
from typing import Final

from .arguments import Arguments
from .output import Screen
from .report import Report, ServerInfo
from .troubles import trouble_of

__all__ = ["Progress", "print_reports"]

LABEL_COLUMNS: Final = 14

NARROW: Final = 40
"""On terminals with fewer columns, a value begins below its label."""

MAX_NAMES: Final = 50
"""The maximum number of names that are shown in a row. `--json` shows all."""

MAX_NAME: Final = 200
"""The maximum length of a name, in characters. `--json` shows all of it."""

MAX_TEXT: Final = 5000
"""The maximum length of a text, in characters. `--json` shows all of it."""

STYLES: Final = {"": "green", "failed": "red", "interrupted": "yellow", "forced": "yellow"}


class Progress:
    """Prints a line for each phase that ends, unless the output is quiet or JSON.

    With `--repeat`, only the status line shows the phases.
    """

    def __init__(self, screen: Screen, arguments: Arguments) -> None:
        self._screen = screen
        self._is_silent = arguments.as_json or arguments.is_quiet
        self._repeat = arguments.repeat
        names = [target.name for target in arguments.targets]
        self._columns = max(map(len, names)) + 2 if len(names) > 1 else 0
        self._phases: dict[str, str] = {}

    def begun(self, report: Report, phase: str) -> None:
        """Shows that a phase of a server begins."""
        number = f" ({report.connections + 1} of {self._repeat})" if self._repeat > 1 else ""
        self._phases[report.name] = f"{phase}{number}"
        self._move()

    def ended(self, report: Report, phase: str, seconds: float, how: str) -> None:
        """Shows that a phase of a server ended."""
        self._phases.pop(report.name, None)
        if not self._is_silent and (self._repeat == 1 or how):
            line = f"{self._prefix(report)}{phase:<10}{duration(seconds):>10}  {how}".rstrip()
            self._screen.line(line, STYLES[how])
        self._move()

    def interrupted(self) -> None:
        """Shows that a signal arrived."""
        if not self._is_silent:
            places = [f"{name} was in {phase}" for name, phase in self._phases.items()]
            place = f" while {', '.join(places)}" if places else ""
            line = f"interrupted{place}; closing (press Ctrl-C again to force it)"
            self._screen.line(line, "yellow")

    def _prefix(self, report: Report) -> str:
        return f"{report.name}: ".ljust(self._columns) if self._columns else ""

    def _move(self) -> None:
        if not self._is_silent:
            texts = [
                f"{name}: {phase}" if self._columns else phase for name, phase in self._phases.items()
            ]
            self._screen.status(", ".join(texts))


def cut(text: str, length: int) -> str:
    """Returns at most `length` characters of a text."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def duration(seconds: float) -> str:
    """Returns a duration in a readable unit."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    milliseconds = seconds * 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def print_reports(
    screen: Screen, arguments: Arguments, reports: Sequence[Report], left: list[str], log: list[str]
) -> None:
    """Prints the reports of all servers, or only of those that failed."""
    has_names = len(reports) > 1 or arguments.is_quiet
    for report in reports:
        if report.failure is not None or not arguments.is_quiet:
            if not arguments.is_quiet:
                screen.line()
            if has_names:
                screen.line(report.name, "bold")
            _print_report(screen, report, arguments.repeat)
    if left or not arguments.is_quiet:
        if len(reports) > 1:
            screen.line()
        for text in left or ["nothing"]:
            _print_row(screen, "left behind", text, "red" if left else "")
    if not arguments.is_quiet:
        for text in log:
            _print_row(screen, "log", text)


def _print_report(screen: Screen, report: Report, repeat: int) -> None:
    if report.failure is None:
        if report.server is not None:  # it is None if the check was interrupted
            _print_server(screen, report, report.server)
    else:
        failure = report.failure
        trouble = trouble_of(failure)
        _print_text(screen, f"{failure.type}: {failure.message}", "bold red")
        _print_row(screen, "phase", failure.phase)
        for note in failure.notes:
            _print_row(screen, "note", note)
        _print_row(screen, "cause", trouble.cause)
        for number, step in enumerate(trouble.steps):
            _print_row(screen, "try" if number == 0 else "", step)
    for remark in report.remarks:
        _print_row(screen, "note", remark)
    if repeat > 1:
        _print_statistics(screen, report)
    if report.stderr.strip():
        screen.line("stderr:")
        for line in report.stderr.rstrip().split("\n"):
            screen.line(f"    {line.rstrip()}", "dim")


def _print_server(screen: Screen, report: Report, server: ServerInfo) -> None:
    _print_row(screen, "server", f"{server.name} {server.version}".strip())
    _print_row(screen, "protocol", server.protocol)
    _print_names(screen, "capabilities", server.capabilities)
    _print_names(screen, "tools", report.tools)
    _print_names(screen, "resources", report.resources)
    _print_names(screen, "prompts", report.prompts)


def _print_names(screen: Screen, label: str, names: list[str] | None) -> None:
    if names is None:  # interrupted before they were listed
        return
    shown = [cut(name, MAX_NAME) for name in names[:MAX_NAMES]]
    more = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    _print_row(screen, label, ", ".join([*shown, *more]) or "none")


def _print_statistics(screen: Screen, report: Report) -> None:
    screen.line()
    title = f"{report.connections} connection{'' if report.connections == 1 else 's'}"
    screen.line(_statistics_row(title, ["min", "median", "max"]))
    for phase, values in report.seconds.items():
        numbers = (min(values), median(values), max(values))
        screen.line(_statistics_row(phase, [duration(number) for number in numbers]))


def _statistics_row(label: str, values: list[str]) -> str:
    return f"{label:<{LABEL_COLUMNS}}" + "".join(f"{value:>10}" for value in values)


def _print_row(screen: Screen, label: str, value: str, style: str = "") -> None:
    """Prints a label and a value, which is wrapped on a terminal."""
    width = screen.width
    # Escape before wrapping, because an escaped character is longer.
    value = screen.printable(cut(value, MAX_TEXT))
    if width is None:
        screen.line(f"{label:<{LABEL_COLUMNS}}{value}", style)
        return
    indent = " " * (LABEL_COLUMNS if width >= NARROW else 2)
    if width < NARROW:
        if label:
            screen.line(label, style)
        first = indent
    else:
        first = f"{label:<{LABEL_COLUMNS}}"
    for line in wrap(value, width - 1, initial_indent=first, subsequent_indent=indent) or [first]:
        screen.line(line, style)


def _print_text(screen: Screen, text: str, style: str) -> None:
    text = screen.printable(cut(text, MAX_TEXT))
    for line in [text] if screen.width is None else wrap(text, screen.width - 1):
        screen.line(line, style)
