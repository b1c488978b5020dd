"""``flask-ctl routes``."""

from __future__ import annotations

import click

from ..many import for_each
from ..output import found_code, print_found
from ..settings import ClientCommand, settings


@click.command(cls=ClientCommand, role="observe", examples=["flask-ctl routes", "flask-ctl routes --json"])
@click.option("--worker", type=click.IntRange(min=1), metavar="PID", help="Ask only this worker.")
def routes(worker: int | None) -> None:
    """Show the app's routes: rule, methods and endpoint.

    HEAD and OPTIONS, which Flask adds, are only in --json.
    """
    if settings().selects_many:
        for_each(
            "routes",
            lambda client: client.routes(worker=worker),
            code=lambda result: found_code("routes", result),
        )
    with settings().client() as client:
        result = client.routes(worker=worker)
    print_found("routes", result, as_json=settings().json)
