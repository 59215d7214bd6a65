"""A check for tests of transports, fakes for tests of applications, and a leak detector.

Importing `ownertask` does not import this package, and importing this package does not import pytest.
"""

from ._check import check_connection_manager, connection_manager_tests
from ._resources import Resources
from ._scripted import ScriptedConnectionManager, ScriptedRun

__all__ = [
    "Resources",
    "ScriptedConnectionManager",
    "ScriptedRun",
    "check_connection_manager",
    "connection_manager_tests",
]
