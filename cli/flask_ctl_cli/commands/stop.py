"""``flask-ctl stop``."""

from __future__ import annotations

from typing import Any

import click

from flask_ctl import NotRunning

from ..output import print_json, print_result
from ..progress import progress_line
from ..settings import ClientCommand, Seconds, settings

OUTCOME_CODES = {"drained": 0, "accepted": 0, "missing": 0, "forced": 6, "killed": 6, "died": 6}


@click.command(
    cls=ClientCommand,
    examples=[
        "flask-ctl stop --grace 10 --kill-after 20",
        "flask-ctl stop --delay 5 --missing-ok --socket /tmp/shop.sock",
    ],
)
@click.option(
    "--mode",
    type=click.Choice(["graceful", "fast", "immediate"]),
    default="graceful",
    show_default=True,
    help="graceful: drain. fast: cut requests, run hooks and atexit. immediate: cut requests, run neither.",
)
@click.option("--grace", type=Seconds(), metavar="SECONDS", help="Drain at most this long.  [default: CTL_GRACE]")
@click.option(
    "--delay",
    type=Seconds(),
    default=0.0,
    metavar="SECONDS",
    help="Accept new connections for this long before the drain.",
)
@click.option("--no-wait", is_flag=True, help="Return once the stop is accepted.")
@click.option(
    "--kill-after",
    type=Seconds(),
    metavar="SECONDS",
    help="Kill the processes that still run after this long; only on this machine.",
)
@click.option("--missing-ok", is_flag=True, help="Exit with 0 if nothing is running.")
@click.pass_context
def stop(
    ctx: click.Context,
    mode: str,
    grace: float | None,
    delay: float,
    no_wait: bool,
    kill_after: float | None,
    missing_ok: bool,
) -> None:
    """Stop the server; return when its process has ended.

    Exit codes: 0 every request was finished, or with --no-wait the stop is accepted, 1 it was refused or failed, or the
    outcome is not known, 2 wrong usage, or --kill-after can't be used at this address, 3 nothing is running, 4 the
    server still runs, 5 permission denied, 6 requests were cut, hooks were left unfinished, or a process was killed or
    died, 8 the server does not speak this protocol.
    """
    if no_wait and kill_after is not None:
        raise click.UsageError("--kill-after waits for the end of the server: it can't be combined with --no-wait")
    try:
        result = _stop(mode, grace=grace, delay=delay, wait=not no_wait, kill_after=kill_after)
    except NotRunning as error:
        if not missing_ok:
            raise
        settings().say(error.message)
        result = {"outcome": "missing"}
    outcome = result.get("outcome", "accepted")
    _print(outcome, result)
    ctx.exit(6 if result.get("hooks") == "unfinished" or result.get("died") else OUTCOME_CODES.get(outcome, 1))


def _stop(mode: str, **options: Any) -> dict[str, Any]:
    with progress_line() as show, settings().client(operate=True) as client:
        return client.stop(mode, on_progress=show, **options)


def _print(outcome: str, result: dict[str, Any]) -> None:
    if settings().json:
        print_json(result)
    elif settings().quiet or outcome == "missing":
        return
    elif outcome == "accepted":
        click.echo(f"{'pid ' + str(result['pid']) if result['pid'] else 'the server'} is stopping")
    else:
        print_result("stop", result, as_json=False)
