"""Runs a command, and turns its outcome into an exit code."""

import errno
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, NoReturn

import anyio

from .arguments import COMMANDS, Arguments, arguments_from
from .check import check
from .interrupts import Interrupts
from .output import OutputError, Screen, escaped
from .targets import mask_for
from .values import UsageError
from .watch import watch

__all__ = ["run"]

FAILED: Final = 1
WRONG_USAGE: Final = 2
SIGNALED: Final = 128
"""As in a shell, this plus the number of a signal is the exit code after that signal."""

SIGPIPE: Final = 13

Command = Callable[[Arguments, Screen, Interrupts], Awaitable[bool]]


def run(argv: list[str], *, may_exit: bool = False) -> int:
    """Runs the command that the arguments name, and returns its exit code.

    Args:
        argv: The arguments without the name of the program.
        may_exit: Whether to end the process, instead of returning, if a thread is still running.
    """
    program = " ".join(["ownertask", *(word for word in argv[:1] if word in COMMANDS)])
    try:
        arguments = arguments_from(argv)
    except UsageError as error:
        _complain(program, str(error))
        return WRONG_USAGE
    except SystemExit:  # --help or --version
        return _flushed(program)
    command: Command = {"check": check, "watch": watch}[arguments.command]

    async def main() -> int:
        code = await _exit_code(program, command, arguments)
        if may_exit and threading.active_count() > 1:
            _exit(code)
        return code

    try:
        return anyio.run(main, backend=arguments.backend)
    except OSError as error:  # from the event loop, for example because of too many open files
        _complain(program, f"cannot start: {error.strerror}")
        return FAILED


async def _exit_code(program: str, command: Command, arguments: Arguments) -> int:
    """Runs a command, and returns the exit code."""
    interrupts = Interrupts()
    is_ok = False
    failures: list[OSError] = []

    async def work() -> None:
        nonlocal is_ok
        with Screen(sys.stdout, mask_for(arguments.targets)) as screen:
            is_ok = await command(arguments, screen, interrupts)

    try:
        await interrupts.run(work)
    except* OutputError as group:
        failures += [leaf.error for leaf in _leaves(group)]
    code = _output_failed(program, failures[0]) if failures else FAILED
    if interrupts.received is not None:
        return SIGNALED + interrupts.received
    return 0 if is_ok else code


def _exit(code: int) -> NoReturn:
    """Ends the process. Python would first wait for threads, such as the lookup of a host name.

    Such a lookup cannot be cancelled, and can take half a minute.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):
            stream.flush()
    os._exit(code)


def _flushed(program: str) -> int:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        return _output_failed(program, error)
    return 0


def _output_failed(program: str, error: OSError) -> int:
    """Reports that the output cannot be written, and returns the exit code."""
    _discard_output()
    if error.errno in {errno.EPIPE, errno.EIO}:  # the reader or the terminal is gone
        return SIGNALED + SIGPIPE
    _complain(program, f"cannot write the output: {error.strerror}")
    return FAILED


def _complain(program: str, problem: str) -> None:
    with suppress(OSError, AttributeError):  # stderr is full or closed
        sys.stderr.write(f"{program}: error: {escaped(problem)}\n")


def _leaves(group: BaseExceptionGroup[OutputError]) -> list[OutputError]:
    return [
        leaf
        for this in group.exceptions
        for leaf in (_leaves(this) if isinstance(this, BaseExceptionGroup) else [this])
    ]


def _discard_output() -> None:
    """Redirects stdout to the null device. Otherwise, Python would write the rest when it exits."""
    with suppress(OSError):  # stdout has no descriptor
        descriptor = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
