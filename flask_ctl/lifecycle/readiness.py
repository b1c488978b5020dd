"""Whether a server is to get new requests: a drain that an operator has asked for, and the hooks of the apps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..dispatch.futures import chain, settled
from ..errors import CONFLICT, CommandError
from ..system.native import new_future
from .app import ServedApp

HooksResult = dict[str, Any]
"""``hooks_run``, a number, and ``hooks_failed``, a text for each failure."""

MAX_WAITING = 16
"""Changes whose hooks wait for those of earlier changes; what comes then runs no hooks."""

logger = logging.getLogger("flask_ctl")


@dataclass(frozen=True)
class Drain:
    """A drain in force: when it began (RFC 3339), and the peer that asked for it."""

    since: str
    by: dict[str, Any]


class Readiness:
    """Whether this process is to get new requests, and the hooks that run when that changes.

    `submit` runs a function of the apps where no command can keep it waiting. Hooks run one after the other, in the
    order of the changes.
    """

    def __init__(self, apps: Sequence[ServedApp], submit: Callable[[Callable[[], Any]], Future[Any]]) -> None:
        self.ready = False
        self.failed_checks = 0
        """Health checks that have been answered with 503 since it was ready."""
        self._apps = apps
        self._submit = submit
        self._hooks = _none()
        self._waiting = 0
        self._running = ""

    @property
    def running_hook(self) -> str | None:
        """The name of the hook that runs, or has run last while others wait; None if all have come to an end."""
        return None if self._hooks.done() else self._running

    def change(self, ready: bool) -> Future[HooksResult]:
        """Be ready or not from now on; the Future gets the result of the hooks, and never an exception.

        If nothing changes it gets that of the last change.
        """
        if ready is not self.ready:
            self.ready = ready
            self.failed_checks = 0
            if self._waiting >= MAX_WAITING:
                why = CommandError(f"{self._running} still runs, and {MAX_WAITING} changes wait for it", code=CONFLICT)
                return _done(_not_run(why))
            self._waiting += 1
            self._hooks = settled(chain(self._hooks, lambda: self._run_hooks(ready)), _not_run)
        return self._hooks

    def _run_hooks(self, ready: bool) -> Future[HooksResult]:
        self._waiting -= 1
        hooks = [(app, hook) for app in self._apps for hook in (app.ready_hooks if ready else app.drain_hooks)]
        return self._submit(lambda: self._call(hooks)) if hooks else _none()

    def _call(self, hooks: Sequence[tuple[ServedApp, Callable[[], Any]]]) -> HooksResult:
        """Call functions in the contexts of their apps, in order. A failure is logged, and the others still run."""
        failures = []
        for app, hook in hooks:
            self._running = getattr(hook, "__name__", repr(hook))
            try:
                app.run_hook(hook)
            except BaseException as error:
                # A hook that calls sys.exit is no reason to leave out the others.
                logger.exception("the hook %r failed", hook)
                app.exceptions.note(error, "hook")
                failures.append(f"{self._running}: {type(error).__name__}: {error}")
        return {"hooks_run": len(hooks), "hooks_failed": failures}


def _none() -> Future[HooksResult]:
    return _done({"hooks_run": 0, "hooks_failed": []})


def _done(outcome: HooksResult) -> Future[HooksResult]:
    result: Future[HooksResult] = new_future()
    result.set_result(outcome)
    return result


def _not_run(error: BaseException) -> HooksResult:
    logger.error("hooks were not run: %s", error)
    return {"hooks_run": 0, "hooks_failed": [str(error)]}
