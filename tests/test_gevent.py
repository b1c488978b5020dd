"""Under gevent our threads are real ones, whatever the greenlets do, and wait for nothing of gevent's."""

from __future__ import annotations

import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any

import psutil
import pytest
from harness import PYTHON, TIMEOUT, Pending, Serve, Server, first_quick, read_all, until

END = ["on_stop", "after run", "atexit"]

PATCHES = {
    "patched": ("from gevent import monkey; monkey.patch_all()", ""),
    "patched after the import": ("", "from gevent import monkey; monkey.patch_all()"),
    "not patched": ("", ""),
}

PROGRAM = """
{before}
import sample
{after}
import gevent
from gevent.pywsgi import WSGIServer

@sample.app.get("/quit")
def quit():
    gevent.spawn(server.stop)
    return "quitting"

@sample.app.get("/thread")
def name_of_threads():
    from flask_ctl.system.native import threading
    return " ".join(sorted(thread.name for thread in threading.enumerate()))

server = WSGIServer(("127.0.0.1", 0), sample.app{options})
{serve}
sample.say("after run")
"""


@pytest.fixture
def start(serve: Serve) -> Serve:
    def start(patch: str = "patched", how: str = "server.serve_forever()", options: str = "", **popen: Any) -> Server:
        before, after = PATCHES[patch]
        code = PROGRAM.format(before=before, after=after, serve=how, options=options)
        return serve(command=[*PYTHON, "-c", code], **popen)

    return start


@pytest.mark.parametrize("patch", first_quick(PATCHES))
def test_control_answers_while_a_greenlet_computes(start: Serve, patch: str, short_path: pathlib.Path) -> None:
    server = start(patch)
    spinning = server.begin(f"/spin?until={short_path / 'gate'}")
    assert server.status()["requests"]["in_flight"] == 1
    assert server.call("greet", name="x") == {"greeting": "hello x"}
    (short_path / "gate").touch()
    assert spinning.result() == (200, b"spun")
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


@pytest.mark.parametrize("patch", first_quick(PATCHES))
def test_a_greenlet_that_computes_is_cut_by_fast(start: Serve, patch: str, short_path: pathlib.Path) -> None:
    server = start(patch)
    spinning = server.begin(f"/spin?until={short_path / 'gate'}")
    assert server.client().stop("fast")["cut"] == 1
    with pytest.raises(OSError):  # noqa: PT011
        spinning.result()
    assert server.wait() == 0
    assert [line for line in server.lines if line in END] == END


@pytest.mark.parametrize("patch", first_quick(PATCHES))
def test_a_signal_is_heard_while_a_greenlet_computes(start: Serve, patch: str, short_path: pathlib.Path) -> None:
    server = start(patch)
    spinning = server.begin(f"/spin?until={short_path / 'gate'}")
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    (short_path / "gate").touch()
    assert spinning.result() == (200, b"spun")
    assert server.wait() == 0


def test_no_hub_is_made_for_our_threads(start: Serve) -> None:
    """Each of four would have three descriptors of its own; the server may still open some, as that of its entry."""
    server = start()
    before = psutil.Process(server.pid).num_fds()
    for _ in range(8):
        server.call("greet", name="x")
    until(lambda: psutil.Process(server.pid).num_fds() < before + 6, "the clients' connections are closed")
    assert b"flask-ctl" in server.get("/thread")[1]


def test_a_program_that_only_starts_the_server_is_reloaded_and_ends_with_it(start: Serve) -> None:
    server = start(how="server.start(); gevent.get_hub().join()\nwhile True: gevent.sleep(1)")
    assert server.reload()["generation"] == 2
    held = server.begin("/hold/a")
    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


@pytest.mark.full
def test_a_program_that_only_starts_the_server_is_reloaded(start: Serve) -> None:
    server = start(how="server.start()\nwhile True: gevent.sleep(1)")
    assert server.reload()["generation"] == 2
    assert server.get("/") == (200, b"hello")


@pytest.mark.parametrize("how", first_quick(["server.serve_forever()", "server.start(); gevent.wait()"]))
def test_a_server_that_the_program_stops_is_under_control_no_more(start: Serve, how: str) -> None:
    server = start(how=how)
    assert server.get("/quit") == (200, b"quitting")
    assert server.wait() == 0
    assert server.said("on_stop", "after run", "atexit") == ["after run", "atexit"]


def test_a_pool_that_is_full_is_drained_with_its_backlog(start: Serve) -> None:
    server = start(options=", spawn=1")
    address = server.address
    held = server.begin("/hold/a")
    with socket.create_connection(address, timeout=TIMEOUT) as waiting:
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        stop = Pending.call(lambda: server.client().stop())
        until(lambda: server.status()["state"] == "stopping", "stopping")
        server.release("a")
        assert held.result() == (200, b"held a")
        assert read_all(waiting).endswith(b"hello")
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


def test_a_pool_that_is_full_is_cut(start: Serve) -> None:
    server = start(options=", spawn=1")
    held = server.begin("/hold/a")
    assert server.client().stop("fast")["cut"] == 1
    with pytest.raises(OSError):  # noqa: PT011
        held.result()
    assert server.wait() == 0


def test_pipelined_requests_are_all_answered(start: Serve) -> None:
    server = start()
    with socket.create_connection(server.address, timeout=TIMEOUT) as sock:
        sock.sendall(b"GET /hold/a HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: server.status()["requests"]["in_flight"], "in flight")
        stop = Pending.call(lambda: server.client().stop())
        until(lambda: server.status()["state"] == "stopping", "stopping")
        server.release("a")
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 200") == 2
    assert answers.endswith(b"hello")
    assert stop.result()["outcome"] == "drained"


def test_werkzeugs_server_works_in_a_patched_program_too(serve: Serve) -> None:
    code = (
        "from gevent import monkey; monkey.patch_all(); import sample; sample.app.run(port=0); sample.say('after run')"
    )
    server = serve(command=[*PYTHON, "-c", code])
    held = server.begin("/hold/a")
    assert server.get("/") == (200, b"hello")
    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


UNPATCHED = """
{before}
from flask_ctl.system import native
{after}
import threading
seen = []
thread = native.threading.Thread(target=lambda: seen.append(native.threading.get_ident()))
thread.start()
while not seen:
    pass
thread.join()
assert seen != [native.threading.get_ident()]
with native.socket.socket(native.socket.AF_UNIX) as listener:
    assert "gevent" not in type(listener).__mro__[1].__module__
with native.selectors.DefaultSelector() as selector:
    assert selector.fileno() > 0
assert native.subprocess.run(["echo", "x"], capture_output=True, timeout=30).stdout == b"x\\n"
assert native.threading.current_thread() is native.threading.main_thread()
assert native.new_future().set_result(1) is None
print("well")
"""


@pytest.mark.parametrize("patch", PATCHES)
def test_what_is_native_is_as_the_system_has_it(patch: str) -> None:
    before, after = PATCHES[patch]
    code = UNPATCHED.format(before=before, after=after)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.stdout, done.stderr) == ("well\n", "")
