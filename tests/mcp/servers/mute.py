"""Neither reads nor answers."""

import time

time.sleep(600)
