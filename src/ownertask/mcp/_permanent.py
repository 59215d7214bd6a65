"""Recognizes failures that trying again does not fix, for `is_permanent()` of the transports."""

import errno
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from .._reason import is_a, related

__all__ = ["REFUSALS", "command_errors_marked", "has_untrusted_certificate", "is_command_error"]

REFUSALS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""Other statuses, such as 404 and 429, can change while a server restarts or recovers."""

COMMAND_ERRORS: Final = frozenset(
    {
        errno.E2BIG,
        errno.EACCES,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOEXEC,
        errno.ENOTDIR,
        errno.EPERM,
    }
)
"""The command or its working directory is wrong. Other errors, such as a lack of memory, processes or
file descriptors, may be temporary."""

MARK: Final = "_ownertask_command_error"


def has_untrusted_certificate(error: BaseException) -> bool:
    """Returns whether a certificate that is not trusted caused an exception."""
    return any(is_a(this, ssl.SSLCertVerificationError) for this in related(error))


@contextmanager
def command_errors_marked() -> Generator[None]:
    """Marks an exception that means that a command cannot be started.

    The same exception can come from elsewhere, for example from a callback of the session. Only the mark
    tells the two apart.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        # A ValueError means that a text contains NUL or cannot be encoded.
        if not isinstance(error, OSError) or error.errno in COMMAND_ERRORS:
            setattr(error, MARK, True)
        raise


def is_command_error(error: BaseException) -> bool:
    """Returns whether `command_errors_marked()` has marked an exception."""
    return MARK in object.__getattribute__(error, "__dict__")
