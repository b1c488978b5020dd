"""The hooks of apps: functions that run when the server stops, or when its configuration is reloaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from ..dispatch.pool import Pool
from ..errors import INTERNAL_ERROR, CommandError
from ..inspection.requests import oldest_of, oldest_requests
from .app import ServedApp
from .readiness import Readiness

logger = logging.getLogger("flask_ctl")


class AppWork:
    """What a stop and a reload of this process drain beside the connections, and the hooks that they run."""

    def __init__(self, apps: Sequence[ServedApp], pool: Pool, readiness: Readiness) -> None:
        self._apps = apps
        self._pool = pool
        self._readiness = readiness

    @property
    def has_stop_hooks(self) -> bool:
        """Whether there is an `on_stop` function, which may end the program's threads."""
        return any(app.stop_hooks for app in self._apps)

    def commands_in_flight(self) -> int:
        return self._pool.unfinished

    def finished_count(self) -> int:
        """Requests of all apps that have ended."""
        return sum(app.requests.totals()[0] - app.requests.in_flight for app in self._apps)

    def oldest_request(self) -> Mapping[str, Any] | None:
        return oldest_of(app.requests for app in self._apps)

    def requests_in_flight(self) -> dict[Hashable, Mapping[str, Any]]:
        pid = os.getpid()
        return {
            (app.name, request.pop("number")): {**request, "worker": pid}
            for app in self._apps
            for request in oldest_requests(app.requests)
        }

    def running_hook(self) -> str | None:
        return self._readiness.running_hook

    def run_stop_hooks(self) -> None:
        run_stop_hooks(self._apps)


def run_stop_hooks(apps: Iterable[ServedApp]) -> None:
    """Run each app's `on_stop` functions, in order. A failure is logged, and the others still run."""
    for app in apps:
        for hook in app.stop_hooks:
            try:
                app.run_hook(hook)
            except BaseException as error:
                # A hook that calls sys.exit is no reason to leave out the others.
                logger.exception("the on_stop hook %r failed", hook)
                app.exceptions.note(error, "hook")


def run_reload_hooks(apps: Iterable[ServedApp]) -> int:
    """Run each app's `on_reload` functions; the number of them. Raises CommandError with the text of each failure."""
    count, failures = 0, []
    for app in apps:
        for hook in app.reload_hooks:
            count += 1
            try:
                app.run_hook(hook)
            except Exception as error:
                logger.exception("the on_reload hook %r failed", hook)
                app.exceptions.note(error, "hook")
                failures.append(f"{getattr(hook, '__name__', hook)}: {type(error).__name__}: {error}")
    if failures:
        raise CommandError("; ".join(failures), code=INTERNAL_ERROR)
    return count
