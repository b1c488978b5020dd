"""flask-ctl stop: what it waits for, what it prints, how it exits."""

import json
import os
import pathlib
import pty
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest
from harness import Done, Pending, Serve, Server, run_cli, until

STOP = [sys.executable, "-m", "flask_ctl_cli", "stop"]


def begin_stop(server: Server, *arguments: str) -> Pending:
    """A `stop --json` in the background that the server has accepted."""
    stop = Pending.call(lambda: run_cli("stop", "--json", "-s", server.socket, *arguments))
    until(lambda: server.status()["state"] == "stopping", "stopping")
    return stop


def outcome(done: Done) -> Any:
    return json.loads(done.stdout)["outcome"]


def test_an_idle_server_is_gone_when_it_returns(serve: Serve) -> None:
    """One line that names the pid, and exit 0."""
    server = serve()
    done = run_cli("stop", "-s", server.socket)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"pid {server.pid} stopped: 0 requests finished")
    assert server.process.poll() == 0
    assert run_cli("stop", "-s", server.socket).returncode == 3


def test_it_waits_for_the_request_in_flight(serve: Serve) -> None:
    """Exit 0 means that it was answered, and that the process is gone."""
    server = serve()
    held = server.begin("/hold/a")
    stop = begin_stop(server)
    server.release("a")
    done = stop.result()
    assert held.result() == (200, b"held a")
    assert server.process.poll() == 0
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert (told["outcome"], told["drained"], told["cut"], told["pid"]) == ("drained", 1, 0, server.pid)


def test_quiet_prints_nothing_but_json_does(serve: Serve) -> None:
    """--json is an answer for programs, which --quiet does not take away."""
    done = run_cli("stop", "--quiet", "-s", serve().socket)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert outcome(run_cli("stop", "--quiet", "--json", "-s", serve().socket)) == "drained"


def test_past_grace_requests_are_cut_and_the_exit_is_6(serve: Serve) -> None:
    """The result says how many."""
    server = serve()
    held = server.begin("/hold/a")
    done = run_cli("stop", "--grace", "0", "--json", "-s", server.socket)
    assert done.returncode == 6
    told = json.loads(done.stdout)
    assert (told["outcome"], told["cut"]) == ("forced", 1)
    assert server.process.poll() is not None
    with pytest.raises(ConnectionError):
        held.result()


def test_fast_cuts_at_once_but_runs_hooks_and_atexit(serve: Serve) -> None:
    """Like grace 0."""
    server = serve()
    held = server.begin("/hold/a")
    done = run_cli("stop", "--mode", "fast", "-s", server.socket)
    assert done.returncode == 6
    assert "1 CUT" in done.stdout
    with pytest.raises(ConnectionError):
        held.result()
    assert {"on_stop", "atexit"} <= set(server.lines)


def test_immediate_runs_neither(serve: Serve) -> None:
    """The process is gone all the same."""
    server = serve()
    assert run_cli("stop", "--mode", "immediate", "-s", server.socket).returncode == 0
    assert server.process.poll() is not None
    assert not {"on_stop", "atexit"} & set(server.lines)


def test_a_second_stop_that_is_fast_hurries_the_first(serve: Serve) -> None:
    """Both get the same result."""
    server = serve()
    held = server.begin("/hold/a")
    first = begin_stop(server)
    second = run_cli("stop", "--mode", "fast", "--json", "-s", server.socket)
    assert [first.result().returncode, second.returncode] == [6, 6]
    with pytest.raises(ConnectionError):
        held.result()


def test_during_the_delay_it_still_accepts(serve: Serve) -> None:
    """A load balancer has time to notice."""
    server = serve()
    stop = begin_stop(server, "--delay", "3600")
    assert server.get("/") == (200, b"hello")
    assert run_cli("stop", "--mode", "fast", "-s", server.socket).returncode == 0
    assert outcome(stop.result()) == "drained"


def test_no_wait_returns_once_the_stop_is_accepted(serve: Serve) -> None:
    """Exit 0 with the request still in flight."""
    server = serve()
    held = server.begin("/hold/a")
    done = run_cli("stop", "--no-wait", "-s", server.socket)
    assert (done.returncode, done.stdout) == (0, f"pid {server.pid} is stopping\n")
    assert json.loads(run_cli("stop", "--no-wait", "--json", "-s", server.socket).stdout)["accepted"] is True
    assert server.process.poll() is None
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0


def test_kill_after_ends_a_server_that_hangs(serve: Serve) -> None:
    """A stopped process answers nothing; exit 6, and it is gone."""
    server = serve()
    server.suspend()
    done = run_cli("stop", "--kill-after", "0.1", "--json", "-s", server.socket)
    assert (done.returncode, outcome(done)) == (6, "killed")
    assert server.wait() == -signal.SIGKILL


