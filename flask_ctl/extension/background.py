"""A server in a thread, for tests, notebooks and desktop programs."""

from __future__ import annotations

import threading
import warnings
from types import TracebackType
from typing import Any

from flask import Flask

from ..dispatch.peer import this_process
from ..errors import TimedOut
from ..lifecycle.instance import Instance
from ..servers.middleware import WSGIApp
from ..servers.werkzeug import make_background_server, run
from ..system.addresses import OFF, Sockets, as_list, from_environment
from .app import attached
from .control import state_of

JOIN_TIMEOUT = 5.0
"""Seconds, beyond the grace, for the server's thread to end."""


class BackgroundServer:
    """A Werkzeug server in a thread of this process; a context manager that stops it gracefully at the end.

    `port` 0 takes a free port, which `port` then tells. `socket` is a control address or a list of them (default:
    none). `options` go to Werkzeug's `make_server`. The server can be started again after a stop. All methods are
    thread-safe. Raises TypeError for anything but a Flask app.
    """

    def __init__(
        self,
        app: Flask,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        socket: Sockets | None = None,
        threaded: bool = True,
        **options: Any,
    ) -> None:
        _check_app(app)
        self.app = app
        self.host = host
        self._state = state_of(app)
        self._wanted_port = port
        self._sockets = as_list(socket)
        self._options = {"threaded": threaded, **options}
        self._lock = threading.Lock()
        self._instance: Instance | None = None
        self._thread: threading.Thread | None = None
        self._told: Instance | None = None
        self.port = port

    @property
    def url(self) -> str:
        """The URL, such as ``http://127.0.0.1:54321``. Raises RuntimeError before the first start."""
        if not self.port:
            raise RuntimeError("the server has no URL yet: start it first, by start() or a with statement")
        scheme = "https" if self._options.get("ssl_context") else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether it serves, and no stop is under way."""
        instance, thread = self._instance, self._thread
        return instance is not None and thread is not None and thread.is_alive() and not instance.stopping

    def __repr__(self) -> str:
        thread = self._thread
        where = f"at {self.url}" if self.port else "not started"
        ended = "" if thread is None or thread.is_alive() else ", stopped"
        return f"<{type(self).__name__} of {self.app.name!r}, {where}{ended}>"

    def start(self) -> None:
        """Start the server; it accepts connections when this returns.

        Raises OSError if the address can't be used, as for a busy port, ConfigurationError if the control socket can't
        be opened, RuntimeError if the server is running.
        """
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise RuntimeError("this server runs already; stop it first")
            sockets = [] if OFF in from_environment() else self._sockets
            server, self.port = make_background_server(self.host, self._wanted_port, self._wsgi_app(), **self._options)
            try:
                instance = Instance(server, [self._state.served_app(sockets, required=True)], handle_signals=False)
                with attached([self._state], instance):
                    instance.open()
            except BaseException:
                server.discard()
                raise
            self._instance = instance
            self._thread = threading.Thread(
                target=run, args=(server,), name=f"flask-ctl-server-{self.port}", daemon=True
            )
            self._thread.start()

    def _wsgi_app(self) -> WSGIApp:
        """What the server serves: an app without a Control does not count its requests itself."""
        counted = self.app.extensions.get("ctl") is self._state
        return self.app if counted else self._state.requests

    def stop(self, grace: float | None = None) -> dict[str, Any] | None:
        """Stop the server gracefully, with at most `grace` seconds for the requests in flight (default: CTL_GRACE).

        Returns the result of `ControlClient.stop`: ``outcome``, ``drained`` and ``cut`` (numbers of requests),
        ``elapsed`` (seconds) and more. Cut requests are also a RuntimeWarning. Returns None if the server was not
        started, and, without waiting, if one of the server's own requests calls it. Can be called again.
        Raises TimedOut if a request still occupies the only thread of a server with ``threaded=False``.
        """
        result, cut = self._stop(grace)
        if cut:
            warnings.warn(cut, RuntimeWarning, stacklevel=2)
        return result

    def stop_quietly(self, grace: float | None = None) -> dict[str, Any] | None:
        """Like `stop`, without the warning."""
        return self._stop(grace)[0]

    def _stop(self, grace: float | None) -> tuple[dict[str, Any] | None, str]:
        """The result, and the text of the warning about cut requests, which is empty the second time."""
        with self._lock:
            instance, thread = self._instance, self._thread
        if instance is None or thread is None:
            return None, ""
        grace = self._state.seconds("CTL_GRACE") if grace is None else grace
        instance.request_stop("graceful", this_process().describe(), grace)
        if instance.server.is_serving_thread():
            return None, ""
        thread.join(grace + JOIN_TIMEOUT)
        if thread.is_alive():
            raise TimedOut(f"the server at {self.url} has not ended: a request still runs in its only thread")
        result = instance.stop_result()
        with self._lock:
            told, self._told = self._told, instance
        if told is instance or result is None or not result["cut"]:
            return result, ""
        return result, f"the server at {self.url} was stopped with {result['cut']} of its requests cut"

    def __enter__(self) -> BackgroundServer:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _, cut = self._stop(None)
        if cut:
            warnings.warn(cut, RuntimeWarning, stacklevel=2)


def _check_app(app: object) -> None:
    if isinstance(app, Flask):
        return
    if isinstance(app, str):
        module, _, name = app.partition(":")
        factory = (name or "app").endswith(")")
        hint = f"import it: from {module} import {name.partition('(')[0] or 'app'}"
        call = ", and call it" if factory else ""
        raise TypeError(f"BackgroundServer takes the app itself, not {app!r}; {hint}{call}")
    if callable(app):
        name = getattr(app, "__name__", "it")
        raise TypeError(f"BackgroundServer takes a Flask app; {app!r} is not one: if it makes the app, pass {name}()")
    raise TypeError(f"BackgroundServer takes a Flask app, not {app!r}")
