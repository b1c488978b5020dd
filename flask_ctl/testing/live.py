"""`LiveApp`: an app that a server in a thread of the test's process serves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

from flask import Flask

from ..extension.background import BackgroundServer
from ..servers.middleware import WSGIApp
from .recorder import Recorder, ServedRequest

GRACE = 5.0
"""Seconds for the requests in flight at the end of a test."""


FRAMEWORK = ("flask.", "flask_ctl.", "werkzeug.")
"""Modules that lead to a view."""


SAFE = "!#$%&'()*+,/:;=?@"
"""Characters that stay as they are in the fragment of a URL, as in `flask.url_for`."""


class RequestsLeft(AssertionError):
    """Requests that the server still answers; the message has their stacks."""

    def __init__(self, left: Sequence[ServedRequest], grace: float) -> None:
        listed = "".join(f"\n{running}\n{running.stack()}" for running in left)
        super().__init__(f"{len(left)} request{'s' * (len(left) != 1)} not answered after {grace:g} s:{listed}")
        self.requests = list(left)
        for running in left:
            running.told = True


class LiveApp:
    """A Flask app at a free port, served by a thread; a context manager.

    At the end of the block the requests in flight have `grace` seconds. Then an exception of a view that no error
    handler has taken is raised, with its own traceback, or RequestsLeft for requests that still run. `options` are
    those of `BackgroundServer`, such as ``ssl_context="adhoc"``. The app's configuration stays as it is.

    ``str(live)`` is the URL, and ``live + "/path"`` one below it.
    """

    def __init__(
        self, app: Flask, host: str = "127.0.0.1", port: int = 0, *, grace: float = GRACE, **options: Any
    ) -> None:
        self.grace = grace
        self._recorder = Recorder(app)
        self._server = _RecordedServer(app, host, port, recorder=self._recorder, **options)

    @property
    def app(self) -> Flask:
        return self._server.app

    @property
    def url(self) -> str:
        """The URL without a slash at its end. Raises RuntimeError before the first start."""
        return self._server.url

    @property
    def host(self) -> str:
        return self._server.host

    @property
    def port(self) -> int:
        """The port, 0 before the first start; it stays the same over `restart`."""
        return self._server.port

    @property
    def is_running(self) -> bool:
        """Whether it serves, and no stop is under way."""
        return self._server.is_running

    @property
    def requests(self) -> list[ServedRequest]:
        """What the server was asked for, with ``method``, ``path``, ``query``, ``status``, ``duration`` (seconds).

        Under pytest that is what was asked in this test. The status is None until the answer begins.
        """
        return self._recorder.requests()

    def __str__(self) -> str:
        return self.url

    def __add__(self, path: str) -> str:
        return self.url + path

    def __repr__(self) -> str:
        return repr(self._server).replace("_RecordedServer", "LiveApp")

    def url_for(self, endpoint: str, **values: Any) -> str:
        """The URL of a view at this server, whatever SERVER_NAME is; `values` are those of `flask.url_for`.

        Raises werkzeug.routing.BuildError.
        """
        parts = urlsplit(self.url)
        special = {name: values.pop(f"_{name}", None) for name in ("anchor", "method", "scheme", "external")}
        self.app.inject_url_defaults(endpoint, values)
        adapter = self.app.url_map.bind(parts.netloc, url_scheme=special["scheme"] or parts.scheme)
        url = adapter.build(endpoint, values, special["method"], force_external=True)
        return url if special["anchor"] is None else f"{url}#{quote(special['anchor'], safe=SAFE)}"

    def start(self) -> None:
        """Start the server; it accepts connections when this returns. Raises like `BackgroundServer.start`."""
        self._server.start()

    def stop(self, grace: float | None = None) -> dict[str, Any] | None:
        """Stop the server after at most `grace` seconds; the result of `ControlClient.stop`, None if it did not run."""
        return self._server.stop_quietly(self.grace if grace is None else grace)

    def restart(self) -> None:
        """Stop the server and start it again at the same port: clients lose their connections."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """In the block the server accepts connections and reads requests, and answers none of them."""
        self._recorder.hold()
        try:
            yield
        finally:
            self._recorder.release()

    def begin_test(self, owner: Any) -> None:
        """Requests from now on belong to `owner`; `requests` is empty."""
        self._recorder.owner = owner
        self._recorder.forget()

    def failure(self, owner: Any = None, grace: float | None = None) -> Exception | None:
        """Wait for the requests that `owner` began: the first exception of them, or RequestsLeft, or None.

        Each exception is told once; further ones are notes of the first (PEP 678).
        """
        grace = self.grace if grace is None else grace
        left = self._recorder.wait(owner, grace)
        errors = [_from_the_app(error) for error in self._recorder.take_exceptions(owner)]
        if left:
            return RequestsLeft(left, grace)
        for error in errors[1:]:
            _add_note(errors[0], f"another request failed, too: {error!r}")
        return next(iter(errors), None)

    def __enter__(self) -> LiveApp:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failure: Exception | None = None
        try:
            # What the block has raised says more than what the server made of it.
            failure = self.failure() if exc_type is None else None
        finally:
            self._recorder.release()
            self.stop(self.grace if exc_type is None and failure is None else 0)
        if failure is not None:
            raise failure


class _RecordedServer(BackgroundServer):
    def __init__(self, *arguments: Any, recorder: Recorder, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._recorder = recorder

    def start(self) -> None:
        super().start()
        # It starts at the same port again.
        self._wanted_port = self.port

    def _wsgi_app(self) -> WSGIApp:
        self._recorder.wsgi_app = super()._wsgi_app()
        return self._recorder


def _from_the_app(error: Exception) -> Exception:
    """The exception with a traceback that begins at the program's own code, if that is in it."""
    traceback = error.__traceback__
    _clear_callers(traceback)
    while traceback is not None and str(traceback.tb_frame.f_globals.get("__name__")).startswith(FRAMEWORK):
        traceback = traceback.tb_next
    return error if traceback is None else error.with_traceback(traceback)


def _clear_callers(traceback: TracebackType | None) -> None:
    """Let go of what the server had in the frames below the app: they live as long as the traceback."""
    frame = None if traceback is None else traceback.tb_frame.f_back
    while frame is not None:
        # It may still run.
        with contextlib.suppress(RuntimeError):
            frame.clear()
        frame = frame.f_back


def _add_note(error: Exception, note: str) -> None:
    if hasattr(error, "add_note"):
        error.add_note(note)
