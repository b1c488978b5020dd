"""``flask-ctl reload``."""

from __future__ import annotations

import click

from ..output import print_result
from ..progress import progress_line
from ..settings import ClientCommand, Seconds, settings


@click.command(cls=ClientCommand)
@click.option("--config", is_flag=True, help="Only call the app's reload hooks.")
@click.option(
    "--grace", type=Seconds(), metavar="SECONDS", help="Wait at most this long for requests.  [default: CTL_GRACE]"
)
@click.option("--cut", is_flag=True, help="Then cut what is left, instead of giving up.")
@click.option("--no-preflight", is_flag=True, help="Do without the rehearsal.")
@click.pass_context
def reload(ctx: click.Context, config: bool, grace: float | None, cut: bool, no_preflight: bool) -> None:
    """Serve the new code; return when it serves.

    A single process executes the program anew; where there are workers their master replaces them.

    First the program is rehearsed: the same command runs in a process of its own, up to where it would bind its HTTP
    socket. So the code of its modules runs twice, and a program that binds another port, takes a lock or starts jobs
    before it serves has to look at flask_ctl.preflighting, or be reloaded with --no-preflight. If the rehearsal fails,
    nothing else happens.

    Exit codes: 0 the new code serves, 1 it can't be done here, or the outcome is not known, 2 wrong usage, 3 nothing is
    running, 4 requests or threads were at work for too long, 5 permission denied, 6 requests were cut, hooks, exit
    functions or threads were left behind, or the process died, 7 the new code was refused and its traceback is on
    stderr, 8 what answers is no flask-ctl. After 4 and 7 the old code serves on. Where there are workers, old ones may
    still be at work after 0: a warning says so, and `old_left` of --json.
    """
    with progress_line() as show, settings().client(operate=True) as client:
        result = client.reload(
            "config" if config else "code", grace=grace, cut=cut, preflight=not no_preflight, on_progress=show
        )
    if settings().json or not settings().quiet:
        print_result("reload", result, as_json=settings().json)
    if result.get("old_left"):
        late = f"old workers still at work: {result['old_left']}; they finish their last requests, --cut would cut them"
        click.echo(f"Warning: {late}", err=True)
    ctx.exit(6 if any(result.get(what) for what in ("cut", "hooks", "threads_left")) else 0)
