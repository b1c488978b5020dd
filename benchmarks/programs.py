"""The processes that are measured: ``python programs.py NAME [SOCKET]`` runs the function NAME below.

Each serves until it is told to end, on the loopback interface or a Unix socket, and says ``ready`` on stdout first
where nothing else shows that it is.
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

HELLO = b"hello\n"


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The smallest honest WSGI app."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(HELLO)))])
    return [HELLO]


def flask_app() -> Any:
    """The smallest Flask app; Flask is imported only where it is served."""
    from flask import Flask

    app = Flask("bench")
    app.add_url_rule("/", view_func=lambda: HELLO)
    return app


def echo(path: str) -> None:
    """Send back what arrives, for one client after another: the floor under every control socket written in Python."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        _ready()
        while True:
            with listener.accept()[0] as connection:
                while data := connection.recv(65536):
                    connection.sendall(data)


def zmq_echo(address: str) -> None:
    """Send back what arrives at a ROUTER: the floor under every control socket over ZeroMQ."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(address)
        _ready()
        while True:
            router.send_multipart(router.recv_multipart())


def controlled(*addresses: str) -> None:
    """A Flask app under control at some addresses, served by `app.run`."""
    controlled_app(*addresses).run(port=0)


def spinning(address: str, echo_path: str) -> None:
    """A Flask app under control, in whose process another thread echoes, and four compute from the first line on stdin.

    They begin when it serves: beside them its imports alone take half a minute.
    """

    def spin() -> None:
        while True:
            pass

    def spin_when_told() -> None:
        sys.stdin.readline()
        for _ in range(4):
            threading.Thread(target=spin, daemon=True).start()

    threading.Thread(target=echo, args=(echo_path,), daemon=True).start()
    threading.Thread(target=spin_when_told, daemon=True).start()
    controlled(address)


def serving(port: str, *addresses: str) -> None:
    """A Flask app served by `app.run` at that port, under control if there are addresses."""
    app = controlled_app(*addresses) if addresses else flask_app()
    app.run(port=int(port))


def flood(port: str, connections: str, message: str) -> None:
    """Send a JSON-RPC message over plain ZeroMQ connections as fast as the peer takes it, and read nothing."""
    # ZMTP 3.0 by hand: libzmq would take as much of the machine as the peer.
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    body = message.encode()
    frames = (b"\x00" + bytes([len(body)]) + body) * (32768 // len(body))
    unsent: dict[socket.socket, memoryview] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(int(connections)):
            sock = socket.create_connection(("127.0.0.1", int(port)))
            sock.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
            while b"READY" not in sock.recv(256):
                pass
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_WRITE)
            unsent[sock] = memoryview(frames)
        _ready()
        while True:
            for key, _ in selector.select():
                sock = key.fileobj  # type: ignore[assignment]
                unsent[sock] = unsent[sock][sock.send(unsent[sock]) :] or memoryview(frames)


def controlled_app(*addresses: str) -> Any:
    """The smallest Flask app, under control."""
    from flask_ctl import Control

    app = flask_app()
    Control(app, socket=list(addresses))
    return app


def logging_app(address: str, port: str) -> None:
    """A Flask app under control, served by `app.run` at that port, which logs a kilobyte for each request."""
    import logging

    app = controlled_app(address)
    logger = logging.getLogger("bench")
    logger.setLevel(logging.INFO)
    app.before_request(lambda: logger.info("%s", "x" * 1000))
    app.run(port=int(port))


def entries(count: str) -> None:
    """So many entries in the registry of instances, none of which answers."""
    from flask_ctl.transports.registration import Registration
    from flask_ctl.transports.registry import Claims, RegisteredApp

    held = [Registration() for _ in range(int(count))]
    for number, registration in enumerate(held):
        app = RegisteredApp(f"held-{number}", "/srv/held", [f"/run/held-{number}.sock"])
        registration.renew(Claims([app], "/srv/held", "werkzeug"))
    _ready()
    threading.Event().wait()


def plain() -> None:
    """A Flask app on Werkzeug's own server, whose `shutdown` a helper thread calls for the first line on stdin."""
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, flask_app(), threaded=True)

    def end_when_asked() -> None:
        sys.stdin.readline()
        server.shutdown()

    threading.Thread(target=end_when_asked, daemon=True).start()
    _ready()
    server.serve_forever()


def _ready() -> None:
    print("ready", flush=True)


if __name__ == "__main__":
    programs: dict[str, Callable[..., None]] = {
        "echo": echo,
        "zmq_echo": zmq_echo,
        "controlled": controlled,
        "spinning": spinning,
        "serving": serving,
        "flood": flood,
        "logging_app": logging_app,
        "plain": plain,
        "entries": entries,
    }
    programs[sys.argv[1]](*sys.argv[2:])
