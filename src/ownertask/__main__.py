"""The program `ownertask`, or `python -m ownertask`: checks and watches MCP servers from a shell."""

import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program, and returns its exit code.

    Args:
        argv: The arguments without the name of the program. If `None`, the function uses `sys.argv`, and
            ends the process without waiting for threads that are still running.
    """
    try:
        # Importing the SDK is slow, and Ctrl-C must work during the import, too.
        from ._doctor.program import run

        return run(sys.argv[1:], may_exit=True) if argv is None else run(list(argv))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
