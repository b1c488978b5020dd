"""The methods of `ControlClient` that each send one command; what they need of the client is abstract."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Union

from ..errors import LocalProtocolError, TimedOut

QUESTION_TIMEOUT = 5.0
"""Seconds for an answer that needs no waiting."""

ANSWER_SHARE = 0.9
"""The part of a caller's timeout in which the server has to answer, where the kernel is asked why it does not."""


class Default:
    """The type of DEFAULT: the timeout that fits the command."""


DEFAULT = Default()

Timeout = Union[float, Default, None]
"""Seconds, None for no limit."""


def check_seconds(name: str, value: float | None) -> None:
    """Raises LocalProtocolError unless it is a duration, or None."""
    if value is not None and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
        raise LocalProtocolError(f"{name} is a number of seconds, 0 or more, not {value!r}")


class InspectionMethods(ABC):
    """What looks into the serving processes; the times are in seconds."""

    @abstractmethod
    def _limit(self, timeout: Timeout, default: float | None) -> float | None:
        """The seconds of a call, None for no limit."""

    @abstractmethod
    def _query(self, method: str, timeout: Timeout, **params: Any) -> dict[str, Any]:
        """The result of a command without side effects; parameters that are None are left out."""

    @abstractmethod
    def _why_silent(self, error: TimedOut, method: str, limit: float | None) -> TimedOut:
        """The error with what the kernel knows of a server that has not answered."""

    def requests(self, *, slower: float = 0.0, worker: int | None = None, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """``{"requests": […], "left_out": 0, "unanswered": […]}``: the requests in flight, and silent workers.

        Each has ``method``, ``route``, ``age`` (seconds) and ``worker`` (a pid), and, if the caller has role inspect,
        ``path``, ``query``, ``client``, ``id`` (X-Request-ID), ``thread``, ``thread_id``, ``greenlet``. The oldest is
        first; `slower` leaves out younger ones. More than 1,000 are only counted.
        """
        return self._query("requests", timeout, slower=slower, worker=worker)

    def stacks(
        self,
        *,
        worker: int | None = None,
        request: str | None = None,
        all: bool = False,
        timeout: Timeout = DEFAULT,
    ) -> dict[str, Any]:
        """``{"stacks": […], "left_out": 0, "notes": [], "unanswered": […]}``: the stacks of what serves requests.

        Each has ``worker`` (a pid), ``thread`` (its name), ``thread_id``, ``greenlet``, the ``request`` that it serves
        (as in `requests`, or None), and ``frames``, the outermost first: ``file``, ``line``, ``function`` and
        ``source``. `request` is the id of one request (X-Request-ID); `all` adds the stacks that serve no request.

        If the server does not answer, the message of TimedOut says why, as far as the kernel knows; ``data["stuck"]``
        is the same for programs.
        """
        limit = self._limit(timeout, QUESTION_TIMEOUT)
        # The rest is for the question to the kernel.
        share = None if limit is None else limit * ANSWER_SHARE
        try:
            return self._query("stacks", share, worker=worker, request=request, all=all)
        except TimedOut as error:
            raise self._why_silent(error, "stacks", limit) from None

    def metrics(self, *, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """``{"families": […], "unanswered": […]}``: what is counted and measured, of all workers together.

        Each family has ``name``, ``type`` (as OpenMetrics has it), ``help``, ``unit``, ``aggregate`` and ``samples``:
        lists of a name, labels, a value (or ``"NaN"``, ``"+Inf"``, ``"-Inf"``), and perhaps an exemplar. The module's
        function `exposition` makes the text for Prometheus of the families. Of a worker in ``unanswered`` the figures
        are those of its last answer.
        """
        return self._query("metrics", timeout)

    def doctor(self, *, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """``{"findings": […], "unanswered": […]}``: what commonly breaks, and is so in the server.

        Each has ``check``, ``severity`` (``problem`` or ``note``), ``message`` and ``remedy``, and ``workers`` (pids)
        where it is so in workers. `machine_findings` has those of the client's machine.
        """
        return self._query("doctor", timeout)

    def describe(self, *, worker: int | None = None, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """How the server was started, and what it may use; from all workers, what is the same in all of them once.

        ``app``, ``pid``, ``directory`` (``path``; where the code was ``loaded`` from, resolved; and to where the path
        leads ``now``), ``commit`` (by git, or None); ``programs``: ``command``, ``executable``, ``python``,
        ``virtual_environment`` (or None) and ``flags``; ``settings``: ``name``, ``value`` (``***`` for secrets) and
        ``origin`` (``default``, ``config``, ``environment`` or ``argument``); ``limits``: ``limit`` (``descriptors``,
        ``threads``, ``backlog`` or ``memory``, in bytes), to what it applies (``of``), ``used`` and ``allowed`` (None
        for no limit); ``processes``: ``worker`` (a pid), ``memory`` (bytes) and ``gc``. What only some workers have has
        their pids as ``workers``. ``left_out`` is a number of settings, ``unanswered`` as in `requests`.
        """
        return self._query("describe", timeout, worker=worker)

    def routes(self, *, worker: int | None = None, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """``{"routes": […], "left_out": 0, "unanswered": []}``: the app's URL rules, sorted.

        Each has ``rule``, ``methods`` (None for any), ``endpoint``, ``host`` (or None), and ``workers`` (pids) if not
        every worker has it.
        """
        return self._query("routes", timeout, worker=worker)

    def exceptions(self, *, worker: int | None = None, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """``{"exceptions": […], "unanswered": […]}``: the last distinct unhandled exceptions, the last one at the end.

        Each has ``type``, ``message`` (of the last time), ``count``, ``first`` and ``last`` (times, RFC 3339),
        ``origin`` (``request``, ``thread`` or ``hook``), ``route`` and ``method`` of the last request, ``worker`` (the
        pid that had it last), ``where`` (the last frame in the app), ``traceback``, and an ``id`` that is the same in
        all workers. What looks like a secret is masked.
        """
        return self._query("exceptions", timeout, worker=worker)
