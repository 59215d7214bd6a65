"""The tiny server, except that it ignores both the end of its stdin and SIGTERM."""

import signal
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)

import tiny  # noqa: E402, F401

time.sleep(600)
