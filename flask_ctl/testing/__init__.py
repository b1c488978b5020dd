"""Live servers for tests, without pytest: context managers, and a `unittest.TestCase`.

The pytest plugin has the same as fixtures.
"""

from .live import LiveApp, RequestsLeft
from .memory import control_client
from .process import AppProcess, ProcessFailed
from .recorder import ServedRequest
from .unit import LiveServerTestCase

__all__ = [
    "AppProcess",
    "LiveApp",
    "LiveServerTestCase",
    "ProcessFailed",
    "RequestsLeft",
    "ServedRequest",
    "control_client",
]
