"""`ControlClient`: the Python API for other processes."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import (
    SERVER_DIED,
    ControlError,
    LocalProtocolError,
    NotRunning,
    RemoteProtocolError,
    ServerDied,
    ServerReloaded,
    TimedOut,
    error_from_object,
)
from ..protocol import FROZEN_METHODS, VERSION
from ..protocol.jsonrpc import Request, Response
from .absence import workers_live
from .address import ServerAddress, path_of
from .connect import SocketAddress, connect
from .connection import MAX_TRIES, Connection
from .reload import HubEnded, ReloadWaiter
from .trust import make_trust

if TYPE_CHECKING:
    from .stop import Progress

QUESTION_TIMEOUT = 5.0
"""Seconds for an answer that needs no waiting."""

HARMLESS = frozenset({"ping", "status", "commands"})
"""Requests without side effects, which are sent again if the server ended before it answered."""

HUB_SHARE = 0.9
"""The part of a caller's timeout that a hub may wait for its workers."""


class _Default:
    """The type of DEFAULT: the timeout that fits the command."""


DEFAULT = _Default()


class ControlClient:
    """Controls the instance that listens at `socket`.

    Without `socket` it uses the address in FLASK_CTL_SOCKET, else the only live instance of the current directory. In a
    directory that holds more than one project (``/tmp``, a home), a command that changes something needs an instance
    that was started in exactly that directory. The client connects at the first command, and again after `close`.

    A socket on this machine has to belong to the caller, to root, or to the user `owner`. Over TCP the server has to
    have the public key `server_key` (a file, or the 40 characters); `client_key` is the file with the caller's own key
    pair. `timeout` is in seconds, None for no limit. The default is 5 for `ping`, `status` and `commands`, no limit for
    `call` and `reload`, and for `stop` the time that the server may drain. Threads must not share a client.

    Every method raises NotRunning, AccessDenied, TimedOut, ServerDied or ProtocolError as the case may be, and
    CommandError if the server refuses the command.
    """

    def __init__(
        self,
        socket: SocketAddress | None = None,
        *,
        timeout: float | _Default | None = DEFAULT,
        owner: str | int | None = None,
        client_key: str | os.PathLike[str] | None = None,
        server_key: str | os.PathLike[str] | None = None,
    ) -> None:
        self._address = ServerAddress(socket)
        self._trust = make_trust(owner, client_key, server_key)
        self._timeout = timeout
        self._connection: Connection | None = None
        self._protocol: int | None = None
        self._behind_hub = False

    @property
    def endpoint(self) -> str:
        """The address of the server, connected if need be. Raises NotRunning or AmbiguousTarget if none was given."""
        return self._connected(QUESTION_TIMEOUT).endpoint

    def ping(self, *, timeout: float | _Default | None = DEFAULT) -> dict[str, Any]:
        """``{"pong": true, "protocol", "pid", "version"}``, and the pid of a ``hub`` if the server has workers."""
        answer = self._ask("ping", {}, self._limit(timeout, QUESTION_TIMEOUT))
        if not isinstance(answer, dict) or not isinstance(answer.get("protocol"), int):
            raise RemoteProtocolError("the answer to ping holds no protocol version")
        self._protocol, self._behind_hub = answer["protocol"], "hub" in answer
        return answer

    def status(self, *, timeout: float | _Default | None = DEFAULT) -> dict[str, Any]:
        """State, requests, process figures and versions of the instance; times in seconds, sizes in bytes."""
        return self._ask_for_object("status", self._limit(timeout, QUESTION_TIMEOUT))

    def commands(self, *, timeout: float | _Default | None = DEFAULT) -> dict[str, Any]:
        """Every command by its name: summary, role, scope, and the JSON Schema of its parameters."""
        self._require_protocol(timeout)
        return self._ask_for_object("commands", self._limit(timeout, QUESTION_TIMEOUT))

    def call(self, name: str, /, *, timeout: float | _Default | None = DEFAULT, **params: Any) -> Any:
        """The result of any command of the server, including the app's own. ``stop`` works like the method `stop`."""
        if name == "stop":
            return self.stop(**params, timeout=timeout)
        if name not in HARMLESS:
            self._confirm_address()
        if name not in FROZEN_METHODS:
            self._require_protocol(timeout)
        limit = self._limit(timeout, None)
        if limit is not None:
            # So that a hub can still answer which of its workers have not.
            params.setdefault("_timeout", limit * HUB_SHARE)
        return self._ask(name, params, limit)

    def stop(
        self,
        mode: str = "graceful",
        *,
        grace: float | None = None,
        delay: float = 0.0,
        wait: bool = True,
        kill_after: float | None = None,
        timeout: float | _Default | None = DEFAULT,
        on_progress: Progress | None = None,
    ) -> dict[str, Any]:
        """End the server; returns when its process is gone.

        The result has ``outcome`` (``drained``, ``forced``, ``killed`` or ``died``), ``drained`` and ``cut`` (numbers
        of requests, None for a server that was killed), ``elapsed`` (seconds until the server answered), ``pid``, and
        ``proof``, how the client knows that the server is gone: ``process`` (the kernel reports the end of the
        process), ``connection`` (the connection has ended: over TCP, or for a server embedded in another program), or
        ``answer`` (the server's own answer, for process 1 of this PID namespace, whose end cannot be seen from
        inside). ``ended_after`` is the number of seconds from the call to the end of the process, None with another
        proof.

        `grace` and `delay` are seconds. `kill_after` seconds after the call the server is killed, whether it has
        answered or not. Only processes that the kernel names are killed; if it names none, ConfigurationError is
        raised before anything is sent. Without `wait` the method returns once the stop is accepted, with the first
        progress. `on_progress` gets ``phase``, ``in_flight``, ``remaining``, ``waiting_for``.
        """
        # A question, which is asked far more often, needs none of this.
        from .stop import FOLLOW, StopTimes
        from .stopping import check_killable, stop_server

        began = time.monotonic()
        for name, value in (("grace", grace), ("delay", delay), ("kill_after", kill_after)):
            _check_seconds(name, value)
        self._confirm_address()
        limit = self._limit(timeout, FOLLOW)
        params = {"mode": mode, "delay": delay, "_progress": True}
        if grace is not None:
            params["grace"] = grace
        path = None if kill_after is None else self._address.local_path()
        killed_at = None if path is None else (path, self._trust)
        if killed_at is not None:
            check_killable(*killed_at)
        with contextlib.closing(self):
            try:
                return stop_server(
                    lambda times: self._connected(times.to_connect(QUESTION_TIMEOUT)),
                    self.close,
                    params,
                    StopTimes(began, limit, kill_after),
                    killed_at=killed_at,
                    wait=wait,
                    on_progress=on_progress,
                )
            except TimedOut as error:
                if kill_after is not None:
                    error.data = {**(error.data or {}), "can_be_killed": False}
                raise

    def reload(
        self,
        what: str = "code",
        *,
        grace: float | None = None,
        cut: bool = False,
        preflight: bool = True,
        timeout: float | _Default | None = DEFAULT,
        on_progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Serve the program's new code; returns when it serves.

        The result has ``generation``, ``cut`` (number of requests), ``elapsed`` (seconds) and ``pid``; ``hooks`` is
        ``unfinished`` if hooks or exit functions did not end within `grace`, and ``threads_left`` names threads that
        did not: the new code serves without having waited for them. Raises ReloadFailed, with the traceback in
        ``data``, if the new code was refused, TimedOut if requests or threads were at work after `grace` seconds
        (without `cut`): in both cases the old code still serves. ServerDied if the process ended on the way;
        ControlError if `timeout` passed: the reload goes on, and `status` tells how it ends. With `what` "config" only
        the app's `on_reload` functions are called.
        """
        self._confirm_address()
        try:
            self._require_protocol(timeout)
            path = self._connected(self._limit(timeout, QUESTION_TIMEOUT)).path
        except TimedOut as error:
            # For a reload TimedOut means that the server has reported it: the old code still serves.
            raise ControlError(f"{error.message}; no reload has begun", error.data) from None
        params: dict[str, Any] = {"what": what, "cut": cut, "preflight": preflight}
        if on_progress is not None:
            params["_progress"] = True
        if grace is not None:
            params["grace"] = grace
        limit = self._limit(timeout, None)
        # Only a hub may die while its server goes on.
        has_hub = path is not None and workers_live(path, self._trust)
        watch = ReloadWaiter(self.status) if what == "code" and has_hub else None
        try:
            result: dict[str, Any] = self._ask("reload", params, limit, on_progress)
        except HubEnded as error:
            if watch is None:
                raise
            return watch.result(error, limit)
        return result

    def close(self) -> None:
        """Close the connection; more than once is fine."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._protocol = None

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _limit(self, timeout: float | _Default | None, default: float | None) -> float | None:
        for choice in (timeout, self._timeout):
            if not isinstance(choice, _Default):
                _check_seconds("timeout", choice)
                return choice
        return default

    def _connected(self, timeout: float | None) -> Connection:
        if self._connection is None or self._connection.ended:
            self.close()
            target = self._address.resolve(timeout)
            try:
                self._connection = connect(target, timeout, self._trust)
            except TimedOut as error:
                error.data = {"can_be_killed": bool(path_of(target)), **(error.data or {})}
                raise
        return self._connection

    def _confirm_address(self) -> None:
        if self._address.confirm():
            self.close()

    def _require_protocol(self, timeout: float | _Default | None) -> None:
        if self._protocol is None or self._connection is None:
            self.ping(timeout=timeout)
        if self._protocol is not None and self._protocol > VERSION:
            raise RemoteProtocolError(
                f"the server speaks protocol {self._protocol}, this client {VERSION}: only ping, status and stop are"
                " safe; update flask-ctl here"
            )

    def _ask_for_object(self, method: str, timeout: float | None) -> dict[str, Any]:
        answer = self._ask(method, {}, timeout)
        if not isinstance(answer, dict):
            raise RemoteProtocolError(f"the answer to {method} is not an object")
        return answer

    def _ask(
        self, method: str, params: Mapping[str, Any], timeout: float | None, on_progress: Progress | None = None
    ) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        for _ in range(MAX_TRIES):
            connection, id = self._send(method, params, _left(deadline), deadline)
            try:
                while (message := connection.receive(deadline)) is not None:
                    if isinstance(message, Response) and message.id in (id, None):
                        return _result(message)
                    if isinstance(message, Request) and on_progress is not None and isinstance(message.params, dict):
                        on_progress(message.params)
            except ServerReloaded:
                if method not in HARMLESS:
                    raise
            else:
                died = connection.ended and not connection.undelivered and connection.peer_has_ended()
                if not (connection.ended and connection.undelivered) and not (died and method in HARMLESS):
                    raise self._no_answer(connection, method, timeout)
            # The new image answers after a reload, and another hub where one has been killed.
            self.close()
            try:
                self._connected(_left(deadline))
            except NotRunning:
                raise ServerDied(f"the server at {connection.endpoint} ended before it answered {method}") from None
        raise RemoteProtocolError(f"{connection.endpoint} closed the connection without an answer to {method}")

    def _send(
        self, method: str, params: Mapping[str, Any], timeout: float | None, deadline: float | None
    ) -> tuple[Connection, int]:
        kept = self._connection
        connection = self._connected(timeout)
        (id,) = connection.send([(method, params)], deadline)
        if connection is kept and connection.undelivered:
            # The server had closed the idle connection, as it does at a reload.
            self.close()
            connection = self._connected(timeout)
            (id,) = connection.send([(method, params)], deadline)
        return connection, id

    def _no_answer(self, connection: Connection, method: str, timeout: float | None) -> Exception:
        endpoint = connection.endpoint
        if not connection.ended and method == "reload":
            return ControlError(
                f"{endpoint} has not answered within {timeout:g} s; the outcome is not known: the reload goes on, and"
                " status tells how it ends",
                {"may_have_run": True},
            )
        if not connection.ended:
            return TimedOut(
                f"{endpoint} did not answer {method} within {timeout:g} s; it is still there",
                {"can_be_killed": connection.path is not None and connection.peer_pid() != 1},
            )
        if not connection.peer_has_ended():
            return connection.unanswered(method)
        # Over TCP nothing tells whether the server goes on without its hub.
        goes_on = workers_live(connection.path, self._trust) if connection.path is not None else self._behind_hub
        if goes_on:
            return HubEnded(
                f"the hub at {endpoint} ended before it answered {method}, which may have been done"
                + ("; the server goes on" if connection.path is not None else ""),
                {"may_have_run": True},
            )
        return ServerDied(f"the server at {endpoint} ended before it answered {method}")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _check_seconds(name: str, value: float | None) -> None:
    if value is not None and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
        raise LocalProtocolError(f"{name} is a number of seconds, 0 or more, not {value!r}")


def _result(response: Response) -> Any:
    if response.error is not None:
        code, message, data = response.error
        if code == SERVER_DIED:
            # A hub reports the death of its master.
            raise ServerDied(message, data)
        raise error_from_object(code, message, data)
    return response.result
