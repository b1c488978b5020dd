"""`Control(app)` alone puts an app under control, whatever starts it, and nothing else."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
from harness import APPS, Pending, Serve, get, until

from flask_ctl import ControlClient, ControlError


def test_status_counts_requests_errors_and_what_is_in_flight(serve: Serve) -> None:
    server = serve()
    server.get("/")
    server.get("/boom")
    held = server.begin("/hold/a")
    requests = server.status()["requests"]
    assert (requests["in_flight"], requests["total"], requests["errors"]) == (1, 3, 1)
    assert requests["oldest"] >= 0
    server.release("a")
    assert held.result() == (200, b"held a")
    until(lambda: server.status()["requests"]["in_flight"] == 0, "no request in flight")


def test_status_has_every_field_of_the_contract(serve: Serve) -> None:
    server = serve()
    status = server.status()
    assert status["protocol"] == 1
    assert status["generation"] == 1
    assert status["cwd"] == status["root_path"] == str(APPS)
    assert status["started_at"].endswith("Z")
    assert status["reloaded_at"] is status["last_reload"] is status["stopping"] is None
    assert status["workers"] == []
    assert set(status["process"]) == {"rss", "cpu", "threads", "fds"}
    assert set(status["versions"]) == {"python", "flask", "werkzeug", "flask_ctl"}
    assert all(status["versions"].values())
    assert isinstance(status["uptime"], float)


def test_wsgiref_comes_under_control_with_its_first_request(serve: Serve, free_port: int) -> None:
    server = serve(command=[sys.executable, "sample.py", "wsgiref"], env={"PORT": str(free_port)}, ready=False)
    until(lambda: "listening" in server.lines, "listening")
    with pytest.raises(ControlError), server.client() as client:
        client.ping()
    assert get(("127.0.0.1", free_port), "/") == (200, b"hello")
    server.ready()
    assert server.status()["server"]["name"] == "unknown"
    assert server.status()["server"]["listeners"] == [f"http://localhost:{free_port}"]
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0
    assert server.said("on_stop", "atexit") == ["on_stop", "atexit"]


@pytest.mark.parametrize("arguments", [["routes"], ["shell"]], ids=" ".join)
def test_flask_commands_that_do_not_serve_bind_nothing(
    short_path: pathlib.Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_CTL_SOCKET", str(short_path / "x.sock"))
    command = [sys.executable, "-m", "flask", "--app", "sample", *arguments]
    subprocess.run(command, cwd=APPS, check=True, capture_output=True, input=b"print(app)\n")
    assert not list(short_path.glob("x.sock*"))


def test_the_test_client_binds_nothing(short_path: pathlib.Path) -> None:
    from flask import Flask

    from flask_ctl import Control

    app = Flask(__name__)
    Control(app, socket=short_path / "x.sock")
    app.add_url_rule("/", view_func=lambda: "hello")
    assert app.test_client().get("/").text == "hello"
    assert not list(short_path.glob("x.sock*"))


TWO_APPS = """
import sys
from flask import Flask
from flask_ctl import Control
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import run_simple
one, two = Flask("one"), Flask("two")
control = Control()
control.init_app(one, socket=sys.argv[1])
control.init_app(two, socket=sys.argv[2])
one.add_url_rule("/", view_func=lambda: "one")
two.add_url_rule("/", view_func=lambda: "two")
run_simple("127.0.0.1", 0, DispatcherMiddleware(one, {"/two": two}), threaded=True)
"""


def test_each_of_several_apps_has_a_socket_of_its_own(serve: Serve, short_path: pathlib.Path) -> None:
    paths = [str(short_path / "one.sock"), str(short_path / "two.sock")]
    command = [sys.executable, "-c", TWO_APPS, *paths]
    server = serve(command=command, socket=paths[0], env={"FLASK_CTL_SOCKET": ""})
    with ControlClient(paths[0]) as one, ControlClient(paths[1]) as two:
        server.get("/two/")
        assert one.status()["app"] == "one"
        assert two.status()["app"] == "two"
        assert one.status()["requests"]["total"] == 0
        assert two.status()["requests"]["total"] == 1
        assert two.stop()["outcome"] == "drained"
    assert server.wait() == 0
    assert not list(short_path.glob("*.sock"))


def test_apps_of_the_same_name_keep_their_own_counts_over_a_reload(serve: Serve, short_path: pathlib.Path) -> None:
    program = TWO_APPS.replace('Flask("two")', 'Flask("one")').replace('lambda: "two"', "lambda: 1 / 0")
    (short_path / "apps.py").write_text(program)
    paths = [str(short_path / "one.sock"), str(short_path / "two.sock")]
    command = [sys.executable, str(short_path / "apps.py"), *paths]
    server = serve(command=command, socket=paths[0], env={"FLASK_CTL_SOCKET": ""})

    def counts() -> list[tuple[int, int, int, float]]:
        found = []
        for path in paths:
            with ControlClient(path) as client:
                requests = client.status()["requests"]
                families = {one["name"]: one for one in client.metrics()["families"]}
                measured = sum(value for _, _, value, *_ in families["flask_ctl_requests"]["samples"])
                errors = len(client.exceptions()["exceptions"])
                found.append((requests["total"], requests["errors"], errors, measured))
        return found

    for path in ("/", "/", "/two/"):
        server.get(path)
    until(lambda: counts() == [(2, 0, 0, 2.0), (1, 1, 1, 1.0)], "the requests are over")
    server.reload()
    assert counts() == [(2, 0, 0, 2.0), (1, 1, 1, 1.0)]


PATH_DISPATCHER = """
import threading
from flask import Flask
from flask_ctl import Control
from werkzeug.serving import make_server, run_simple
import sample

