"""``flask-ctl exceptions``."""

from __future__ import annotations

import click

from ..many import for_each
from ..output import found_code, print_found
from ..settings import ClientCommand, settings


@click.command(
    cls=ClientCommand,
    role="inspect",
    examples=["flask-ctl exceptions", "flask-ctl exceptions --worker 4242", "flask-ctl exceptions --json"],
)
@click.option("--worker", type=int, metavar="PID", help="Ask only this worker.")
def exceptions(worker: int | None) -> None:
    """Show the last distinct exceptions that the app has not handled.

    The last one is at the end. Equal ones, of the same type and from the same lines, are counted.
    If there is none, and a worker did not answer: exit code 4.
    """
    if settings().selects_many:
        for_each(
            "exceptions",
            lambda client: client.exceptions(worker=worker),
            code=lambda result: found_code("exceptions", result),
        )
    with settings().client() as client:
        result = client.exceptions(worker=worker)
    print_found("exceptions", result, as_json=settings().json)
