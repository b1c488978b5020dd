"""What commonly breaks, looked at in a serving process and beside it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from ..servers.attributes import losses, notes
from ..system.directory import StartDirectory
from ..system.findings import Finding, note, problem
from ..system.mounts import Mount, mount_of, private_temporary


def process_findings() -> list[Finding]:
    """Of a process that serves: its signals, and its server."""
    found = []
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        found.append(
            problem(
                "signals",
                "SIGINT is ignored, as in a program that a shell script has started by &: Ctrl-C does not stop it",
                "stop it by flask-ctl stop or SIGTERM; start it in the foreground, or by a supervisor",
            )
        )
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        found.append(
            problem(
                "signals",
                "it is process 1, and has no handler of SIGTERM: the kernel does not deliver the signal to it",
                "start it below an init (docker run --init), or have it handle SIGTERM",
            )
        )
    for reason, loss in losses():
        remedy = "install a version of the server that this flask-ctl knows, or a later flask-ctl"
        found.append(problem("adapter", f"{reason}: {loss}", remedy))
    found += [note("server", message, remedy) for message, remedy in notes()]
    return found


def directory_findings(directory: StartDirectory) -> list[Finding]:
    """Whether a reload would load the code that a symlink leads to by now."""
    found = []
    would_be = os.path.realpath(directory.path)
    for link, rest in directory.links:
        name = os.path.join(link, rest) if rest else link
        if not os.path.lexists(link):
            continue
        remedy = directory.remedy.format(link=name)
        target = os.path.realpath(name)
        if target != would_be:
            message = f"{link} leads to {target} by now, but a reload would load {would_be} again, and is refused"
            found.append(problem("directory", message, remedy))
        else:
            message = f"{link} leads to the directory of the code, and a reload does not follow it"
            found.append(note("directory", message, remedy))
    return found


def socket_findings(paths: Iterable[str], mounts: list[Mount]) -> list[Finding]:
    """Whether clients find the sockets at these paths."""
    hidden = private_temporary(mounts)
    return [
        problem(
            "sockets",
            f"{path} is in a private {mount.point} of its own (PrivateTmp=): no client outside of the unit finds it",
            "set RuntimeDirectory=, and an address below it by FLASK_CTL_SOCKET=%t/NAME/ctl.sock",
        )
        for path in paths
        if (mount := mount_of(path, mounts)) is not None and mount.point in hidden
    ]
