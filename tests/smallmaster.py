"""Masters with workers that serve nothing and cost next to nothing: real processes, signals and private sockets.

As a program, a process that forks a master for each line ``SOCKET APP_SOCKET``, and answers with its pid.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

from flask_ctl.dispatch.limits import Limits
from flask_ctl.dispatch.policy import Policy
from flask_ctl.protocol.jsonrpc import decode
from flask_ctl.transports.factory import CurveFiles
from flask_ctl.workers import messages
from flask_ctl.workers.messages import AppRecord, Figures, Hello, Loaded, Tally

WORKERS = 2
SIGNALS = {"stop": signal.SIGTERM, "fast": signal.SIGQUIT, "reload": signal.SIGHUP}
PACKAGE = version("flask_ctl")


class Masters:
    """Starts masters, which end with this."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        # What goes on is no child of ours, of which no test would leave one.
        self._process.wait()

    def start(self, path: str, app_socket: str) -> int:
        """The pid of a new master, whose workers look for their hub at `path`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path} {app_socket}\n".encode())
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def _fork_masters() -> None:
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        path, app_socket = line.split()
        pid = os.fork()
        if not pid:
            _be_master(path, app_socket)
        print(pid, flush=True)


def _be_master(path: str, app_socket: str) -> None:
    """Start workers and, as it is told by signals, others in their place, or end with them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signals = {signal.SIGCHLD, *SIGNALS.values()}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    living: set[int] = set()
    ending = False

    def start() -> None:
        for _ in range(WORKERS):
            pid = os.fork()
            if not pid:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
                _be_worker(path, app_socket)
            living.add(pid)

    start()
    while living or not ending:
        signum = signal.sigwait(signals)
        if signum == signal.SIGCHLD:
            while living and (pid := os.waitpid(-1, os.WNOHANG)[0]):
                living.discard(pid)
            continue
        old = list(living)
        if signum == SIGNALS["reload"]:
            start()
        else:
            ending = True
        for pid in old:
            os.kill(pid, signal.SIGKILL if signum == SIGNALS["fast"] else signal.SIGTERM)
    os._exit(0)


def _be_worker(path: str, app_socket: str) -> None:
    """Introduce itself to one hub after the other, and do at once what they ask."""
    loaded = Loaded(os.getpid(), time.monotonic())
    master = os.getppid()
    memory: list[Any] = [None]
    while os.getppid() == master:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                _talk(sock, _hello(app_socket, master, loaded, memory[0]), memory)
        except OSError:
            pass
        time.sleep(0.005)
    os._exit(0)


def _talk(sock: socket.socket, hello: Hello, memory: list[Any]) -> None:
    sock.sendall(messages.request("hello", messages.as_json(hello), messages.HELLO_ID))
    for line in sock.makefile("rb"):
        message: Any = decode(line)
        if "error" in message:
            # As a worker does that is refused: it tries again.
            return
        if message.get("method") == "save_state":
            # For the next hub.
            memory[0] = message["params"]
        if "id" not in message or "method" not in message:
            continue
        if message["method"] == "exit":
            os._exit(0)
        if message["method"] in ("call", "run_stop_hooks"):
            sock.sendall(messages.request("received", {"id": message["id"]}))
        sock.sendall(messages.answer(message["id"], ANSWERS.get(message["method"])))


ANSWERS = {
    "figures": messages.as_json(Figures()),
    "drain": True,
    "preflight": {"command": ["true"], "directory": "/", "environment": dict(os.environ)},
    "call": "hello",
}


def _hello(app_socket: str, master: int, loaded: Loaded, memory: Any) -> Hello:
    record = AppRecord(
        key=app_socket, name="small", root_path="/", endpoints=[app_socket], required=False, grace=30.0,
        preflight_timeout=60.0, versions={"flask_ctl": PACKAGE},
        commands={"greet": {"summary": "Greet.", "scope": "one", "role": "operate", "parameters": {}}},
        policy=Policy(), limits=Limits(), curve=CurveFiles(),
    )  # fmt: skip
    return Hello(
        PACKAGE, os.getpid(), master, loaded, WORKERS, "/", {"name": "small", "version": "1", "listeners": []},
        {name: int(signum) for name, signum in SIGNALS.items()}, True, None, [record], Figures({app_socket: Tally()}),
        saved_state=memory,
    )  # fmt: skip


if __name__ == "__main__":
    _fork_masters()
