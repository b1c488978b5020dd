"""The methods of `ControlClient` that wait for an instance and its successor; what they need of it is abstract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, LocalProtocolError
from .methods import DEFAULT, Timeout, check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stop import Progress
    from .wait import Condition, Site

WAIT_TIMEOUT = 60.0
"""Seconds for what `wait` waits for."""


MAX_ERRORS = 0.01
"""The share of requests by which the rate of errors may rise after a reload that is to be confirmed."""


class OperationMethods(ABC):
    """Waiting for what happens to an instance, and restarting it."""

    @abstractmethod
    def status(self, *, policy: bool = False, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """The instance's state, and its supervisor with the restart policy."""

    @abstractmethod
    def _accept_successor(self) -> None:
        """From now on another instance at the address is meant, too."""

    @abstractmethod
    def stop(
        self,
        mode: str = "graceful",
        *,
        grace: float | None = None,
        kill_after: float | None = None,
        timeout: Timeout = DEFAULT,
        on_progress: Progress | None = None,
    ) -> dict[str, Any]:
        """End the server; returns when its process is gone."""

    @abstractmethod
    def _site(self) -> Site:
        """What a `Waiter` needs."""

    @abstractmethod
    def call(self, name: str, /, *, timeout: Timeout = DEFAULT, **params: Any) -> Any:
        """The result of a command."""

    def workers(
        self,
        *,
        add: int | None = None,
        remove: int | None = None,
        recycle: int | None = None,
        timeout: float | None = WAIT_TIMEOUT,
    ) -> dict[str, Any]:
        """Have the master add or remove so many workers, or replace the one with the pid `recycle`; one of the three.

        Returns when they serve, or have ended: ``workers``, ``started`` and ``ended`` (pids), ``cut`` (a number of
        requests) and ``elapsed`` (seconds). A new worker loads the code that is on the disk, of which there is a
        preflight first. Raises CommandError with ``code`` -32001 if the server can't do that (the message says what
        helps), -32002 during another operation, ReloadFailed if the code is broken, and TimedOut if it is not done
        in `timeout` seconds.
        """
        given = {"add": add, "remove": remove, "recycle": recycle}
        params = {name: value for name, value in given.items() if value is not None}
        result: dict[str, Any] = self.call("workers", timeout=timeout, **params)
        return result

    @abstractmethod
    def _query(self, method: str, timeout: Timeout, **params: Any) -> dict[str, Any]:
        """The result of a command without side effects."""

    def history(self, *, timeout: Timeout = DEFAULT) -> dict[str, Any]:
        """``{"history": […]}``: the start of the instance and its reloads, the last 20, the last one at the end.

        Each has the ``generation`` that served then, ``outcome`` (``started``, ``reloaded`` or ``failed``), ``at`` (RFC
        3339), ``by`` (who asked, None for the start), ``elapsed`` (seconds, None for the start), ``error`` (why it has
        failed), ``cut`` (a number of requests), ``directory`` (resolved) and ``commit`` of the code that served then,
        by git, None if that is unknown.
        """
        return self._query("history", timeout)

    def wait(
        self,
        condition: Condition,
        *,
        generation: int | None = None,
        pid: int | None = None,
        timeout: float | None = WAIT_TIMEOUT,
    ) -> dict[str, Any]:
        """Return when the instance is ``ready``, ``gone``, ``drained``, ``idle``, or of a `generation` at least.

        ``ready``: it serves, and may start meanwhile. ``gone``: its process has ended; also if nothing runs. ``idle``:
        no request is in flight. ``drained``: a drain was asked for, and it is idle. Except for ``ready``, another
        instance that comes to the same address meanwhile is not waited for; with `pid` only the process of that pid is
        the instance. The result has ``reached``, ``pid`` and ``elapsed`` (seconds), and ``proof`` (``process``,
        ``absence`` or ``other``) for ``gone``, else ``started_at``, ``state``, ``generation`` and ``in_flight``.

        Raises NotRunning if nothing runs or the instance has ended, TimedOut if it is not so after `timeout` seconds.
        """
        from .wait import Waiter

        if (condition == "generation") != (generation is not None):
            raise LocalProtocolError("a generation is the number to wait for with the condition generation")
        check_seconds("timeout", timeout)
        return Waiter(self._site(), timeout, pid).until(condition, generation)

    def restart(
        self,
        mode: str = "graceful",
        *,
        grace: float | None = None,
        kill_after: float | None = None,
        confirm: float | None = None,
        max_errors: float = MAX_ERRORS,
        timeout: float = WAIT_TIMEOUT,
        on_supervisor: Callable[[dict[str, Any]], Any] | None = None,
        on_progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Stop the instance, and return when another one, which its supervisor has started, serves at the address.

        `mode`, `grace`, `kill_after` and `on_progress` are those of `stop`, `timeout` is for all of it, in seconds, and
        longer than `kill_after`. The server has to answer first: `stop` with `kill_after` ends one that does not.
        `on_supervisor` is called before the stop with the ``supervisor`` of `status`, whose policy may be unknown.

        The result is that of ``wait("ready")``, with ``elapsed`` for all of it, ``stopped``, the result of the stop,
        and ``supervisor``. Raises ConfigurationError, with nothing done, if nothing would start the instance again;
        NotRunning if it was stopped but nothing came in time, TimedOut if the next one is not ready in time: with
        ``stopped`` in ``data``. With `confirm` it returns so many seconds later, with ``confirmed``, as `reload` does.
        """
        from .restart import restart

        check_seconds("timeout", timeout)
        check_seconds("kill_after", kill_after)
        check_seconds("confirm", confirm)
        if kill_after is not None and kill_after >= timeout:
            raise ConfigurationError(
                f"the processes can't be killed after {kill_after:g} s in a restart that may take {timeout:g} s; give a"
                " longer time-out"
            )

        def stop(seconds: float) -> dict[str, Any]:
            stopped = self.stop(mode, grace=grace, kill_after=kill_after, timeout=seconds, on_progress=on_progress)
            self._accept_successor()
            return stopped

        confirmation = None
        if confirm is not None:
            from .confirm import Confirmation

            confirmation = Confirmation(self.status, confirm, max_errors)
        result = restart(self._site(), lambda: self.status(policy=True), stop, timeout, on_supervisor)
        return result if confirmation is None else {**result, "confirmed": confirmation.watch(result, on_progress)}
