"""The method of `ControlClient` that profiles the serving processes."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ControlError, RemoteProtocolError
from ..protocol.jsonrpc import Response
from .methods import DEFAULT, QUESTION_TIMEOUT, Timeout, check_seconds

if TYPE_CHECKING:
    from .connection import Connection

SILENCE = 10.0
"""Seconds without any message after which the server is taken to hang: progress comes twice a second."""


class ProfileMethods(ABC):
    """Where requests and threads spend their time."""

    @abstractmethod
    def _limit(self, timeout: Timeout, default: float | None) -> float | None:
        """The seconds of a call, None for no limit."""

    @abstractmethod
    def _require_protocol(self, timeout: Timeout) -> None:
        """Raises RemoteProtocolError if the server speaks a later protocol."""

    @abstractmethod
    def _another_connection(self, timeout: float | None) -> Connection:
        """A connection for one call, beside that of the other calls."""

    @abstractmethod
    def _no_answer(self, connection: Connection, method: str, timeout: float | None) -> Exception:
        """The error for a connection that has ended, or is silent for so many seconds."""

    @abstractmethod
    def _result(self, response: Response) -> Any:
        """The result of a call. Raises the error that it is."""

    def profile(
        self,
        seconds: float = 10.0,
        *,
        hz: float = 100.0,
        route: str | None = None,
        requests_only: bool = False,
        worker: int | None = None,
        timeout: Timeout = DEFAULT,
        on_progress: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> dict[str, Any]:
        """Sample for some `seconds` where requests and threads spend their time; merged over the workers.

        Requests are sampled `hz` times a second, or as often as 2 % of a processor permits, other threads and greenlets
        at most ten times, or not with `requests_only`. `route` is a rule of the app, such as ``/pay/<id>`` or
        ``GET /pay/<id>``. The profile ends with this call: also if this process is killed.

        The result has ``routes``: ``route`` (method and rule), ``requests`` (that have ended), and ``seconds``, which
        are exact; ``frames``: ``function``, ``file``, and ``line`` of its beginning; ``stacks``: ``route`` (or None),
        ``thread`` (a name with ``N`` for its numbers, or None), ``frames`` (places in the list of these, the outermost
        first), ``seconds`` and ``samples``; ``processes``: ``worker`` (a pid), ``elapsed``, ``hz`` (that was reached),
        ``samples``, ``in_flight`` (seconds of all requests), ``seen`` and ``expected`` (samples of requests),
        ``coverage`` (their ratio, None without requests), ``cpu`` (the sampler's share of a processor); and
        ``unanswered``. `render_profile` makes texts of it.

        `on_progress` gets ``elapsed`` and ``samples`` about twice a second. Raises CommandError -32002, with ``by`` and
        ``until`` in ``data``, while another profile runs in one of the processes.
        """
        from ..protocol.profiles import ProfileParts

        check_seconds("seconds", seconds)
        limit = self._limit(timeout, QUESTION_TIMEOUT)
        self._require_protocol(timeout)
        wanted = {"seconds": seconds, "hz": hz, "requests_only": requests_only, "worker": worker, "route": route}
        params = {name: value for name, value in wanted.items() if value is not None}
        connection = self._another_connection(limit)
        parts = ProfileParts()
        try:
            for item in self._items(connection, params, limit):
                if "progress" not in item:
                    parts.add(item)
                elif on_progress is not None:
                    on_progress(item["progress"])
        finally:
            connection.close()
        return parts.profile()

    def _items(self, connection: Connection, params: Mapping[str, Any], limit: float | None) -> Any:
        from .follow import stream_params

        (id,) = connection.send([("profile", params)], None if limit is None else time.monotonic() + limit)
        number, patience = None, limit
        while True:
            message = connection.receive(None if patience is None else time.monotonic() + patience)
            if message is None:
                raise self._no_answer(connection, "profile", patience)
            if isinstance(message, Response):
                if message.id not in (id, None):
                    continue
                head = self._result(message)
                if not isinstance(head, dict) or "subscription" not in head:
                    raise RemoteProtocolError("the answer to profile is no stream")
                number, patience = head["subscription"], max(SILENCE, limit or 0.0)
            elif number is not None and (told := stream_params(message, number)) is not None:
                if told.get("end") == "complete":
                    return
                if "end" in told:
                    raise ControlError(f"the profile has ended early: {told['end']}")
                if "item" in told:
                    yield told["item"]
