"""``flask-ctl reload``."""

from __future__ import annotations

from typing import Any

import click

from ..many import for_each
from ..output import print_result
from ..progress import progress_line
from ..rollout.options import confirm_option, max_errors_option, rolling_options
from ..selection import targets
from ..settings import ClientCommand, Seconds, settings


@click.command(
    cls=ClientCommand,
    role="operate",
    impact="medium",
    impact_note="another process imports the new code first; then new connections wait for a second import",
    examples=[
        "flask-ctl reload --grace 20",
        "flask-ctl reload --grace 5 --cut",
        "flask-ctl reload --config",
        "flask-ctl reload --confirm 60 --max-errors 0.5%",
        "flask-ctl reload --name 'shop*' --rolling --canary 1 --batch 25% --min-healthy 30",
    ],
)
@click.option("--config", is_flag=True, help="Only call the app's on_reload functions; load no code.")
@click.option(
    "--grace", type=Seconds(), metavar="SECONDS", help="Wait at most this long for requests.  [default: CTL_GRACE]"
)
@click.option(
    "--cut", is_flag=True, help="After the grace cut the requests in flight, instead of abandoning the reload."
)
@click.option("--no-preflight", is_flag=True, help="Skip the preflight.")
@confirm_option
@max_errors_option
@rolling_options(health=True)
@click.pass_context
def reload(
    ctx: click.Context,
    config: bool,
    grace: float | None,
    cut: bool,
    no_preflight: bool,
    confirm: float | None,
    max_errors: float,
    rollout: dict[str, Any] | None,
) -> None:
    """Load the new code; return when it serves.

    A single process executes the program again; on a server with workers the master replaces them.

    A reload begins with a preflight: the same command runs in a scratch process, up to the point where it would bind
    its HTTP socket. So the code of its modules runs twice. A program that binds another port, takes a lock or starts
    jobs before it serves has to check flask_ctl.preflighting, or be reloaded with --no-preflight. If the preflight
    fails, nothing else happens.

    With --rolling one batch of the selected instances is reloaded after the other, until more than --max-failures have
    failed or an outcome is not known; `flask-ctl rollout` tells of its record.

    Exit codes: 0 the new code serves, 1 it can't be done here, or it failed, or the outcome is not known, 2 wrong
    usage, 3 nothing is running, 4 requests or threads did not end within the grace, 5 permission denied, 6 requests
    were cut, hooks, exit functions or threads were left unfinished, the process died, or with --confirm the error rate
    has risen by more than --max-errors (the new code serves all the same), 7 the new code was refused and
    its traceback is on stderr, 8 the server does not speak this protocol. With 4 and 7 the old code still serves. With
    0 old workers may still finish requests: then there is a warning, and `old_left` in the output of --json.
    """
    if config and confirm is not None:
        raise click.UsageError("--config loads no code, so there is nothing to --confirm")
    options: dict[str, Any] = {"grace": grace, "cut": cut, "preflight": not no_preflight}
    options["what"] = "config" if config else "code"
    if rollout is not None:
        from ..rollout.start import begin

        if confirm is not None:
            raise click.UsageError("of a rollout --min-healthy is the time to --confirm")
        begin("reload", options, rollout, max_errors=max_errors)
    options |= {"confirm": confirm, "max_errors": max_errors}
    if settings().selects_many:
        # One after the other: each loads its code twice.
        for_each(
            "reload",
            lambda client: client.reload(**options),
            code=exit_code,
            chosen=targets(settings(), whole_server=True),
            at_once=1,
            quiet=settings().quiet,
        )
    with progress_line() as show, settings().client(operate=True) as client:
        result = client.reload(**options, on_progress=show)
    if settings().json or not settings().quiet:
        print_result("reload", result, as_json=settings().json)
    if result.get("old_left"):
        late = f"old workers that still finish their last requests: {result['old_left']}; --cut would cut them"
        click.echo(f"Warning: {late}", err=True)
    ctx.exit(exit_code(result))


def exit_code(result: dict[str, Any]) -> int:
    """The exit code for the result of a reload."""
    confirmed = result.get("confirmed", {"ok": True})["ok"]
    return 6 if confirmed is False or any(result.get(what) for what in ("cut", "hooks", "threads_left")) else 0
