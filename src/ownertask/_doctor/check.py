"""`ownertask check`: opens and closes connections phase by phase, and prints a report."""

import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from platform import python_version
from typing import Final

from anyio import create_task_group, get_cancelled_exc_class
from typing_extensions import override

from .. import StopTimeoutError, __version__
from ..testing import Resources
from .arguments import Arguments
from .interrupts import Interrupts
from .masking import Mask
from .output import Screen
from .report import Report, as_json, in_one_line
from .server_check import ServerCheck
from .summary import Progress, print_reports

__all__ = ["check"]

MAX_LOGGED: Final = 20


async def check(arguments: Arguments, screen: Screen, interrupts: Interrupts) -> bool:
    """Checks all servers at the same time, and prints a report.

    Returns:
        Whether all of them work and nothing is left behind.
    """
    progress = Progress(screen, arguments)
    interrupts.on_first = progress.interrupted
    checks = [
        ServerCheck(target, arguments, progress, screen.mask, interrupts) for target in arguments.targets
    ]
    is_ok = False
    async with create_task_group() as animation:
        animation.start_soon(screen.animate)
        with _logged(screen.mask) as logged:
            resources = Resources()

            async def finish() -> bool:
                left = await _left(resources, screen.mask, interrupts)
                reports = [this.report for this in checks]
                _print(arguments, screen, interrupts, reports, left, logged)
                return not left and all(report.is_ok for report in reports)

            try:
                async with create_task_group() as tasks:
                    for this in checks:
                        tasks.start_soon(this.run, resources.look)
            except get_cancelled_exc_class():
                await finish()
                raise
            is_ok = await finish()
        animation.cancel_scope.cancel()
    return is_ok


async def _left(resources: Resources, mask: Mask, interrupts: Interrupts) -> list[str]:
    """Waits briefly for leftover resources to disappear, and describes those that remain."""
    with interrupts.cleanup():
        await resources.left()
    # A second signal ends the wait. This call does not wait.
    return [mask(text) for text in await resources.left(within=0)]


def _print(  # noqa: PLR0913, PLR0917 - the parts of a report
    arguments: Arguments,
    screen: Screen,
    interrupts: Interrupts,
    reports: list[Report],
    left: list[str],
    logged: list[str],
) -> None:
    messages = [report.failure.message for report in reports if report.failure is not None]
    log = [text for text in logged if not any(message in text for message in messages)]
    is_interrupted = interrupts.received is not None
    if arguments.as_json:
        document = _document(arguments, reports, left, log, is_interrupted=is_interrupted)
        for line in json.dumps(document, indent=2).split("\n"):
            screen.line(line)
        return
    print_reports(screen, arguments, reports, left, log)
    if is_interrupted:
        failures = {report.name: report.failure.type for report in reports if report.failure is not None}
        stuck = [name for name, kind in failures.items() if kind == StopTimeoutError.__name__]
        screen.line(f"could not be stopped: {', '.join(stuck)}" if stuck else "closed")


def _document(
    arguments: Arguments,
    reports: list[Report],
    left: list[str],
    log: list[str],
    *,
    is_interrupted: bool,
) -> dict[str, object]:
    is_ok = not left and not is_interrupted and all(report.is_ok for report in reports)
    versions = {"ownertask": __version__, "mcp": version("mcp"), "python": python_version()}
    return {
        "ok": is_ok,
        "interrupted": is_interrupted,
        "backend": arguments.backend,
        "versions": versions,
        "servers": [as_json(report) for report in reports],
        "left": left,
        "log": log,
    }


@contextmanager
def _logged(mask: Mask) -> Generator[list[str]]:
    """Collects the first warnings and errors that are logged, without secrets, and prints none."""
    found: list[str] = []

    class Collector(logging.Handler):
        @override
        def emit(self, record: logging.LogRecord) -> None:
            try:
                message = record.getMessage()
            except Exception:  # noqa: BLE001 - the arguments do not fit the message
                message = str(record.msg)
            text = in_one_line(mask(message))
            if text not in found and len(found) < MAX_LOGGED:
                found.append(text)

    handler = Collector(logging.WARNING)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield found
    finally:
        root.removeHandler(handler)
