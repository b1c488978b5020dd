"""Interactive shells on a terminal, in which the Tab key is pressed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

from harness import TIMEOUT

SHELLS: dict[str, tuple[list[str], str]] = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        'bind "set bell-style none"; bind "set enable-bracketed-paste off"; '
        'eval "$(_FLASK_CTL_COMPLETE=bash_source flask-ctl)"',
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -u -D; eval "$(_FLASK_CTL_COMPLETE=zsh_source flask-ctl)"',
    ),
    "fish": (["fish", "--no-config", "-i"], "_FLASK_CTL_COMPLETE=fish_source flask-ctl | source"),
}
"""How each is started without a configuration of the user, and the line that installs the completion."""


PATIENT = f"""#!{sys.executable}
from flask_ctl_cli import completion
from flask_ctl_cli.main import main
completion.TIMEOUT, completion.LIMIT = 2.0, 30.0
main()
"""
"""flask-ctl, with time for a busy machine."""


class Shell:
    """A shell on a terminal; `press` types and waits for what it shows."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self.shown = ""

    def press(self, keys: str, expected: str) -> str:
        """Type, and return what is shown from then on, once a pattern is in it."""
        self.shown = ""
        os.write(self._terminal, keys.encode())
        deadline = time.monotonic() + TIMEOUT
        while not re.search(expected, self.shown):
            left = deadline - time.monotonic()
            assert select.select([self._terminal], [], [], max(0.0, left))[0], f"not in time: {self.shown!r}"
            self.shown += _readable(os.read(self._terminal, 4096))
            if "\x1b[c" in self.shown or "\x1b[0c" in self.shown:
                # fish asks what kind of terminal this is, and waits for the answer (DA1 of a VT100).
                os.write(self._terminal, b"\x1b[?1;2c")
                self.shown = self.shown.replace("\x1b[c", "").replace("\x1b[0c", "")
        return self.shown

    def clear(self) -> None:
        """Remove the line that has been typed (Ctrl-U)."""
        self.press("\x15echo lea''ving\r", "leaving")


def _readable(data: bytes) -> str:
    """Without colours and movements of the cursor, but for the question what kind of terminal this is."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-bd-z]|\x1b[()=>][\dA-Z]?|\x07", "", data.decode(errors="replace"))


@contextlib.contextmanager
def shell(name: str, directory: pathlib.Path) -> Iterator[Shell]:
    """A shell in a directory, where the completion of flask-ctl is installed."""
    command, install = SHELLS[name]
    program = directory / "bin" / "flask-ctl"
    program.parent.mkdir(exist_ok=True)
    program.write_text(PATIENT)
    program.chmod(0o755)
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    path = f"{program.parent}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "TERM": "xterm", "HOME": str(directory), "PS1": "$ ", "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(
        command, cwd=directory, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(theirs)
        started = Shell(terminal)
        try:
            started.press(f"{install}; echo install''ed\r", "installed")
            yield started
        finally:
            process.kill()
            process.wait()
            os.close(terminal)
