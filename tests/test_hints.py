"""What a person is advised after a time-out: what fits the command, and helps."""

import os
import signal
from typing import NamedTuple

import pytest
from harness import PYTHON, SITES, Serve, Site, first_quick, run_cli, until

from flask_ctl import ControlError, TimedOut
from flask_ctl_cli.hints import hint_after

KILL = "end it by: flask-ctl stop --kill-after SECONDS"
SEE = "see why by: flask-ctl stacks"
DRAINING = {"pid": 1, "can_be_killed": True, "mode": "graceful", "phase": "drain", "in_flight": 2}


class Case(NamedTuple):
    command: str
    data: object
    hint: str


CASES = {
    "a question": Case("ping", None, f"Wait longer by --timeout, or {SEE}, or {KILL}"),
    "the question why it does not answer": Case("stacks", None, f"Wait longer by --timeout, or {KILL}"),
    "a question to what can't be killed": Case("status", {"can_be_killed": False}, "Wait longer by --timeout."),
    "a command of the app's": Case("greet", {"can_be_killed": True}, "Wait longer by --timeout."),
    "a reload with requests at work": Case(
        "reload",
        {"in_flight": 1, "threads": []},
        "Give it more time by --grace SECONDS, or cut what is still at work by --cut.",
    ),
    "a reload with threads at work": Case(
        "reload",
        {"in_flight": 0, "threads": ["mine"]},
        "Give it more time by --grace SECONDS, or cut what is still at work by --cut.",
    ),
    "a reload that waited for a worker": Case("reload", None, ""),
    "a stop with requests in flight": Case(
        "stop",
        DRAINING,
        f"Wait longer by --timeout, or cut its requests by: flask-ctl stop --mode fast, or {KILL}",
    ),
    "a fast stop with requests in flight": Case(
        "stop", {**DRAINING, "mode": "fast"}, f"Wait longer by --timeout, or {KILL}"
    ),
    "a stop over TCP": Case(
        "stop",
        {**DRAINING, "can_be_killed": False},
        "Wait longer by --timeout, or cut its requests by: flask-ctl stop --mode fast",
    ),
    "a stop with hooks that hang": Case(
        "stop",
        {**DRAINING, "phase": "hooks", "in_flight": 0},
        f"Wait longer by --timeout, or leave its on_stop hooks unfinished by: flask-ctl stop --mode fast, or {KILL}",
    ),
    "a stop with threads that stay": Case(
        "stop",
        {"can_be_killed": True, "mode": "graceful", "waiting_for": ["mine"]},
        f"Wait longer by --timeout, or {KILL}",
    ),
    "a stop that no hub has answered": Case("stop", {"hub": "died"}, "Stop it again: flask-ctl stop"),
    "a kill that the kernel has not done yet": Case("stop", {"killed": True, "can_be_killed": False}, ""),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_hint_fits_the_command_and_what_it_waits_for(case: Case) -> None:
    assert hint_after(TimedOut("late", case.data), case.command, "flask-ctl") == case.hint


def test_a_ping_that_waits_is_told_to_wait_longer_by_its_own_option(serve: Serve) -> None:
    server = serve().suspend()
    done = run_cli("ping", "--wait", "0.1", "-s", server.socket)
    assert (done.returncode, done.stdout) == (4, "")
    assert f"Wait longer by --wait, or {SEE}, or {KILL}" in done.stderr


def test_a_reload_names_its_own_options_and_no_stop(serve: Serve) -> None:
    """As a command, and by `call`."""
    server = serve()
    server.begin("/hold/a")
    for words in (["reload", "--grace", "0.1"], ["call", "reload", "grace=0.1", "preflight=no"]):
        done = run_cli(*words, "-s", server.socket)
        assert done.returncode == 4
        assert "1 still in flight after 0.1 s of grace; the old code still serves" in done.stderr
        assert "--grace" in done.stderr
        assert "--cut" in done.stderr
        assert "stop" not in done.stderr
    server.release("a")


def test_a_stop_names_fast_where_requests_are_in_flight(serve: Serve) -> None:
    server = serve()
    held = server.begin("/hold/a")
    server.client().stop(wait=False)
    done = run_cli("stop", "--timeout", "0.5", "-s", server.socket)
    assert done.returncode == 4
    assert "1 in flight" in done.stderr
    assert "flask-ctl stop --mode fast" in done.stderr
    assert run_cli("stop", "--mode", "fast", "-s", server.socket).returncode == 6
    with pytest.raises(ConnectionError):
        held.result()


def test_a_stop_whose_hook_hangs_names_fast_which_leaves_the_hook_behind(serve: Serve) -> None:
    code = "import threading, sample\nsample.control.on_stop(lambda: threading.Event().wait())\nsample.app.run(port=0)"
    server = serve(command=[*PYTHON, "-c", code])
    server.client().stop(wait=False)
    until(lambda: "on_stop" in server.lines, "the hook before it")
    late = run_cli("stop", "--timeout", "0.5", "-s", server.socket)
    assert late.returncode == 4
    assert "its on_stop hooks run" in late.stderr
    assert "leave its on_stop hooks unfinished by: flask-ctl stop --mode fast" in late.stderr
    assert run_cli("stop", "--mode", "fast", "-s", server.socket).returncode == 6
    assert server.wait() == 0


@pytest.mark.parametrize("site", first_quick(SITES), indirect=True)
def test_a_kill_is_named_where_it_can_be_done(serve: Serve, site: Site) -> None:
    """Never over TCP; not for a command of the app's, which may only be slow, nor for a reload."""
    server = serve(socket=site).suspend()
    local = not site.socket.startswith("tcp")
    for words in (["ping"], ["stop"], ["greet", "--name", "x"], ["reload"]):
        done = run_cli(*words, "-s", server.socket, "--timeout", "0.5", env=site.client_env)
        assert ("--kill-after" in done.stderr) == (local and words[0] in ("ping", "stop")), done.stderr
        assert done.returncode == (1 if words == ["reload"] else 4)


@pytest.mark.parametrize("site", first_quick(SITES), indirect=True)
def test_a_reload_that_could_not_begin_is_no_time_out(serve: Serve, site: Site) -> None:
    """Exit 4 of a reload is the server's own word that the old code serves everybody."""
    server = serve(socket=site).suspend()
    with server.client() as client, pytest.raises(ControlError, match="no reload has begun") as raised:
        client.reload(timeout=0.2)
    assert not isinstance(raised.value, TimedOut)
    os.kill(server.pid, signal.SIGCONT)
    until(lambda: server.status()["generation"] == 1, "an answer")
    assert server.status()["last_reload"] is None
