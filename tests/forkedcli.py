"""`flask-ctl` in forks of one process that has imported it: most of a command's time is the start of Python."""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence

MAX_REQUEST = 1 << 17


class ForkedCli:
    """Runs command lines. Its process is started for the first one, is no child of this one, and ends after it."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._starting = threading.Lock()

    def run(
        self, arguments: Sequence[str], env: Mapping[str, str], cwd: str, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` does it, with the output as text."""
        self._start()
        request = json.dumps([arguments, dict(env), cwd]).encode()
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            read, write = os.pipe()
            with open(read) as status:
                socket.send_fds(self._ours, [request], [stdout.fileno(), stderr.fileno(), write])
                os.close(write)
                assert select.select([status], [], [], timeout)[0], f"not in time: flask-ctl {' '.join(arguments)}"
                code = int(status.read())
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(["flask-ctl", *arguments], code, stdout.read(), stderr.read())

    def _start(self) -> None:
        with self._starting:
            descriptor = self._theirs.fileno()
            if descriptor >= 0:
                command = [sys.executable, __file__, str(descriptor)]
                null = subprocess.DEVNULL
                subprocess.run(command, stdin=null, stdout=null, pass_fds=[descriptor], check=True)
                self._theirs.close()


def serve(requests: socket.socket) -> None:
    """Fork for each request, until nobody can send one. Returns only in a process that is to be `flask-ctl`."""
    while True:
        message, descriptors = socket.recv_fds(requests, MAX_REQUEST, 3)[:2]
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child == 0:
                become(json.loads(message), descriptors)
                return
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.write(descriptors[2], str(code).encode())
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def become(request: tuple[list[str], dict[str, str], str], descriptors: list[int]) -> None:
    """Make this process what it would be at the start of such a command."""
    sys.argv[1:], env, cwd = request
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for descriptor, number in zip(descriptors, (1, 2)):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)


def be_patient() -> None:
    """Give servers more time than a person would wait for, as they need it on a busy machine."""
    from flask_ctl.client import instances
    from flask_ctl_cli import completion, group

    instances.PROBE_TIMEOUT = 2.0
    completion.TIMEOUT, completion.LIMIT = 1.0, 30.0
    vars(group)["HELP_TIMEOUT"] = 10.0


if __name__ == "__main__":
    from harness import import_client

    if os.fork():
        os._exit(0)
    os.setsid()
    import_client()
    be_patient()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
    code = 0
    try:
        runpy.run_module("flask_ctl_cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    # What an interpreter does at its end, but for freeing each object, which takes longer than all the rest.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
