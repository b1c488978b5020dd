"""``flask-ctl fleet stop``, ``reload``, ``drain`` and ``resume``."""

from __future__ import annotations

from typing import Any, NoReturn

import click

from flask_ctl import Fleet

from ..commands.reload import exit_code as reload_code
from ..commands.stop import confirm_all, stop_text
from ..commands.stop import exit_code as stop_code
from ..many import TARGET_TIMEOUT, Ask
from ..output import change_code
from ..rollout.member import QUESTION_TIMEOUT
from ..rollout.options import confirm_option, max_errors_option, rolling_options
from ..rollout.start import begin
from ..settings import Seconds, settings
from .many import for_each, targets
from .options import FleetCommand
from .rolling import FleetPlace
from .selection import opened


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
@rolling_options(health=False)
def stop(
    mode: str, grace: float | None, delay: float, no_wait: bool, yes: bool, rollout: dict[str, Any] | None
) -> None:
    """Stop the selected instances, 64 at a time, or with --rolling one batch after the other.

    An instance has stopped when it has answered so, and has left NATS. Whether something starts it again is known only
    on its machine.

    Exit codes, the gravest of all instances: 0 every request was finished, 1 an outcome is not known (asked, and no
    answer), an instance could not be asked, or no server can be reached, 2 wrong usage, 3 nothing is selected, 5
    permission denied, 6 requests were cut, or hooks left unfinished.
    """
    with opened() as fleet:
        chosen = targets(fleet, whole_server=True)
        if settings().selected_all and not yes:
            confirm_all(chosen)
        if rollout is not None:
            if no_wait:
                raise click.UsageError("a rollout waits for each instance: it does not take --no-wait")
            _roll(fleet, "stop", {"mode": mode, "grace": grace, "delay": delay}, rollout)
        for_each(
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
    examples=[
        "flask-ctl fleet reload --name shop --label zone=a --config",
        "flask-ctl fleet reload --name shop --rolling --canary 1 --batch 25% --min-healthy 30",
    ],
)
@click.option("--config", is_flag=True, help="Only call the app's on_reload functions; load no code.")
@click.option("--grace", type=Seconds(), metavar="SECONDS", help="Wait at most this long for requests.")
@click.option("--cut", is_flag=True, help="After the grace cut the requests in flight.")
@click.option("--no-preflight", is_flag=True, help="Skip the preflight.")
@confirm_option
@max_errors_option
@rolling_options(health=True)
def reload(
    config: bool,
    grace: float | None,
    cut: bool,
    no_preflight: bool,
    confirm: float | None,
    max_errors: float,
    rollout: dict[str, Any] | None,
) -> None:
    """Load the new code in the selected instances, 64 at a time, or with --rolling one batch after the other.

    Each instance does it at most once, also where the command had to be sent again. The record of a rollout is at the
    NATS servers: `flask-ctl fleet rollout` tells of it, and goes on with one whose operator was killed. Only one
    operator at a time rolls out an app.

    Exit codes, the gravest of all instances: 0 the new code serves, 1 an outcome is not known (asked, and no answer),
    an instance could not be asked, or no server can be reached, 2 wrong usage, 3 nothing is selected, 5 permission
    denied, 4 requests did not end within the grace, 6 requests were cut, or the error rate has risen, 7 the new code
    was refused, and the old one serves.
    """
    if config and confirm is not None:
        raise click.UsageError("--config loads no code, so there is nothing to --confirm")
    options: dict[str, Any] = {"grace": grace, "cut": cut, "preflight": not no_preflight}
    options["what"] = "config" if config else "code"
    if rollout is not None:
        if confirm is not None:
            raise click.UsageError("of a rollout --min-healthy is the time to --confirm")
        with opened() as fleet:
            _roll(fleet, "reload", options, rollout, max_errors=max_errors)
    options |= {"confirm": confirm, "max_errors": max_errors}
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


def _roll(fleet: Fleet, method: str, options: dict[str, Any], rollout: dict[str, Any], **more: Any) -> NoReturn:
    begin(method, options, rollout, place=FleetPlace(fleet, QUESTION_TIMEOUT), **more)


def _all(method: str, ask: Ask, **options: Any) -> None:
    with opened() as fleet:
        chosen = targets(fleet, whole_server=True)
        for_each(method, ask, chosen=chosen, quiet=settings().quiet, **options)
