"""Werkzeug's own server: `app.run()`, `flask run`, `make_server`; how it registers, and is served under control."""

from __future__ import annotations

import functools
import inspect
import os
import socket
from typing import Any

from werkzeug.serving import LISTEN_QUEUE, BaseWSGIServer, ForkingWSGIServer, make_server, select_address_family

from ..system.handover import inherited
from ..system.native import threading
from . import reloader
from .attributes import ADAPTER, Attributes, lost_without
from .base import Host, WSGIApp
from .urls import end_preflight, requested
from .werkzeug_server import WerkzeugServer

_serve_forever = BaseWSGIServer.serve_forever
_init = BaseWSGIServer.__init__
_signature = inspect.signature(_init)

SERVER = "werkzeug.serving"

ATTRIBUTES: Attributes = {
    ADAPTER: {
        BaseWSGIServer: "address_family app close_request fileno finish_request get_request host port"
        " process_request serve_forever server_activate server_address server_close socket ssl_context",
        ForkingWSGIServer: "active_children",
    },
}


def serve(app: Any, host: str, port: int, threads: int | None) -> None:
    """Serve a Flask app, for ``flask-ctl run``; the host bounds the requests at once."""
    app.run(host=host, port=port)


def make_background_server(
    host: str, port: int, wsgi_app: WSGIApp, *, threaded: bool, **options: Any
) -> tuple[WerkzeugServer, int]:
    """A bound server that is to `run` in a thread, and its port. Raises OSError if the address can't be used."""
    family = select_address_family(host, port)
    # Werkzeug's own bind would print and exit.
    with socket.create_server((host, port), family=family, backlog=LISTEN_QUEUE) as listener:
        server = make_server(host, port, wsgi_app, threaded=threaded, fd=listener.fileno(), **options)
    return WerkzeugServer(server, embedded=True), server.port


def run(server: WerkzeugServer) -> None:
    """Serve under control in a thread, until the server has ended and is released."""
    server.start()
    server.run(lambda: _serve_forever(server.wsgi_server))


def arm(host: Host) -> None:
    """Make every Werkzeug server of this process register with `host` when it begins to serve."""
    if lost_without("werkzeug", ATTRIBUTES):
        return

    @functools.wraps(_init)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        arguments = _signature.bind(self, *args, **options).arguments
        wanted = [(arguments["host"], arguments["port"])] if arguments.get("fd") is None else []
        end_preflight(host.check_settings, *wanted)
        _construct(self, arguments)

    @functools.wraps(_serve_forever)
    def serve_forever(self: BaseWSGIServer, poll_interval: float = 0.5) -> None:
        _serve(host, self, poll_interval)

    BaseWSGIServer.__init__ = __init__  # type: ignore[method-assign]
    BaseWSGIServer.serve_forever = serve_forever  # type: ignore[method-assign]
    reloader.arm(host)


def _construct(wsgi_server: Any, arguments: dict[str, Any]) -> None:
    """Bind, or take over the socket that the previous image of this process has bound for the same address."""
    wsgi_server._requested_address = requested((arguments["host"], arguments["port"]))
    wsgi_server._given = arguments.get("fd") is not None
    taken = None
    if not wsgi_server._given:
        taken = arguments["fd"] = inherited.take_listener(wsgi_server._requested_address)
    _init(**arguments)
    if taken is not None:
        os.close(taken)
        # Its peers are to see this image as the one that listens.
        wsgi_server.server_activate()


def _serve(host: Host, wsgi_server: BaseWSGIServer, poll_interval: float) -> None:
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main and reloader.is_unknown():
        _serve_forever(wsgi_server, poll_interval)
        return
    in_reloader = not in_main and reloader.is_serving_child()
    server = WerkzeugServer(wsgi_server, embedded=not in_main and not in_reloader, in_reloader=in_reloader)
    try:
        registered = server.open(host, wsgi_server.app)
    except BaseException:
        wsgi_server.server_close()
        raise
    if registered:
        server.run(lambda: _serve_forever(wsgi_server, poll_interval))
    else:
        _serve_forever(wsgi_server, poll_interval)
