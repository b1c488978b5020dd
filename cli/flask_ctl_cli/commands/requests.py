"""``flask-ctl requests``."""

from __future__ import annotations

import click

from ..many import for_each
from ..output import found_code, print_found
from ..settings import ClientCommand, Seconds, settings
from ..watching import show, watch_option


@click.command(
    cls=ClientCommand,
    role="observe",
    examples=["flask-ctl requests", "flask-ctl requests --slower 5 --watch", "flask-ctl requests --worker 4243 --json"],
)
@watch_option
@click.option("--slower", type=Seconds(), default=0.0, metavar="SECONDS", help="Leave out requests that are younger.")
@click.option("--worker", type=int, metavar="PID", help="Ask only this worker.")
def requests(watch: float | None, slower: float, worker: int | None) -> None:
    """Show the requests in flight, the oldest first.

    It works while all request threads hang. Who may only observe gets method, route, age and worker; role inspect adds
    path, query, client, X-Request-ID and thread. Secrets are masked.

    If there is none, and a worker did not answer: exit code 4. With --watch: exit code 3 when the server has ended.
    """
    if settings().selects_many and watch is None:
        for_each(
            "requests",
            lambda client: client.requests(slower=slower, worker=worker),
            code=lambda result: found_code("requests", result),
        )
    with settings().client() as client:
        if watch is None:
            print_found("requests", client.requests(slower=slower, worker=worker), as_json=settings().json)
        else:
            show("requests", lambda: client.requests(slower=slower, worker=worker), watch)
