"""``python activator.py CONTROL HTTP COMMAND…``: start COMMAND at a connection to one of two sockets, as systemd does.

CONTROL is a path, HTTP a TCP port. It prints the pid of each COMMAND, and ends by TERM, and the COMMAND with it.
"""

import ctypes
import os
import select
import signal
import socket
import sys

PR_SET_NAME = 15


def start(listeners: list[socket.socket]) -> int:
    pid = os.fork()
    if pid == 0:
        descriptors = [os.dup(listener.fileno()) for listener in listeners]
        copies = [os.dup2(descriptor, 100 + number) for number, descriptor in enumerate(descriptors)]
        for number, copy in enumerate(copies, 3):
            os.dup2(copy, number)
        os.closerange(5, 200)
        names = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "control:http"}
        os.execve(sys.argv[3], sys.argv[3:], {**os.environ, **names})
    os.write(1, f"started {pid}\n".encode())
    return pid


control = socket.socket(socket.AF_UNIX)
control.bind(sys.argv[1])
http = socket.create_server(("127.0.0.1", int(sys.argv[2])))
control.listen()
ctypes.CDLL(None).prctl(PR_SET_NAME, b"systemd", 0, 0, 0)
running = 0


def end(*_: object) -> None:
    if running:
        os.kill(running, signal.SIGTERM)
        os.waitpid(running, 0)
    os._exit(0)


signal.signal(signal.SIGTERM, end)
os.write(1, b"listening\n")
while True:
    select.select([control, http], [], [])
    running = start([control, http])
    os.waitpid(running, 0)
    running = 0
