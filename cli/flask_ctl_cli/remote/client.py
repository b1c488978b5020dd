"""A client of an instance on another host, which rollouts use like a `ControlClient` of one on this machine."""

from __future__ import annotations

from typing import Any

from flask_ctl import (
    AccessDenied,
    CommandError,
    ConfigurationError,
    ControlError,
    NotRunning,
    ReloadFailed,
    RemoteProtocolError,
    ServerDied,
    TimedOut,
)

from .ssh import Host, NotBegun, NotKnown, run

MARGIN = 15.0
"""Seconds beyond a command's own time-out for ssh to connect and the program to start."""

_CLASSES: dict[int, type[ControlError]] = {
    2: ConfigurationError,
    3: NotRunning,
    4: TimedOut,
    5: AccessDenied,
    6: ServerDied,
    7: ReloadFailed,
    8: RemoteProtocolError,
}
"""By exit codes, see `output`."""


def error_of(document: dict[str, Any]) -> ControlError:
    """The exception for a document with ``error`` and ``exit``."""
    error = document["error"]
    kind = _CLASSES.get(document["exit"])
    if kind is None:
        kind = ControlError if error["code"] is None else CommandError
    return kind(error["message"], error["data"])


class RemoteClient:
    """Runs the commands of a rollout for the instance at `socket` on `host`.

    Raises what the program there has reported; NotRunning if the host is not reached, and nothing was done, and
    ControlError with ``may_have_run`` if the result is not known.
    """

    def __init__(self, host: Host, socket: str) -> None:
        self._host = host
        self._socket = socket

    def __enter__(self) -> RemoteClient:
        return self

    def __exit__(self, *exception: object) -> None:
        """Each command is a process of its own."""

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """As of `ControlClient`."""
        return self._run("status", [], timeout)

    def reload(self, *, timeout: float | None = None, **options: Any) -> dict[str, Any]:
        """As of `ControlClient`."""
        flags = {"--config": options.pop("what") == "config", "--no-preflight": not options.pop("preflight")}
        return self._run("reload", [flag for flag, given in flags.items() if given] + _words(options), timeout)

    def restart(self, *, timeout: float | None = None, **options: Any) -> dict[str, Any]:
        """As of `ControlClient`."""
        return self._run("restart", _words(options), timeout)

    def stop(self, *, timeout: float | None = None, **options: Any) -> dict[str, Any]:
        """As of `ControlClient`; it waits for the end."""
        given = {name: value for name, value in options.items() if name not in ("wait", "policy")}
        return self._run("stop", _words(given), timeout)

    def _run(self, command: str, words: list[str], timeout: float | None) -> dict[str, Any]:
        limit = [] if timeout is None else ["--timeout", str(timeout)]
        beyond = None if timeout is None else timeout + MARGIN
        try:
            document, _ = run(self._host, ["--socket", self._socket, *limit, command, *words], beyond)
        except NotBegun as error:
            raise NotRunning(f"{self._host.name} was not reached, nothing was done: {error}") from None
        except NotKnown as error:
            raise ControlError(f"{self._host.name}: {error}", {"may_have_run": True}) from None
        if not isinstance(document, dict):
            raise RemoteProtocolError(f"{self._host.name} has answered {command} with {type(document).__name__}")
        if document.keys() == {"error", "exit"}:
            raise error_of(document)
        return document


def _words(options: dict[str, Any]) -> list[str]:
    """Options of a method as those of the command line."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif name == "max_errors":
            words += [flag, f"{value * 100:g}%"]
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return words
