"""``flask-ctl restart``."""

from __future__ import annotations

from typing import Any

import click

from flask_ctl import render_result

from ..output import print_result
from ..progress import progress_line
from ..rollout.options import confirm_option, max_errors_option, rolling_options
from ..settings import ClientCommand, Seconds, settings
from .stop import exit_code

TIMEOUT = 60.0
"""Seconds without --timeout."""


@click.command(
    cls=ClientCommand,
    role="operate",
    impact="high",
    impact_note="nothing serves until the next instance has started",
    examples=["flask-ctl restart", "flask-ctl restart --grace 10 --timeout 30", "flask-ctl restart --all --rolling"],
)
@click.option(
    "--mode",
    type=click.Choice(["graceful", "fast", "immediate"]),
    default="graceful",
    show_default=True,
    help="As of stop.",
)
@click.option("--grace", type=Seconds(), metavar="SECONDS", help="Drain at most this long.  [default: CTL_GRACE]")
@click.option(
    "--kill-after", type=Seconds(), metavar="SECONDS", help="Kill the processes that still run after this long."
)
@confirm_option
@max_errors_option
@rolling_options(health=True)
@click.pass_context
def restart(
    ctx: click.Context,
    mode: str,
    grace: float | None,
    kill_after: float | None,
    confirm: float | None,
    max_errors: float,
    rollout: dict[str, Any] | None,
) -> None:
    """Stop the instance, and wait until its supervisor has started another one that serves.

    Only where a supervisor starts it again: systemd, a container, Kubernetes, Supervisor, runit or pm2. Where its
    restart policy can't be seen, the stop is done all the same. New code is loaded without this, by reload.

    With --rolling one batch of the selected instances is restarted after the other; see `flask-ctl help reload`.

    It may take 60 seconds, or as long as --timeout says, which has to be longer than --kill-after. An instance that
    does not answer is not restarted: stop it by stop --kill-after, and its supervisor starts it again.

    Exit codes: 0 another instance serves, 1 the stop failed, 2 nothing would start it again, or wrong usage, and
    nothing was done, 3 nothing was running, or it was stopped, but no other came, 4 it still runs, or the next one
    is not ready in time, 5 permission denied, 6 another instance serves, but requests were cut,
    or with --confirm the error rate has risen by more than --max-errors, 8 the server does
    not speak this protocol.
    """
    options: dict[str, Any] = {"mode": mode, "grace": grace, "kill_after": kill_after}
    if rollout is not None:
        from ..rollout.start import begin

        if confirm is not None:
            raise click.UsageError("of a rollout --min-healthy is the time to --confirm")
        begin("restart", options, rollout, max_errors=max_errors)
    options |= {"confirm": confirm, "max_errors": max_errors}
    timeout = TIMEOUT if settings().timeout is None else settings().timeout or 0.0
    with progress_line() as show, settings().client(operate=True) as client:
        result = client.restart(**options, timeout=timeout, on_supervisor=_tell, on_progress=show)
    if settings().json or not settings().quiet:
        print_result("restart", result, as_json=settings().json)
    ctx.exit(exit_code(result["stopped"]) or (6 if result.get("confirmed", {"ok": True})["ok"] is False else 0))


def _tell(supervisor: dict[str, Any]) -> None:
    if supervisor["restart"] == "unknown":
        name = render_result("supervisor", supervisor).strip()
        settings().say(f"whether {name} starts it again after a stop is not known; stopping it")
