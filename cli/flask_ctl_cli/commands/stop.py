"""``flask-ctl stop``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from flask_ctl import ControlClient, NotRunning, printable

from ..many import Addressee, for_each
from ..output import print_json, result_text, write
from ..progress import progress_line
from ..rollout.options import rolling_options
from ..selection import targets
from ..settings import ClientCommand, Seconds, settings

OUTCOME_CODES = {"drained": 0, "accepted": 0, "missing": 0, "forced": 6, "killed": 6, "died": 6, "stopped": 6}


@click.command(
    cls=ClientCommand,
    role="operate",
    impact="high",
    impact_note="it ends the server",
    examples=[
        "flask-ctl stop --grace 10 --kill-after 20",
        "flask-ctl stop --delay 5 --missing-ok --socket /tmp/shop.sock",
        "flask-ctl stop --for-good",
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
@click.option("--for-good", is_flag=True, help="Have its supervisor stop it, so that it is not started again.")
@click.option("--missing-ok", is_flag=True, help="Exit with 0 if nothing is running.")
@click.option("--yes", is_flag=True, help="Do not ask whether --all is meant; needed for that without a terminal.")
@rolling_options(health=False)
@click.pass_context
def stop(
    ctx: click.Context,
    mode: str,
    grace: float | None,
    delay: float,
    no_wait: bool,
    kill_after: float | None,
    for_good: bool,
    missing_ok: bool,
    yes: bool,
    rollout: dict[str, Any] | None,
) -> None:
    """Stop the server; return when its process has ended.

    It tells whether a supervisor starts the server again. With --for-good the supervisor (systemd, Supervisor, runit or
    pm2) is told to stop it and to keep it down; a container is stopped from outside.

    With --rolling one batch of the selected instances is stopped after the other; see `flask-ctl help reload`.

    Exit codes: 0 every request was finished, or with --no-wait the stop is accepted, 1 it was refused or failed, or the
    outcome is not known, 2 wrong usage, or --kill-after or --for-good can't be used here, 3 nothing is running, 4 the
    server still runs, 5 permission denied, and nothing was done, 6 requests were cut, or may have been, hooks were left
    unfinished, or a process was killed or died, 8 the server does not speak this protocol.
    """
    if no_wait and kill_after is not None:
        raise click.UsageError("--kill-after waits for the end of the server: it can't be combined with --no-wait")
    options: dict[str, Any] = {"grace": grace, "delay": delay, "wait": not no_wait, "kill_after": kill_after}
    options |= {"policy": True, "for_good": for_good}
    if rollout is not None:
        _roll(mode, options, rollout, missing_ok=missing_ok, yes=yes)
    try:
        if settings().selects_many:
            _stop_many(mode, options, missing_ok=missing_ok, yes=yes)
        result = _stop(mode, **options)
    except NotRunning as error:
        if not missing_ok:
            raise
        settings().say(error.message)
        result = {"outcome": "missing"}
    _print(result)
    ctx.exit(exit_code(result))


def exit_code(result: dict[str, Any]) -> int:
    """The exit code for the result of a stop."""
    if result.get("hooks") == "unfinished" or result.get("died"):
        return 6
    return OUTCOME_CODES.get(result.get("outcome", "accepted"), 1)


def _stop(mode: str, **options: Any) -> dict[str, Any]:
    with progress_line() as show, settings().client(operate=True) as client:
        return client.stop(mode, on_progress=show, **options)


def _stop_many(mode: str, options: dict[str, Any], *, missing_ok: bool, yes: bool) -> NoReturn:
    """Raises NotRunning for an empty selection."""
    chosen = targets(settings(), whole_server=True)
    if settings().selected_all and not yes:
        confirm_all(chosen)

    def stop_one(client: ControlClient) -> dict[str, Any]:
        try:
            return client.stop(mode, **options)
        except NotRunning:
            if not missing_ok:
                raise
            return {"outcome": "missing"}

    for_each("stop", stop_one, code=exit_code, text=stop_text, chosen=chosen, quiet=settings().quiet)


def _roll(mode: str, options: dict[str, Any], rollout: dict[str, Any], *, missing_ok: bool, yes: bool) -> NoReturn:
    from ..rollout.start import begin

    if missing_ok or not options["wait"]:
        raise click.UsageError("a rollout waits for each instance: it takes neither --no-wait nor --missing-ok")
    if settings().selected_all and not yes:
        confirm_all(targets(settings(), whole_server=True))
    begin("stop", {"mode": mode, **options}, rollout)


def confirm_all(chosen: Sequence[Addressee]) -> None:
    """Ask whether --all is meant; needs a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError("stop --all needs --yes where there is no terminal to ask")
    listed = "".join(f"  {printable(target.described(), keep='')}\n" for target in chosen)
    click.confirm(f"{listed}Stop {'this' if len(chosen) == 1 else f'these {len(chosen)}'}?", abort=True, err=True)


def _print(result: dict[str, Any]) -> None:
    if settings().json:
        print_json(result)
    elif not settings().quiet and result.get("outcome") != "missing":
        write(f"{stop_text(result).rstrip()}\n")


def stop_text(result: dict[str, Any]) -> str:
    """The text for the result of a stop, also of one that is not waited for."""
    outcome = result.get("outcome", "accepted")
    if outcome == "accepted":
        accepted = f"{'pid ' + str(result['pid']) if result['pid'] else 'the server'} is stopping"
        return "\n".join(filter(None, [accepted, result_text("started_again", result).rstrip()]))
    return "nothing was running" if outcome == "missing" else result_text("stop", result)
