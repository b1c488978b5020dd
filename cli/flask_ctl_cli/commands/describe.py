"""``flask-ctl describe``."""

from __future__ import annotations

from typing import Any

import click

from ..many import for_each
from ..output import print_result
from ..settings import ClientCommand, settings


@click.command(
    cls=ClientCommand,
    role="inspect",
    examples=["flask-ctl describe", "flask-ctl describe --json | jq '.settings[] | select(.origin != \"default\")'"],
)
@click.option("--worker", type=click.IntRange(min=1), metavar="PID", help="Ask only this worker.")
def describe(worker: int | None) -> None:
    """Show how the server was started, its settings, and what it uses of its limits.

    Command line, directory and what it leads to, git commit, Python, settings with their origin (secrets are masked),
    descriptors, threads, backlog and memory; HIGH is what uses 85 % or more.
    """
    if settings().selects_many:
        for_each("describe", lambda client: client.describe(worker=worker), code=_code)
    with settings().client() as client:
        result = client.describe(worker=worker)
    print_result("describe", result, as_json=settings().json)
    if code := _code(result):
        raise click.exceptions.Exit(code)


def _code(result: dict[str, Any]) -> int:
    return 4 if result["unanswered"] and not result["processes"] else 0
