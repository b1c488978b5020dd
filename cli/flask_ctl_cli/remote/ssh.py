"""Running ``flask-ctl --json`` on another host over ssh, and what an end of ssh means.

The system's own ssh does it, with its configuration, keys and known hosts. One connection for each host is kept for a
minute, and the following commands use it (ssh_config(5), ControlMaster).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from flask_ctl import ConfigurationError, printable

SSH = "FLASK_CTL_SSH"
"""Variable with another ssh, or with options: ``ssh -F deploy.conf``."""

REMOTE = "FLASK_CTL_REMOTE"
"""Variable with the path of flask-ctl on the other hosts."""

SSH_FAILED = 255
"""The exit status of ssh for its own failures: ssh(1)."""

NOT_FOUND = (126, 127)
"""Those of a shell that can't execute the program."""

BEGUN = "\x1eflask-ctl\n"
"""Written by the remote shell before it begins the program. What comes before, as from a profile, is skipped."""

MAX_SHOWN = 500
"""Characters of what ssh has written, in a message."""

_OPTIONS = [
    word
    for option in ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=3")
    for word in ("-o", option)
]

_FOLLOWED = """\
exec 3<&0
{command} </dev/null & program=$!
{{ cat <&3 >/dev/null; kill $program 2>/dev/null; }} & watch=$!
wait $program; code=$?
kill $watch 2>/dev/null
exit $code"""
"""Ends the program when our end of ssh has gone: without a terminal it would not notice before it writes."""


class Host(NamedTuple):
    """A host as ssh knows it (``web1``, ``deploy@web1``), and the path of flask-ctl there."""

    name: str
    program: str


class NotBegun(Exception):
    """Nothing was done on the host: it was not reached, or has no flask-ctl."""


class NotKnown(Exception):
    """The program has begun there, and its result is not known."""


def parse_hosts(text: str) -> list[Host]:
    """The hosts of ``web1,web2``, or of ``@FILE`` with a host a line, and behind it the path of flask-ctl, if any.

    Raises ConfigurationError for a name that ssh would take for an option, for no host at all, and for a file that
    can't be read.
    """
    if text.startswith("@"):
        try:
            with open(text[1:]) as file:
                lines = [line.partition("#")[0].split() for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{text[1:]}, the file of hosts, can't be read: {error}") from None
    else:
        lines = [[name] for name in text.split(",")]
    default = os.environ.get(REMOTE) or "flask-ctl"
    hosts = [Host(words[0], words[1] if len(words) > 1 else default) for words in lines if words and words[0]]
    if not hosts:
        raise ConfigurationError(f"{text!r} names no host")
    for host in hosts:
        if host.name.startswith("-") or not host.name.isprintable():
            raise ConfigurationError(f"{host.name!r} is no name of a host")
    return list({host.name: host for host in hosts}.values())


def run(host: Host, words: Sequence[str], timeout: float | None = None) -> tuple[Any, int]:
    """The JSON document that a command prints there, and its exit code. Raises NotBegun and NotKnown.

    After `timeout` seconds, None for no limit, the result is not known: the command goes on.
    """
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            _command(host, words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
        )
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as expired:
            out = expired.stdout or b""
            _end(process)
            raise _silent(host, out, f"no answer within {timeout:g} s") from None
        except BaseException:
            _end(process)
            raise
        said = _said(stderr)
    _, begun, rest = out.decode(errors="replace").partition(BEGUN)
    code = process.returncode
    if not begun:
        raise NotBegun(said or f"ssh has ended with exit code {code}")
    if code in NOT_FOUND and not rest.strip():
        raise _not_found(host, said)
    try:
        return json.loads(rest), code
    except ValueError:
        if not rest.strip() and code == 0:
            # As of `ping --quiet`.
            return None, 0
        raise NotKnown(said or f"it has ended with exit code {code}, without a result") from None


def _not_found(host: Host, said: str) -> NotBegun:
    return NotBegun(f"{host.program} can't be executed there: {said}; {REMOTE} names another one")


def _silent(host: Host, out: bytes, why: str) -> NotBegun | NotKnown:
    return (NotKnown if BEGUN.encode() in out else NotBegun)(why)


class Followed:
    """What a command prints on a host, line by line, until it ends. To iterate raises NotBegun and NotKnown."""

    def __init__(self, host: Host, process: subprocess.Popen[str], stderr: IO[bytes]) -> None:
        self._host, self._process, self._stderr = host, process, stderr
        self.code = 0
        """The exit code of the command, once its lines have come."""

    def __iter__(self) -> Iterator[str]:
        assert self._process.stdout is not None
        begun = told = False
        for line in self._process.stdout:
            if begun:
                told = True
                yield line
            begun = begun or line.endswith(BEGUN)
        self.code = code = self._process.wait()
        if not begun or code == SSH_FAILED:
            raise (NotKnown if begun else NotBegun)(_said(self._stderr) or f"ssh has ended with exit code {code}")
        if code in NOT_FOUND and not told:
            raise _not_found(self._host, _said(self._stderr))


@contextlib.contextmanager
def follow(host: Host, words: Sequence[str]) -> Iterator[Followed]:
    """Run a command there whose lines are read as they come; it ends with the block."""
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            _command(host, words, followed=True),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            yield Followed(host, process, stderr)
        finally:
            _end(process)


def _command(host: Host, words: Sequence[str], *, followed: bool = False) -> list[str]:
    command = shlex.join([host.program, "--json", *words])
    script = _FOLLOWED.format(command=command) if followed else f"exec {command}"
    # The user's shell there may be any: it only has to know single quotes.
    remote = f"exec sh -c {shlex.quote(f'printf %b {shlex.quote(_escaped(BEGUN))}; {script}')}"
    options = ["-T", *_OPTIONS, *_shared_connection()]
    return [*shlex.split(os.environ.get(SSH) or "ssh"), *options, "--", host.name, remote]


def _escaped(text: str) -> str:
    return text.replace("\x1e", r"\036").replace("\n", r"\n")


def _shared_connection() -> list[str]:
    """Options for one connection to each host, whose socket is in a directory of this user's alone."""
    base = os.environ.get("XDG_RUNTIME_DIR") or ""
    directory = os.path.join(base, "flask-ctl-ssh") if base else f"/tmp/flask-ctl-ssh-{os.geteuid()}"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        info = os.lstat(directory)
    except OSError:
        return []
    if info.st_uid != os.geteuid() or info.st_mode & 0o077:
        return []
    return ["-o", "ControlMaster=auto", "-o", f"ControlPath={directory}/%C", "-o", "ControlPersist=60"]


def _said(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    text = " ".join(stderr.read(64 * MAX_SHOWN).decode(errors="replace").split())
    return printable(text, keep="")[-MAX_SHOWN:]


def _end(process: subprocess.Popen[Any]) -> None:
    """End ssh; a shared connection is another process of it, and stays."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait()