class PathDispatcher:
    # That of Flask's documentation, "Application Dispatching".

    def __init__(self, default_app, create_app):
        self.default_app, self.create_app = default_app, create_app
        self.lock, self.instances = threading.Lock(), {}

    def __call__(self, environ, start_response):
        prefix = environ["PATH_INFO"].split("/")[1]
        app = self.get_application(prefix) if prefix.startswith("tenant") else self.default_app
        return app(environ, start_response)

    def get_application(self, prefix):
        with self.lock:
            if prefix not in self.instances:
                self.instances[prefix] = self.create_app(prefix)
            return self.instances[prefix]

def create_app(name):
    app = Flask(name)
    Control(app).on_stop(lambda: sample.say("on_stop of a tenant"))
    app.add_url_rule(f"/{name}", view_func=lambda: name)
    app.add_url_rule(f"/{name}/held", view_func=held)
    return app

def held():
    sample.say("held")
    return sample.hold("a")

dispatcher = PathDispatcher(sample.app, create_app)
"""

SERVED = {
    "werkzeug": 'run_simple("127.0.0.1", 0, dispatcher, threaded=True)',
    "waitress": 'import waitress; waitress.serve(dispatcher, host="127.0.0.1", port=0)',
    "a thread": """
server = make_server("127.0.0.1", 0, dispatcher, threaded=True)
thread = threading.Thread(target=server.serve_forever)
thread.start()
thread.join()
""",
}


@pytest.mark.parametrize("how", SERVED)
def test_an_app_that_is_created_while_the_server_serves_leaves_the_stop_to_the_first(serve: Serve, how: str) -> None:
    """In its own thread the server leaves the signals to the program, and is stopped at the first app's socket."""
    server = serve(command=[sys.executable, "-c", PATH_DISPATCHER + SERVED[how]])
    for _ in range(2):
        assert server.get("/tenant1") == (200, b"tenant1")
    assert server.get("/tenant2") == (200, b"tenant2")
    held = [server.begin("/hold/a"), Pending(server.address, "/tenant1/held")]
    until(lambda: server.said("held"), "a tenant's request in flight")
    if how == "a thread":
        stop = Pending.call(lambda: server.client().stop())
    else:
        os.kill(server.pid, signal.SIGTERM)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert [each.result() for each in held] == [(200, b"held a")] * 2
    if how == "a thread":
        assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0
    assert server.said("on_stop", "on_stop of a tenant", "atexit") == ["on_stop", "atexit"]
    late = re.findall(r"(\w+) serves without a control socket: the server of sample", server.output)
    assert late == ["tenant1", "tenant2"]


WITHOUT_AF_UNIX = """
import socket
del socket.AF_UNIX
from flask import Flask
from flask_ctl import Control
from werkzeug.serving import make_server
app, other = Flask("app"), Flask("other")
Control(app)
Control(other)
app.add_url_rule("/", view_func=lambda: "hello")
server = make_server("127.0.0.1", 0, app)
import threading, urllib.request
thread = threading.Thread(target=server.serve_forever)
thread.start()
print(urllib.request.urlopen(f"http://127.0.0.1:{server.port}/").read().decode())
server.shutdown()
thread.join()
"""