def test_kill_after_suspends_the_timeout(serve: Serve) -> None:
    """The shorter timeout does not end the waiting before the kill."""
    server = serve()
    held = server.begin("/hold/a")
    done = run_cli("stop", "--kill-after", "0.3", "--timeout", "0.1", "-s", server.socket)
    assert done.returncode == 6
    assert f"pid {server.pid} was killed" in done.stdout
    with pytest.raises(ConnectionError):
        held.result()


def test_kill_after_kills_nothing_that_ends_by_itself(serve: Serve) -> None:
    """It is a limit, not a wait."""
    server = serve()
    done = run_cli("stop", "--kill-after", "60", "--json", "-s", server.socket)
    assert (done.returncode, outcome(done)) == (0, "drained")


def test_a_server_that_is_killed_meanwhile_died(serve: Serve) -> None:
    """Somebody's kill -9 during the drain is exit 6."""
    server = serve()
    held = server.begin("/hold/a")
    stop = begin_stop(server)
    server.process.kill()
    done = stop.result()
    assert (done.returncode, outcome(done)) == (6, "died")
    with pytest.raises(ConnectionError):
        held.result()


def test_at_the_timeout_the_server_is_still_there(serve: Serve) -> None:
    """Exit 4 tells what it waits for; the stop goes on."""
    server = serve()
    held = server.begin("/hold/a")
    server.client().stop(wait=False)
    done = run_cli("stop", "--timeout", "0.5", "-s", server.socket)
    assert (done.returncode, done.stdout) == (4, "")
    assert "1 in flight" in done.stderr
    assert "--kill-after" in done.stderr
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0


def test_missing_ok_turns_3_into_0() -> None:
    """With a remark, and with a JSON document; nothing else is forgiven."""
    done = run_cli("stop", "--missing-ok", "-s", "/nowhere/app.sock")
    assert (done.returncode, done.stdout) == (0, "")
    assert "/nowhere/app.sock" in done.stderr
    assert run_cli("stop", "--missing-ok", "--quiet", "-s", "/nowhere/app.sock").stderr == ""
    assert json.loads(run_cli("stop", "--missing-ok", "--json", "-s", "/x").stdout) == {"outcome": "missing"}
    assert run_cli("stop", "--missing-ok").returncode == 0
    assert run_cli("stop", "--missing-ok", "-s", "off").returncode == 2


def test_missing_ok_covers_a_stale_socket(short_path: pathlib.Path) -> None:
    """Left behind by a process that was killed."""
    path = str(short_path / "stale.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    assert run_cli("stop", "--missing-ok", "-s", path).returncode == 0


def test_call_stop_is_the_same_command(serve: Serve) -> None:
    """With its exit codes, and its parameters as key=value."""
    server = serve()
    held = server.begin("/hold/a")
    done = run_cli("call", "stop", "grace=0", "--json", "-s", server.socket)
    assert (done.returncode, outcome(done)) == (6, "forced")
    with pytest.raises(ConnectionError):
        held.result()


def test_in_a_terminal_a_progress_line_shows_while_it_drains(serve: Serve) -> None:
    """On stderr, wiped at the end; the result alone is on stdout."""
    server = serve()
    held = server.begin("/hold/a")
    shown, stdout = stop_in_a_terminal(server)
    assert held.result() == (200, b"held a")
    assert "drain: 1 in flight" in shown
    assert shown.endswith("\r\x1b[K")
    assert "\n" not in shown
    assert stdout.startswith(f"pid {server.pid} stopped: 1 request finished")


def test_quiet_shows_no_progress_line(serve: Serve) -> None:
    """Not even in a terminal."""
    server = serve()
    held = server.begin("/hold/a")
    assert stop_in_a_terminal(server, "--quiet") == ("", "")
    assert held.result() == (200, b"held a")


def test_without_a_terminal_there_is_no_progress_line(serve: Serve) -> None:
    """A log would be full of them."""
    server = serve()
    held = server.begin("/hold/a")
    stop = begin_stop(server)
    server.release("a")
    assert stop.result().stderr == ""
    assert held.result() == (200, b"held a")


def stop_in_a_terminal(server: Server, *arguments: str) -> tuple[str, str]:
    """stderr as a terminal showed it, and stdout; the request /hold/a is released once something is shown."""
    terminal, stderr = pty.openpty()
    with subprocess.Popen(
        [*STOP, "-s", server.socket, *arguments], stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as client:
        os.close(stderr)
        until(lambda: server.status()["state"] == "stopping", "stopping")
        shown = b"" if arguments else read_until(terminal, b"in flight")
        server.release("a")
        stdout = client.communicate()[0]
    shown += read_until(terminal, None)
    os.close(terminal)
    assert client.returncode == 0
    return shown.decode(), stdout


def read_until(terminal: int, word: bytes | None) -> bytes:
    """What the terminal showed, up to a word or its end (EIO)."""
    shown = b""
    while word is None or word not in shown:
        try:
            shown += os.read(terminal, 1024)
        except OSError:
            break
    return shown
