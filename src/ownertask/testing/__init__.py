"""A check for tests of transports, and fakes for tests of applications.

Importing `ownertask` does not import this package, and importing this package does not import pytest.
"""

from ._check import check_connection_manager, connection_manager_tests
from ._scripted import ScriptedConnectionManager, ScriptedRun

__all__ = [
    "ScriptedConnectionManager",
    "ScriptedRun",
    "check_connection_manager",
    "connection_manager_tests",
]
