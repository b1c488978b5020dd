"""`flask-ctl shell`: the same commands with the same exit codes, on one connection, and a prompt."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import pty
import re
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest
from harness import TIMEOUT, Done, Serve, Server, run_cli
from shells import Shell

PROGRAM = [sys.executable, "-m", "flask_ctl_cli", "shell"]


def piped(server: Server, *lines: str, options: tuple[str, ...] = ()) -> Done:
    return run_cli("shell", "-s", server.socket, *options, input="".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ((), 0),
        (("ping",), 0),
        (("flask-ctl ping", "", "# a comment"), 0),
        (("nope",), 2),
        (("nope", "# it stays", "  "), 2),
        (("nope", "ping"), 0),
        (('call look "x',), 2),
        (("call nope",), 1),
        (("-s /nowhere ping",), 3),
        (("-s /nowhere ping", "exit", "ping"), 3),
        (("run",), 2),
        (("-s /nowhere run",), 2),
        (("shell",), 2),
        (("--help", "--version"), 0),
    ],
)
def test_its_exit_code_is_that_of_the_last_command(shared: Server, lines: tuple[str, ...], code: int) -> None:
    assert piped(shared, *lines).returncode == code


def test_commands_have_their_own_options_and_those_of_the_shell(shared: Server) -> None:
    done = piped(shared, "ping", "ping --json", "ping --timeout 5", "look")
    assert done.stdout.splitlines()[0].startswith(f"pong from pid {shared.pid}")
    assert f'"pid": {shared.pid}' in done.stdout
    assert done.stdout.count("pong from pid") == 2
    assert done.stdout.endswith("old\n")
    assert piped(shared, "ping", options=("--json",)).stdout.startswith("{\n")


class Relay:
    """Listens at `path`, and hands over to a server; `count` connections have been made."""

    def __init__(self, path: pathlib.Path, server: Server) -> None:
        self.count = 0
        self._server = server
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, name="relay")]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT)
        for sock in (self._listener, *self._connections):
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.count += 1
                server = socket.socket(socket.AF_UNIX)
                self._connections += (client, server)
                server.connect(self._server.socket)
                for source, target in ((client, server), (server, client)):
                    thread = threading.Thread(target=self._pass_on, args=(source, target), name="relay")
                    self._threads.append(thread)
                    thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_all_commands_share_one_connection(shared: Server, short_path: pathlib.Path) -> None:
    path = short_path / "relay.sock"
    with contextlib.closing(Relay(path, shared)) as relay:
        done = run_cli("shell", "-s", str(path), input="ping\nstatus\nlook\nrequests\nping\n")
        assert (done.returncode, done.stdout.count("pong")) == (0, 2)
        # One to find out who is there.
        assert relay.count == 2


def test_after_a_stop_there_is_nothing_to_ask(serve: Serve) -> None:
    server = serve()
    done = piped(server, "ping", "stop", "ping")
    assert (done.returncode, server.wait()) == (3, 0)
    assert "stopped: 0 requests finished" in done.stdout


def test_without_a_command_flask_ctl_prints_its_help(shared: Server) -> None:
    assert run_cli("-s", shared.socket).stderr.startswith("Usage: flask-ctl")


@contextlib.contextmanager
def prompt(server: Server, home: pathlib.Path, program: list[str] | None = None) -> Iterator[Shell]:
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    environ = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(home)}
    with subprocess.Popen(
        [*(program or PROGRAM), "-s", server.socket],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        shell = Shell(terminal)
        try:
            yield shell
            code = process.wait(TIMEOUT)
            shell.shown = f"exit {code}"
        finally:
            process.kill()
            os.close(terminal)


def test_on_a_terminal_it_completes_shows_exit_codes_and_keeps_a_history_without_secrets(
    shared: Server, tmp_path: pathlib.Path
) -> None:
    with prompt(shared, tmp_path) as shell:
        shell.press("", "sample>")
        shell.press("pin\t", r"g\s*$")
        # What is typed before the next prompt is shown as the terminal shows it, and not as the prompt does.
        shell.press("\r", r"(?s)pong from pid.*sample>")
        shell.press("sto\t", r"p\s*$")
        shell.press("\x03", r"\n[^\n]*sample>")
        shell.press("loo\t", r"k\s*$")
        shell.press("\r", r"(?s)old.*sample>")
        shell.press("nope password=hunter2\r", r"sample \[2\]>")
        shell.press("\x1b[A", r"nope password=")
        # Not the prompt that Ctrl-C has left: the next one is what reads Ctrl-D.
        shell.press("\x03", r"\n[^\n]*sample \[2\]>")
        shell.press("\x04", "")
    assert shell.shown == "exit 2"
    history = tmp_path / "flask-ctl" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    kept = [line for line in history.read_text().splitlines() if line.startswith("+")]
    assert kept == ["+ping", "+look", "+nope password=***"]


@pytest.mark.parametrize("state", ["a file", "nowhere"])
def test_a_history_that_can_not_be_kept_keeps_nobody_from_asking(
    shared: Server, tmp_path: pathlib.Path, state: str
) -> None:
    home = tmp_path / "home"
    if state == "a file":
        home.touch()
    with prompt(shared, home if state == "a file" else pathlib.Path("/proc/nowhere")) as shell:
        shell.press("", "sample>")
        shell.press("ping\r", "pong from pid")
        shell.press("exit\r", "")
    assert shell.shown == "exit 0"


def test_without_prompt_toolkit_it_says_what_to_install(shared: Server, tmp_path: pathlib.Path) -> None:
    code = "import sys; sys.modules['prompt_toolkit'] = None; import flask_ctl_cli; flask_ctl_cli.main()"
    with prompt(shared, tmp_path, [sys.executable, "-c", code, "shell"]) as shell:
        shown = shell.press("", re.escape("pip install 'flask-ctl[cli]'"))
    assert "the prompt needs prompt_toolkit" in shown
    assert shell.shown == "exit 2"
