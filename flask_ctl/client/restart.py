"""The client's side of `restart`: a stop, after which the supervisor starts the next instance."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import ConfigurationError, NotRunning, TimedOut
from ..protocol.text import supervisor_name
from ..system.supervisor import starts_again
from .stop import elapsed_since
from .wait import InstanceId, Site, Status, Waiter


def restart(
    site: Site,
    status: Callable[[], Status],
    stop: Callable[[float], dict[str, Any]],
    timeout: float,
    on_supervisor: Callable[[dict[str, Any]], Any] | None,
) -> dict[str, Any]:
    """The result of a restart that may take `timeout` seconds. Raises as `ControlClient.restart` does."""
    began = time.monotonic()
    before = status()
    supervisor = before.get("supervisor")
    # Of a control socket of systemd's the question whether the next instance is ready starts it.
    answers = "control" in before["server"].get("activated", [])
    if supervisor is None or (starts_again(supervisor) is False and not answers):
        raise ConfigurationError(_nothing_would_start(before, supervisor))
    if on_supervisor is not None:
        on_supervisor(supervisor)
    stopped = stop(max(0.0, timeout - elapsed_since(began)))
    try:
        ready = Waiter(site, max(0.0, timeout - elapsed_since(began))).until_ready(InstanceId.of(before))
    except NotRunning as error:
        raise NotRunning(
            f"pid {before['pid']} was stopped, but {supervisor_name(supervisor)} has not started another instance"
            f" within {timeout:g} s: {error.message}",
            {"stopped": stopped, "supervisor": supervisor},
        ) from None
    except TimedOut as error:
        data = {**(error.data or {}), "stopped": stopped, "supervisor": supervisor}
        raise TimedOut(f"pid {before['pid']} was stopped, but {error.message}", data) from None
    return {**ready, "elapsed": elapsed_since(began), "stopped": stopped, "supervisor": supervisor}


def _nothing_would_start(status: Status, supervisor: dict[str, Any] | None) -> str:
    if supervisor is None:
        why = "no supervisor was found that would start it again"
    elif supervisor["kind"] == "reloader":
        why = "Werkzeug's reloader ends with it"
    elif "job" in supervisor:
        why = f"{supervisor_name(supervisor)} would not start it again: its {supervisor['job']} is under way"
    elif sockets := status["server"].get("activated"):
        why = f"systemd would start it again only at the next connection to its sockets: {', '.join(sockets)}"
    else:
        why = f"{supervisor_name(supervisor)} would not start it again (restart policy: {supervisor['restart']})"
    return f"pid {status['pid']} was not stopped: {why}; use reload, or stop it and start it by the way it was started"