def test_without_unix_sockets_the_app_warns_once_and_serves() -> None:
    result = subprocess.run([sys.executable, "-c", WITHOUT_AF_UNIX], capture_output=True, text=True, check=True)
    assert result.stdout == "hello\n"
    assert result.stderr.count("no Unix sockets") == 1


def test_off_in_the_environment_leaves_the_app_alone(serve: Serve, short_path: pathlib.Path, free_port: int) -> None:
    code = f"import sample, signal; print(signal.getsignal(signal.SIGTERM)); sample.app.run(port={free_port})"
    server = serve(command=[sys.executable, "-c", code], env={"FLASK_CTL_SOCKET": "off"}, ready=False)
    until(lambda: "Running on" in server.output, "serving")
    assert server.get("/", ("127.0.0.1", free_port)) == (200, b"hello")
    assert not list(short_path.rglob("*.sock"))
    server.process.terminate()
    assert server.wait() == -15


def test_an_app_that_is_embedded_in_a_thread_is_stopped_and_the_program_goes_on(serve: Serve) -> None:
    code = """
import threading, sample
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, sample.app, threaded=True)
thread = threading.Thread(target=server.serve_forever)
thread.start(); thread.join()
print("the program goes on"); input(); print("it ends")
"""
    server = serve(command=[sys.executable, "-c", code], stdin=subprocess.PIPE)
    with server.client() as client:
        result = client.stop()
    assert (result["outcome"], result["embedded"]) == ("drained", True)
    until(lambda: "the program goes on" in server.lines, "the program goes on")
    assert server.process.poll() is None
    assert not server.output_path.with_name("0.sock").exists()
    server.process.communicate(b"\n")
    assert server.wait() == 0


def test_a_stop_waits_for_the_threads_of_a_loop_that_the_program_has_ended(serve: Serve) -> None:
    code = """
import threading, sample
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, sample.app, threaded=True)
@sample.control.command
def end_loop():
    server.shutdown()
thread = threading.Thread(target=server.serve_forever)
thread.start(); thread.join()
"""
    server = serve(command=[sys.executable, "-c", code])
    held = server.begin("/hold/a")
    seen: list[Any] = []
    stop = Pending.call(lambda: server.client().stop(on_progress=seen.append))
    until(lambda: any(progress["phase"] == "drain" for progress in seen), "the drain")
    server.call("end_loop")
    assert server.status()["state"] == "stopping"
    server.release("a")
    assert held.result() == (200, b"held a")
    result = stop.result()
    assert (result["outcome"], result["drained"], result["cut"]) == ("drained", 1, 0)


def test_immediate_is_refused_where_it_would_end_a_bigger_program(short_path: pathlib.Path) -> None:
    from flask import Flask

    from flask_ctl import BackgroundServer, CommandError

    server, client = BackgroundServer(Flask("x"), socket=short_path / "x.sock"), ControlClient(short_path / "x.sock")
    with server, client, pytest.raises(CommandError) as refusal:
        client.stop("immediate")
    assert refusal.value.code == -32001


def test_a_second_loop_of_the_same_program_is_under_control_again(serve: Serve) -> None:
    server = serve(command=[sys.executable, "-c", "import sample\nfor _ in range(2): sample.app.run(port=0)"])
    with pytest.raises(ControlError, match="main thread has not returned"), server.client() as client:
        client.stop(timeout=2.0)
    until(lambda: server.ready().status()["state"] == "running", "running again")
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


def test_middleware_that_holds_a_proxy_is_no_obstacle(serve: Serve) -> None:
    code = """
import sample
from flask import request
class Middleware:
    def __init__(self, app):
        self.request, self.app = request, app
    def __call__(self, environ, start_response):
        return self.app(environ, start_response)
from werkzeug.serving import run_simple
run_simple("127.0.0.1", 0, Middleware(sample.app), threaded=True)
"""
    server = serve(command=[sys.executable, "-c", code])
    assert server.status()["app"] == "sample"


def test_a_standard_error_that_is_no_terminal_nor_file_is_no_obstacle(serve: Serve) -> None:
    code = """
import sys, sample
class Log:
    def write(self, text): ...
    def flush(self): ...
sys.stderr = Log()
sample.app.run(port=0)
"""
    server = serve(command=[sys.executable, "-c", code])
    held = server.begin("/hold/a")
    server.process.send_signal(2)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0
