"""``flask-ctl workers``."""

from __future__ import annotations

import click

from flask_ctl import ControlClient

from ..output import print_json, print_result, write
from ..settings import ClientCommand, settings

TIMEOUT = 60.0
"""Seconds without --timeout."""


@click.command(
    cls=ClientCommand,
    role="operate",
    impact="medium",
    impact_note="a new worker loads the code that is on the disk, without a reload",
    examples=["flask-ctl workers", "flask-ctl workers add 2", "flask-ctl workers recycle 4243"],
)
@click.argument("action", type=click.Choice(["add", "remove", "recycle"]), required=False)
@click.argument("number", type=click.IntRange(min=1), required=False, metavar="[N|PID]")
@click.pass_context
def workers(ctx: click.Context, action: str | None, number: int | None) -> None:
    """Show the workers; add or remove N of them; or have the one with that PID replaced.

    gunicorn can do all of it, uWSGI can recycle, granian neither; where it can't be done, the message says what helps.
    Added workers last until a reload or the end of the master, which then has the number of its setting again.
    To show them needs the role observe.

    Exit codes: 0 done, 1 the server can't do that, or another operation is under way, 2 wrong usage, 3 nothing is
    running, 4 not done in time, 5 permission denied, 6 done, but requests were cut, 7 the code on the disk is broken,
    and nothing was done, 8 the server does not speak this protocol.
    """
    if (action is None) != (number is None):
        raise click.UsageError("add and remove need a number, recycle a pid: flask-ctl workers add 2")
    if action is None:
        with settings().client() as client:
            _show(client)
        return
    timeout = TIMEOUT if settings().timeout is None else settings().timeout
    with settings().client(operate=True) as client:
        result = client.workers(**{action: number}, timeout=timeout)
    if settings().json or not settings().quiet:
        print_result("workers", result, as_json=settings().json)
    ctx.exit(6 if result["cut"] else 0)


def _show(client: ControlClient) -> None:
    status = client.status()
    if settings().json:
        print_json({name: status[name] for name in ("workers", "workers_expected") if name in status})
        return
    if not status["workers"]:
        write(f"pid {status['pid']} serves by itself\n")
    for worker in status["workers"]:
        requests = f"{worker['in_flight']} in flight, {worker['total']} in all"
        write(f"pid {worker['pid']}, {worker['state']}, generation {worker['generation']}: {requests}\n")
