"""The recipes that people copy to end a Flask app, and what does the same with nothing lost."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import threading
from http.client import HTTPConnection

import pytest
from flask import Flask
from harness import PYTHON, TIMEOUT, Pending, Serve, first_quick, get, until
from werkzeug.serving import make_server

from flask_ctl import BackgroundServer, Control, ControlClient


def test_a_shutdown_route_answers_and_then_the_process_ends(serve: Serve) -> None:
    """The function that Werkzeug removed in 2.1 is back: CTL_LEGACY_SHUTDOWN."""
    server = serve(command=[*PYTHON, "seed_route.py"])
    connection = HTTPConnection(*server.address, timeout=TIMEOUT)
    connection.request("POST", "/shutdown")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"Server shutting down...")
    connection.close()
    assert server.wait() == 0


def test_a_signal_handler_that_fails_still_drains_and_exits_with_0(serve: Serve) -> None:
    server = serve(command=[*PYTHON, "seed_signal.py"])
    assert server.get("/") == (200, b"Hello, World!")
    os.kill(server.pid, signal.SIGINT)
    assert server.wait() == 0
    assert "Shutting down server..." in server.lines
    assert "NameError" in server.output


def test_make_server_in_a_thread_ends_by_shutdown_as_ever() -> None:
    """R2: `serve_forever` in a thread, `shutdown` from another."""
    app = Flask(__name__)
    Control(app, socket="off")
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.shutdown()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


@pytest.mark.parametrize("threaded", [True, False], ids=["threaded", "unthreaded"])
def test_a_background_server_instead_of_make_server_in_a_thread(threaded: bool) -> None:
    """R2 without its deadlock for `threaded=False`: stopped from one of its own requests."""
    app = Flask(__name__)
    server = BackgroundServer(app, threaded=threaded)
    app.add_url_rule("/stop", "/stop", lambda: server.stop() or "stopping")
    with server:
        assert get(("127.0.0.1", server.port), "/stop") == (200, b"stopping")


MULTIPROCESSING = """
import multiprocessing
def serve():
    # Under spawn the app itself can't be pickled, but a function that imports it can.
    import sample
    sample.app.run(port=0)
if __name__ == "__main__":
    multiprocessing.set_start_method("METHOD")
    process = multiprocessing.Process(target=serve)
    process.start()
    print(process.pid)
    process.join()
    print("exit code", process.exitcode)
"""


@pytest.mark.parametrize("how", ["client", "terminate"])
@pytest.mark.parametrize("method", first_quick(["fork", "spawn"]))
def test_a_process_of_multiprocessing_drains(serve: Serve, short_path: pathlib.Path, method: str, how: str) -> None:
    """R3: `Process(target=app.run)`, ended by a ControlClient or by `terminate`, which is SIGTERM."""
    script = short_path / "program.py"
    script.write_text(MULTIPROCESSING.replace("METHOD", method))
    path = os.path.dirname(os.path.abspath(__file__)) + "/apps"
    server = serve(command=[*PYTHON, str(script)], env={"PYTHONPATH": path})
    pid = server.status()["pid"]
    assert pid != server.pid
    held = server.begin("/hold/a")
    if how == "client":
        stop = Pending.call(lambda: server.client().stop())
    else:
        os.kill(pid, signal.SIGTERM)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == (200, b"held a")
    if how == "client":
        assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0
    assert "exit code 0" in server.lines
    assert not os.path.exists(server.socket)


def test_control_stop_in_a_view_instead_of_a_kill(serve: Serve) -> None:
    """R4: `os.kill(os.getpid(), SIGINT)` in a view, where a background job ignores SIGINT."""
    server = serve(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert server.get("/stop") == (200, b"stopping")
    assert server.wait() == 0
    assert server.said("on_stop", "after run", "atexit") == ["on_stop", "after run", "atexit"]


def test_a_kill_in_a_view_drains_too(serve: Serve) -> None:
    """R4 itself: the view that asked is answered before the process ends."""
    code = """
import os, signal, sample
sample.app.add_url_rule("/kill", "/kill", lambda: os.kill(os.getpid(), signal.SIGINT) or "killed")
sample.app.run(port=0)
"""
    server = serve(command=[sys.executable, "-c", code])
    assert server.get("/kill") == (200, b"killed")
    assert server.wait() == 0
    assert server.said("atexit") == ["atexit"]


def test_a_background_server_instead_of_a_daemon_thread(short_path: pathlib.Path) -> None:
    """R5: it can be stopped, and started again in the same process."""
    app = Flask(__name__)
    app.add_url_rule("/", "/", lambda: "hello")
    server = BackgroundServer(app, socket=short_path / "x.sock")
    for _ in range(2):
        server.start()
        assert get(("127.0.0.1", server.port), "/") == (200, b"hello")
        with ControlClient(short_path / "x.sock") as client:
            assert client.stop()["outcome"] == "drained"
        server.stop()


def test_a_timer_that_stops_flushes_what_was_printed(serve: Serve) -> None:
    """R5: instead of `os._exit` from a timer."""
    code = """
import sys, threading, sample
sys.stdout.write("buffered")
def stop():
    try:
        sample.control.stop()
    except Exception:
        threading.Timer(0.01, stop).start()
threading.Timer(0.01, stop).start()
sample.app.run(port=0)
"""
    server = serve(command=[sys.executable, "-c", code], env={"PYTHONUNBUFFERED": ""}, ready=False)
    assert server.wait() == 0
    assert "buffered" in server.output
