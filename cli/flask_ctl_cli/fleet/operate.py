"""``flask-ctl fleet stop``, ``reload``, ``drain`` and ``resume``."""

from __future__ import annotations

from typing import Any

import click

from ..commands.reload import exit_code as reload_code
from ..commands.stop import confirm_all, stop_text
from ..commands.stop import exit_code as stop_code
from ..many import Ask
from ..output import change_code
from ..rollout.options import confirm_option, max_errors_option
from ..settings import Seconds, settings
from .many import for_each, targets
from .options import FleetCommand
from .selection import TARGET_TIMEOUT, opened


@click.command(
    cls=FleetCommand,
    role="operate",
    impact="high",
    impact_note="it ends the servers",
    examples=["flask-ctl fleet stop --name shop --host 'web-1*' --grace 10"],
)
@click.option("--mode", type=click.Choice(["graceful", "fast", "immediate"]), default="graceful", show_default=True)
@click.option("--grace", type=Seconds(), metavar="SECONDS", help="Drain at most this long.  [default: CTL_GRACE]")
@click.option("--delay", type=Seconds(), default=0.0, metavar="SECONDS", help="Accept new connections this long first.")
@click.option("--no-wait", is_flag=True, help="Return once the stop is accepted.")
@click.option("--yes", is_flag=True, help="Do not ask whether --all is meant; needed for that without a terminal.")
def stop(mode: str, grace: float | None, delay: float, no_wait: bool, yes: bool) -> None:
    """Stop the selected instances, all at once.

    An instance has stopped when it has answered so, and has left NATS. Whether something starts it again is known only
    on its machine.

    Exit codes, the gravest of all instances: 0 every request was finished, 1 an outcome is not known (asked, and no
    answer), an instance could not be asked, or no server can be reached, 2 wrong usage, 3 nothing is selected, 5
    permission denied, 6 requests were cut, or hooks left unfinished.
    """
    with opened() as fleet:
        chosen = targets(fleet)
        if settings().selected_all and not yes:
            confirm_all(chosen)
        for_each(
            fleet,
            "stop",
            lambda client: client.stop(mode, grace=grace, delay=delay, wait=not no_wait),
            code=stop_code,
            text=stop_text,
            chosen=chosen,
            quiet=settings().quiet,
        )


@click.command(
    cls=FleetCommand,
    role="operate",
    impact="medium",
    impact_note="each instance imports the new code twice",
    examples=["flask-ctl fleet reload --name shop --label zone=a", "flask-ctl fleet reload --all --config"],
)
@click.option("--config", is_flag=True, help="Only call the app's on_reload functions; load no code.")
@click.option("--grace", type=Seconds(), metavar="SECONDS", help="Wait at most this long for requests.")
@click.option("--cut", is_flag=True, help="After the grace cut the requests in flight.")
@click.option("--no-preflight", is_flag=True, help="Skip the preflight.")
@confirm_option
@max_errors_option
def reload(
    config: bool, grace: float | None, cut: bool, no_preflight: bool, confirm: float | None, max_errors: float
) -> None:
    """Load the new code in the selected instances, all at once.

    Each instance does it at most once, also where the command had to be sent again.

    Exit codes, the gravest of all instances: 0 the new code serves, 1 an outcome is not known (asked, and no answer),
    an instance could not be asked, or no server can be reached, 2 wrong usage, 3 nothing is selected, 5 permission
    denied, 4 requests did not end within the grace, 6 requests were cut, or the error rate has risen, 7 the new code
    was refused, and the old one serves.
    """
    if config and confirm is not None:
        raise click.UsageError("--config loads no code, so there is nothing to --confirm")
    options: dict[str, Any] = {"grace": grace, "cut": cut, "preflight": not no_preflight}
    options |= {"what": "config" if config else "code", "confirm": confirm, "max_errors": max_errors}
    if settings().timeout is None:
        options["timeout"] = TARGET_TIMEOUT
    _all("reload", lambda client: client.reload(**options), code=reload_code)


@click.command(
    cls=FleetCommand,
    role="operate",
    impact="medium",
    impact_note="load balancers take the servers out of service",
    examples=["flask-ctl fleet drain --name shop --host web-3"],
)
def drain() -> None:
    """Have the health checks of the selected instances fail, so that load balancers send no more requests.

    Exit codes, the gravest of all instances: 0 health checks fail, 1 an outcome is not known (asked, and no answer), an
    instance could not be asked, or no server can be reached, 2 wrong usage, 3 nothing is selected, 5 permission denied,
    4 a worker has not confirmed it, 6 an on_drain function failed.
    """
    _all("drain", lambda client: client.drain(), code=change_code)


@click.command(
    cls=FleetCommand,
    role="operate",
    examples=["flask-ctl fleet resume --name shop --host web-3"],
)
def resume() -> None:
    """End a drain of the selected instances: their health checks pass again.

    Exit codes, the gravest of all instances: 0 health checks pass, 1 an outcome is not known (asked, and no answer), an
    instance could not be asked, or no server can be reached, 2 wrong usage, 3 nothing is selected, 5 permission denied,
    4 a worker has not confirmed it, 6 an on_ready function failed.
    """
    _all("resume", lambda client: client.resume(), code=change_code)


def _all(method: str, ask: Ask, **options: Any) -> None:
    with opened() as fleet:
        for_each(fleet, method, ask, quiet=settings().quiet, **options)
