"""`ControlClient`: the Python API for other processes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import (
    SERVER_DIED,
    ConfigurationError,
    ControlError,
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
from .draining import DrainMethods
from .logs import LogMethods
from .methods import DEFAULT, QUESTION_TIMEOUT, Default, InspectionMethods, Timeout, check_seconds
from .operations import MAX_ERRORS, OperationMethods
from .profile import ProfileMethods
from .reload import HubEnded, ReloadWaiter
from .trust import make_trust

if TYPE_CHECKING:
    from .stop import Progress
    from .supervision import Manager
    from .wait import Site

HARMLESS = frozenset(
    {"ping", "status", "commands", "describe", "doctor", "exceptions", "history", "requests", "routes", "stacks"}
)
"""Requests without side effects, which are sent again if the server ended before it answered."""

SUPERVISOR_TIMEOUT = 1.0
"""Seconds for the server to name its supervisor before a stop."""

HUB_SHARE = 0.9
"""The part of a caller's timeout that a hub may wait for its workers."""


class ControlClient(InspectionMethods, OperationMethods, DrainMethods, LogMethods, ProfileMethods):
    """Controls the instance that listens at `socket`.

    Without `socket` it uses the address in FLASK_CTL_SOCKET, else the only live instance of the current directory. In a
    directory that holds more than one project (``/tmp``, a home), a command that changes something needs an instance
    that was started in exactly that directory. The client connects at the first command, and again after `close`.

    A socket on this machine has to belong to the caller, to root, or to the user `owner`. Over TCP the server has to
    have the public key `server_key` (a file, or the 40 characters); `client_key` is the file with the caller's own key
    pair. `entry` is a file in the registry of instances, whose lock the server on this machine has to hold: see
    `LiveInstance.client`. `timeout` is in seconds, None for no limit. The default is 5 for `ping`, `status` and
    `commands`, no limit for `call` and `reload`, 60 for `drain` and `resume`, and for `stop` the time that the server
    may drain. Threads must not share a client.

    Every method raises NotRunning, AccessDenied, TimedOut, ServerDied or ProtocolError as the case may be, and
    CommandError if the server refuses the command.
    """

    def __init__(
        self,
        socket: SocketAddress | None = None,
        *,
        timeout: Timeout = DEFAULT,
        owner: str | int | None = None,
        client_key: str | os.PathLike[str] | None = None,
        server_key: str | os.PathLike[str] | None = None,
        entry: str | None = None,
    ) -> None:
        self._address = ServerAddress(socket)
        self._trust = make_trust(owner, client_key, server_key, entry)
        self._timeout = timeout
        self._connection: Connection | None = None
        self._protocol: int | None = None
        self._behind_hub = False

    @property
    def endpoint(self) -> str:
        """The address of the server, connected if need be. Raises NotRunning or AmbiguousTarget if none was given."""
        return self._connected(QUESTION_TIMEOUT).endpoint

    def ping(self, *, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """``{"pong": true, "protocol", "pid", "version"}``, and the pid of a ``hub`` if the server has workers."""
        answer = self._ask("ping", {}, self._limit(timeout, QUESTION_TIMEOUT))
        if not isinstance(answer, dict) or not isinstance(answer.get("protocol"), int):
            raise RemoteProtocolError("the answer to ping holds no protocol version")
        self._protocol, self._behind_hub = answer["protocol"], "hub" in answer
        return answer

    def status(self, *, policy: bool = False, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """State, requests, process figures and versions of the instance; times in seconds, sizes in bytes.

        With `policy` the supervisor on this machine is asked, for one more second at most, how it restarts the
        instance: ``supervisor["restart"]`` is ``unknown`` otherwise.
        """
        status = self._ask_for_object("status", self._limit(timeout, QUESTION_TIMEOUT))
        if policy and (manager := self._manager(status)) is not None:
            status["supervisor"] = manager.described()
        return status

    def _manager(self, status: dict[str, Any]) -> Manager | None:
        """The supervisor in a `status`, if that is of the process which the kernel names, in this PID namespace.

        A server might name another service's process. A socket may be forwarded from another machine, whose supervisor
        can't be asked.
        """
        supervisor, connection = status.get("supervisor"), self._connection
        if not supervisor or connection is None:
            return None
        from .supervision import manager_of
        from .targets import supervised_pid

        pid = supervised_pid(connection)
        return manager_of(supervisor, pid) if pid and pid == (status["parent"] or status["pid"]) else None

    def commands(self, *, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """Every command by its name: summary, role, scope, and the JSON Schema of its parameters."""
        self._require_protocol(timeout)
        return self._ask_for_object("commands", self._limit(timeout, QUESTION_TIMEOUT))

    def follow(self, name: str, /, **params: Any) -> Iterator[dict[str, Any]]:
        """What a command streams, as it comes, over reloads of the server; over a connection of its own.

        Each item has its number, ``seq``. ``{"dropped", "from", "to"}`` stands for items that came too fast for this
        reader, ``{"gap": true}`` for what a dead hub had, ``{"generation"}`` for a reload; ``{"about"}`` tells what the
        items can't show. The last is ``{"end"}`` with the reason, such as ``complete`` or ``the server has ended``.
        """
        from .follow import Follower

        limit = self._limit(DEFAULT, QUESTION_TIMEOUT)
        return Follower(self._another_connection, _result, name, params, limit).messages()

    def call(self, name: str, /, *, timeout: Timeout = DEFAULT, **params: Any) -> Any:
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
        policy: bool = False,
        for_good: bool = False,
        timeout: Timeout = DEFAULT,
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

        ``supervisor`` is that of `status`, if the server has told it. With `policy` it is asked first, both for a
        second and a quarter of the caller's time at most, and ``starts_again`` tells whether it will start the server
        again, None if that is not known.

        With `for_good` the supervisor is told to stop the server, and not to start it again: ``for_good`` is true then.
        The outcome ``stopped`` means that the server ended before it could tell what became of its requests. Raises,
        with nothing done, AccessDenied if the caller may not tell the supervisor that, and ConfigurationError if the
        supervisor can't be told from here. Without a supervisor it is a plain stop.
        """
        # A question, which is asked far more often, needs none of this.
        from .stop import FOLLOW, StopTimes
        from .stopping import check_killable, stop_server, with_supervisor

        began = time.monotonic()
        for name, value in (("grace", grace), ("delay", delay), ("kill_after", kill_after)):
            check_seconds(name, value)
        self._confirm_address()
        given = self._limit(timeout, None)
        limit = self._limit(timeout, FOLLOW)
        params = {"mode": mode, "delay": delay, "_progress": True}
        if grace is not None:
            params["grace"] = grace
        known, tell = self._supervisor_of_stop([given, kill_after], for_good) if policy or for_good else ({}, None)
        path = None if kill_after is None else self._address.local_path()
        killed_at = None if path is None else (path, self._trust)
        if killed_at is not None:
            check_killable(*killed_at)
        with contextlib.closing(self):
            try:
                result = stop_server(
                    lambda times: self._connected(times.to_connect(QUESTION_TIMEOUT)),
                    self.close,
                    params,
                    StopTimes(began, limit, kill_after),
                    killed_at=killed_at,
                    wait=wait,
                    on_progress=on_progress,
                    tell=tell,
                )
            except TimedOut as error:
                if kill_after is not None:
                    error.data = {**(error.data or {}), "can_be_killed": False}
                raise
        return with_supervisor(result, known, told=tell is not None) if policy or for_good else result

    def _supervisor_of_stop(
        self, limits: Sequence[float | None], for_good: bool
    ) -> tuple[dict[str, Any], Callable[[], Any] | None]:
        """``supervisor`` with its policy, nothing if it is not known; for a stop for good how to tell it."""
        # A server that does not answer can still be stopped; what it might say must not use up the caller's time.
        share = min([SUPERVISOR_TIMEOUT, *(limit / 4 for limit in limits if limit is not None)])
        deadline = time.monotonic() + share
        try:
            status = self.status(timeout=QUESTION_TIMEOUT if for_good else share)
        except ControlError:
            if for_good:
                raise
            # Not to take a late answer for that of the stop.
            self.close()
            return {}, None
        known = {"supervisor": status["supervisor"]} if "supervisor" in status else {}
        manager = self._manager(status)
        if manager is not None:
            known = {"supervisor": manager.described(share if for_good else _left(deadline))}
        if not for_good or known == {"supervisor": None}:
            return known, None
        if manager is None:
            raise ConfigurationError(
                "nothing was done: the supervisor can be told only on the server's machine, in its PID namespace, by"
                " the path of its Unix socket, whose lock file names its process"
            )
        return known, manager.keep_down

    def reload(
        self,
        what: str = "code",
        *,
        grace: float | None = None,
        cut: bool = False,
        preflight: bool = True,
        confirm: float | None = None,
        max_errors: float = MAX_ERRORS,
        timeout: Timeout = DEFAULT,
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

        With `confirm` it returns so many seconds later, with the error rates before and after the reload in
        ``confirmed``: ``ok`` (whether the rate has risen by no more than `max_errors`, a share of the requests, 0 to
        1; None if no request has ended since), ``before`` (all requests to the instance before the reload), ``after``,
        each with ``requests``, ``errors`` and ``rate`` (None without requests); ``before`` also has ``generation`` and
        ``directory``, from which that was loaded, ``after`` also ``old_left``: so many old workers were still at work
        then, and what they finish counts, too. Nothing is done if it is not ok. Raises ServerDied if the server ends
        meanwhile, ControlError if it is reloaded again or does not answer at the end, both with the result of the
        reload in ``data["reload"]``.
        """
        check_seconds("confirm", confirm)
        self._confirm_address()
        try:
            self._require_protocol(timeout)
            path = self._connected(self._limit(timeout, QUESTION_TIMEOUT)).path
        except TimedOut as error:
            # For a reload TimedOut means that the server has reported it: the old code still serves.
            raise ControlError(
                f"{error.message}; no reload has begun", {**(error.data or {}), "begun": False}
            ) from None
        params: dict[str, Any] = {"what": what, "cut": cut, "preflight": preflight}
        if on_progress is not None:
            params["_progress"] = True
        if grace is not None:
            params["grace"] = grace
        limit = self._limit(timeout, None)
        # Only a hub may die while its server goes on.
        has_hub = path is not None and workers_live(path, self._trust)
        watch = ReloadWaiter(self.status) if what == "code" and has_hub else None
        confirmation = None
        if confirm is not None:
            from .confirm import Confirmation

            confirmation = Confirmation(self.status, confirm, max_errors)
        try:
            result: dict[str, Any] = self._ask("reload", params, limit, on_progress)
        except HubEnded as error:
            if watch is None:
                raise
            result = watch.result(error, limit)
        if confirmation is None:
            return result
        return {**result, "confirmed": confirmation.watch(result, on_progress)}

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

    def _accept_successor(self) -> None:
        self._trust = self._trust._replace(entry=None)

    def _site(self) -> Site:
        from .wait import Site

        return Site(
            self._connected,
            self.close,
            lambda seconds: self.status(timeout=seconds),
            lambda: path_of(self._address.resolve()) or None,
            self._trust,
        )

    def _limit(self, timeout: Timeout, default: float | None) -> float | None:
        for choice in (timeout, self._timeout):
            if not isinstance(choice, Default):
                check_seconds("timeout", choice)
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

    def _another_connection(self, timeout: float | None) -> Connection:
        return connect(self._address.resolve(timeout), timeout, self._trust)

    def _result(self, response: Response) -> Any:
        return _result(response)

    def _confirm_address(self) -> None:
        if self._address.confirm():
            self.close()

    def _require_protocol(self, timeout: Timeout) -> None:
        if self._protocol is None or self._connection is None:
            self.ping(timeout=timeout)
        if self._protocol is not None and self._protocol > VERSION:
            raise RemoteProtocolError(
                f"the server speaks protocol {self._protocol}, this client {VERSION}: only ping, status and stop are"
                " safe; update flask-ctl here",
                {"begun": False},
            )

    def _query(self, method: str, timeout: Timeout, **params: Any) -> dict[str, Any]:
        self._require_protocol(timeout)
        given = {"_chunks": True, **{name: value for name, value in params.items() if value is not None}}
        return self._ask_for_object(method, self._limit(timeout, QUESTION_TIMEOUT), given)

    def _ask_for_object(
        self, method: str, timeout: float | None, params: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        answer = self._ask(method, params or {}, timeout)
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
                        return _whole(connection, _result(message), params, deadline)
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

    def _why_silent(self, error: TimedOut, method: str, limit: float | None) -> TimedOut:
        """The error with what the kernel knows of the process at the other end, if that is on this machine."""
        connection = self._connection
        pid = None if connection is None or connection.path is None or self._behind_hub else connection.peer_pid()
        if connection is None or pid is None:
            return error
        from ..system.stuck import why_silent

        found = why_silent([pid]).get(pid)
        if found is None:
            return error
        message = f"{connection.endpoint} did not answer {method} within {limit:g} s: {found['text']}"
        return TimedOut(message, {**(error.data or {}), "stuck": found})

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


def _whole(connection: Connection, result: Any, params: Mapping[str, Any], deadline: float | None) -> Any:
    """A result, or the one whose pieces it announces, as the call has permitted."""
    if params.get("_chunks") is not True or not isinstance(result, dict) or "chunks" not in result:
        return result
    from .follow import joined

    return joined(connection, result, deadline)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _result(response: Response) -> Any:
    if response.error is not None:
        code, message, data = response.error
        if code == SERVER_DIED:
            # A hub reports the death of its master.
            raise ServerDied(message, data)
        raise error_from_object(code, message, data)
    return response.result
