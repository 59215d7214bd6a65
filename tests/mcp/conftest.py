"""Starts the fork server before the other fixtures look at this process."""

import sys

import pytest
from forked_python import forking


@pytest.fixture(scope="session", autouse=True)
def _fork_server(request):
    if sys.platform == "linux":
        request.getfixturevalue("fork_client")


@pytest.fixture
def forked():
    """Lets `subprocess` fork the Python programs that a test starts."""
    with forking():
        yield
