"""Starts the fork server of the harness before the other fixtures look at this process."""

import pytest
from doctor import shell


@pytest.fixture(scope="session", autouse=True)
def _fork_server():
    with shell.fork_server():
        yield
