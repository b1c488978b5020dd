"""``flask-ctl stacks``."""

from __future__ import annotations

import click

from ..many import for_each
from ..output import found_code, print_found
from ..settings import ClientCommand, settings


@click.command(
    cls=ClientCommand,
    role="inspect",
    impact_note="no request goes on for some milliseconds; with --all under gevent for 0.5 s per million objects",
    examples=["flask-ctl stacks", "flask-ctl stacks --all --worker 4242", "flask-ctl stacks --request 7f3a --json"],
)
@click.option("--worker", type=int, metavar="PID", help="Ask only this worker.")
@click.option("--request", metavar="ID", help="Show only what serves the request with this X-Request-ID.")
@click.option("--all", "everything", is_flag=True, help="Show also threads and greenlets that serve no request.")
def stacks(worker: int | None, request: str | None, everything: bool) -> None:
    """Show where the requests are: the Python stacks of threads and greenlets.

    It works while all request threads hang. If a C call holds the interpreter, the message names the thread that may be
    the one (exit code 4).
    """
    if settings().selects_many:
        for_each(
            "stacks",
            lambda client: client.stacks(worker=worker, request=request, all=everything),
            code=lambda result: found_code("stacks", result),
        )
    with settings().client() as client:
        result = client.stacks(worker=worker, request=request, all=everything)
    print_found("stacks", result, as_json=settings().json)
