"""Live servers in tests of `unittest`."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any, ClassVar

from flask import Flask

from .live import LiveApp


class LiveServerTestCase(unittest.TestCase):
    """A test case whose app is served while each test runs: `live_app` is its `LiveApp`.

    A subclass has `create_app`. A view that raises, or a request that is still running at the end, fails the test.
    """

    live_app: LiveApp
    live_options: ClassVar[Mapping[str, Any]] = {}
    """Options of `LiveApp`, such as ``{"grace": 2.0, "ssl_context": "adhoc"}``."""

    def create_app(self) -> Flask:
        """The app for one test."""
        raise NotImplementedError(f"{type(self).__name__} needs a method create_app, which returns the Flask app")

    def get_server_url(self) -> str:
        """The URL without a slash at its end, as Flask-Testing's method of that name."""
        return self.live_app.url

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        # Not in setUp: subclasses forget to call it.
        setup = self.setUp

        def set_up() -> None:
            self.live_app = LiveApp(self.create_app(), **self.live_options)
            # The first cleanup is the last one that is called, after tearDown.
            self.addCleanup(self._end)
            self.live_app.start()
            setup()

        self.setUp = set_up  # type: ignore[method-assign]
        try:
            return super().run(result)
        finally:
            del self.setUp

    def _end(self) -> None:
        failure: Exception | None = None
        try:
            failure = self.live_app.failure()
        finally:
            self.live_app.stop(0 if failure is not None else None)
        if failure is not None:
            raise failure
