"""A server that neither reads nor responds."""

import time

time.sleep(600)
