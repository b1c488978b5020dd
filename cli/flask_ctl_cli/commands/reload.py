"""``flask-ctl reload``."""

from __future__ import annotations

import click

from ..output import print_result
from ..progress import progress_line
from ..settings import ClientCommand, Seconds, settings


@click.command(
    cls=ClientCommand,
    examples=["flask-ctl reload --grace 20", "flask-ctl reload --grace 5 --cut", "flask-ctl reload --config"],
)
@click.option("--config", is_flag=True, help="Only call the app's on_reload functions; load no code.")
@click.option(
    "--grace", type=Seconds(), metavar="SECONDS", help="Wait at most this long for requests.  [default: CTL_GRACE]"
)
@click.option(
    "--cut", is_flag=True, help="After the grace cut the requests in flight, instead of abandoning the reload."
)
@click.option("--no-preflight", is_flag=True, help="Skip the preflight.")
@click.pass_context
def reload(ctx: click.Context, config: bool, grace: float | None, cut: bool, no_preflight: bool) -> None:
    """Load the new code; return when it serves.

    A single process executes the program again; on a server with workers the master replaces them.

    A reload begins with a preflight: the same command runs in a scratch process, up to the point where it would bind
    its HTTP socket. So the code of its modules runs twice. A program that binds another port, takes a lock or starts
    jobs before it serves has to check flask_ctl.preflighting, or be reloaded with --no-preflight. If the preflight
    fails, nothing else happens.

    Exit codes: 0 the new code serves, 1 it can't be done here, or it failed, or the outcome is not known, 2 wrong
    usage, 3 nothing is running, 4 requests or threads did not end within the grace, 5 permission denied, 6 requests
    were cut, hooks, exit functions or threads were left unfinished, or the process died, 7 the new code was refused and
    its traceback is on stderr, 8 the server does not speak this protocol. With 4 and 7 the old code still serves. With
    0 old workers may still finish requests: then there is a warning, and `old_left` in the output of --json.
    """
    with progress_line() as show, settings().client(operate=True) as client:
        result = client.reload(
            "config" if config else "code", grace=grace, cut=cut, preflight=not no_preflight, on_progress=show
        )
    if settings().json or not settings().quiet:
        print_result("reload", result, as_json=settings().json)
    if result.get("old_left"):
        late = f"old workers that still finish their last requests: {result['old_left']}; --cut would cut them"
        click.echo(f"Warning: {late}", err=True)
    ctx.exit(6 if any(result.get(what) for what in ("cut", "hooks", "threads_left")) else 0)
