"""TERM and INT, and what the program had done with them before."""

from __future__ import annotations

import json
import os
import pathlib
import pty
import signal
import subprocess
import sys

import pytest
from harness import FLASK, MODES, TIMEOUT, Serve, first_quick, raw, until

PROGRAM = """
import os, signal, sys, threading
import sample
def on_signal(signum, frame):
    sample.say(f"handler {{signum}}")
    {action}
signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
sample.app.run(port=0)
sample.say(f"restored {{signal.getsignal(signal.SIGTERM) is on_signal}}")
"""


def program(action: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(action=action)]


@pytest.mark.parametrize(
    ("action", "exit_code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        pytest.param("sys.exit()", 0, marks=pytest.mark.full),
        pytest.param("raise SystemExit('a message')", 1, marks=pytest.mark.full),
        ("raise RuntimeError('x')", 0),
    ],
)
def test_the_programs_own_handler_is_called_once_and_only_systemexit_sets_the_exit_code(
    serve: Serve, action: str, exit_code: int
) -> None:
    server = serve(command=program(action))
    held = server.begin("/hold/a")
    os.kill(server.pid, signal.SIGTERM)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    os.kill(server.pid, signal.SIGTERM)
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == exit_code
    assert server.said("handler 15", "atexit") == ["handler 15", "atexit"]


def test_a_server_that_is_seen_to_run_has_its_handlers(serve: Serve) -> None:
    """A signal that came between the two would kill it."""
    slow = """
import signal, time, sample
set_handler = signal.signal
def set_late(*arguments):
    time.sleep(0.3)
    return set_handler(*arguments)
signal.signal = set_late
sample.app.run(port=0)
"""
    server = serve(command=[sys.executable, "-c", slow])
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == 0


def test_handlers_are_put_back_when_the_server_has_ended(serve: Serve) -> None:
    server = serve(command=program("pass"))
    server.client().stop()
    assert server.wait() == 0
    assert "restored True" in server.lines


def test_a_second_interrupt_cuts(serve: Serve) -> None:
    server = serve()
    held = server.begin("/hold/a")
    os.kill(server.pid, signal.SIGINT)
    until(lambda: server.status()["state"] == "stopping", "stopping")
    os.kill(server.pid, signal.SIGINT)
    assert server.wait() == 0
    with pytest.raises(OSError):  # noqa: PT011
        held.result()


def test_a_second_term_does_not_cut(serve: Serve) -> None:
    server = serve()
    held = server.begin("/hold/a")
    for _ in range(2):
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0


def test_an_interrupt_in_a_terminal_says_what_it_waits_for(serve: Serve) -> None:
    leader, follower = pty.openpty()
    server = serve(command=[sys.executable, "-c", f"import os; os.dup2({follower}, 2); import sample; "
                            "sample.app.run(port=0)"], pass_fds=[follower])  # fmt: skip
    os.close(follower)
    held = server.begin("/hold/a")
    os.kill(server.pid, signal.SIGINT)
    shown = b""
    while b"press Ctrl-C again" not in shown:
        shown += os.read(leader, 4096)
    assert b"Waiting for 1 in flight" in shown
    server.release("a")
    assert held.result() == (200, b"held a")
    os.close(leader)
    assert server.wait() == 0


def test_signals_can_be_left_to_the_program(serve: Serve) -> None:
    code = "import sample; sample.app.config['CTL_SIGNALS'] = False; sample.app.run(port=0)"
    server = serve(command=[sys.executable, "-c", code])
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == -signal.SIGTERM


@pytest.mark.parametrize("mode", first_quick(["app.run", "app.run debug", "flask run --debug"]))
def test_a_stop_works_without_our_signal_handlers(serve: Serve, mode: str, short_path: pathlib.Path) -> None:
    command = [*MODES[mode]]
    server = serve(command=command, env={"FLASK_CTL_SIGNALS": "false"})
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


def test_a_child_that_the_app_forks_does_not_inherit_the_handlers(serve: Serve) -> None:
    server = serve(stdin=subprocess.PIPE)
    child = int(server.get("/fork")[1])

    def ends() -> bool:
        # Python forgets a signal that comes before the child has put the handlers back, a moment after the fork.
        os.kill(child, signal.SIGTERM)
        return _is_zombie_or_gone(child)

    until(ends, "the child ends by SIGTERM")
    assert server.status()["state"] == "running"
    server.client().stop()
    server.process.communicate(timeout=TIMEOUT)


def _is_zombie_or_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_term_before_the_server_serves_ends_the_reloader_at_once(serve: Serve) -> None:
    """The child is asked while it still imports the app: nothing is in flight, both processes end."""
    server = serve(command=[*FLASK, "--debug"], ready=False)
    until(lambda: "Restarting with" in server.output, "the child is being started")
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == 0


def test_a_caller_that_waits_for_a_stop_is_answered_when_a_signal_begins_one(serve: Serve) -> None:
    """As a client does before it has a supervisor send the signal: the process may end before a second call."""
    server = serve()
    with raw(server.socket) as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"stop","params":{"begin":false}}\n')
        sock.sendall(b'{"jsonrpc":"2.0","id":2,"method":"status"}\n')
        assert json.loads(lines.readline())["result"]["state"] == "running"
        os.kill(server.pid, signal.SIGTERM)
        answer = json.loads(lines.readline())
    assert (answer["id"], answer["result"]["outcome"], answer["result"]["pid"]) == (1, "drained", server.pid)
    assert server.wait() == 0
