"""The app that the tests serve. What takes its time waits for the command `release`, never for a clock."""

import os
import sys

if "patched" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import atexit
import ctypes
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NoReturn

from flask import Flask, request

from flask_ctl import Control

app = Flask("sample")
app.config.from_prefixed_env("FLASK")  # FLASK_CTL_SIGNALS and the like
control = Control(app)
app.add_url_rule("/health", view_func=control.health)
gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
VERSION = "old"


def say(text: str) -> None:
    """Print one line at once, whole."""
    os.write(1, f"{text}\n".encode())


@app.get("/")
def index() -> str:
    return "hello"


@app.get("/version")
def version() -> str:
    return VERSION


@app.get("/hold/<name>")
def hold(name: str) -> str:
    gates[name].wait()
    return f"held {name}"


@app.get("/stream/<name>")
def stream(name: str) -> Iterator[str]:
    def pieces() -> Iterator[str]:
        yield "first "
        gates[name].wait()
        yield "last"

    return pieces()


@app.get("/big")
def big() -> bytes:
    return b"x" * 8_000_000


@app.post("/echo")
def echo() -> bytes:
    return request.get_data()


@app.get("/boom")
def boom() -> NoReturn:
    raise RuntimeError("boom")


@app.get("/spin")
def spin() -> str:
    """Compute, and let nothing else of this thread run, until a file is there."""
    while not os.path.exists(request.args["until"]):
        pass
    return "spun"


@app.get("/stuck")
def stuck() -> NoReturn:
    """A C call that does not release the interpreter, and ends with its process."""
    ctypes.PyDLL(None).sleep(3600)
    raise AssertionError


@app.get("/stop")
def stop_from_view() -> str:
    control.stop()
    return "stopping"


@app.get("/fork")
def fork() -> str:
    """A child that inherits every descriptor, and outlives the server until its standard input ends."""
    pid = os.fork()
    if pid == 0:
        os.read(0, 1)
        os._exit(0)
    return str(pid)


@control.command
def release(name: str) -> str:
    """Let what waits at /hold/<name> or /stream/<name> go on."""
    gates[name].set()
    return name


@control.command
def greet(name: str, times: int = 1) -> dict[str, str]:
    """Greet somebody."""
    return {"greeting": f"hello {name}" * times}


@control.command(role="observe")
def look() -> str:
    """Something to see for all who may observe."""
    return VERSION


@control.command(scope="one")
def whoami() -> int:
    """The process that runs this."""
    return os.getpid()


@control.command
def fail(message: str = "no") -> None:
    """Raise an exception."""
    raise ValueError(message)


@control.command
def wait_for(name: str) -> str:
    """Hang until `release`."""
    say(f"waits for {name}")
    gates[name].wait()
    return name


@control.on_reload
def reread() -> None:
    say("on_reload")


@control.on_stop
def on_stop() -> None:
    say("on_stop")


atexit.register(say, "atexit")

if __name__ == "__main__":
    how = sys.argv[1:]
    if "patched late" in how:
        from gevent import monkey

        monkey.patch_all()
    options: dict[str, Any] = {"port": 0}
    if "unthreaded" in how:
        options["threaded"] = False
    if "debug" in how:
        options |= {"debug": True, "exclude_patterns": ["*"]}
    if "forking" in how:
        options |= {"threaded": False, "processes": 4}
    if "keeper" in how:
        threading.Thread(target=gates["keeper"].wait, name="keeper").start()
    if "control" in how:
        control.run(**options)
    elif "make_server" in how:
        from werkzeug.serving import make_server

        make_server("127.0.0.1", 0, app, threaded=True).serve_forever()
    elif "waitress" in how:
        import waitress

        waitress.serve(app, host="127.0.0.1", port=0)
    elif "cheroot" in how:
        from cheroot.wsgi import Server

        Server(("127.0.0.1", 0), app).start()
    elif "pywsgi" in how:
        from gevent.pywsgi import WSGIServer

        WSGIServer(("127.0.0.1", 0), app).serve_forever()
    elif "wsgiref" in how:
        from wsgiref import simple_server

        server = simple_server.make_server("127.0.0.1", int(os.environ["PORT"]), app)
        say("listening")
        server.serve_forever()
    else:
        app.run(**options)
    say("after run")
