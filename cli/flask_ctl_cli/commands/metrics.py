"""``flask-ctl metrics``."""

from __future__ import annotations

from typing import Any, Literal

import click

from flask_ctl import LocalProtocolError, exposition

from ..output import print_json, write
from ..settings import ClientCommand, Seconds, settings

DEFAULT_INTERVAL = 15.0
"""Seconds between two writes of the file; Prometheus scrapes as often by default."""


class Endpoint(click.ParamType):  # type: ignore[type-arg]
    """HOST:PORT, or only the port, for loopback; an IPv6 address in brackets."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        host, _, port = str(value).rpartition(":")
        if not (port.isdecimal() and int(port) < 65536):
            self.fail(f"{value!r} is no HOST:PORT", param, ctx)
        return host.strip("[]") or "127.0.0.1", int(port)


@click.command(
    cls=ClientCommand,
    role="observe",
    examples=[
        "flask-ctl metrics",
        "flask-ctl metrics --listen 127.0.0.1:9464",
        "flask-ctl metrics --textfile /var/lib/node_exporter/shop.prom",
    ],
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["prometheus", "openmetrics"]),
    default="prometheus",
    show_default=True,
    help="Of the text: that of Prometheus 0.0.4, or OpenMetrics 1.0, which has exemplars.",
)
@click.option(
    "--listen", type=Endpoint(), metavar="[HOST:]PORT", help="Serve them over HTTP for Prometheus, until a signal."
)
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write them into a file again and again, until a signal; the file is removed when the server ends.",
)
@click.option(
    "--every",
    type=Seconds(),
    default=DEFAULT_INTERVAL,
    metavar="SECONDS",
    show_default=True,
    help="Time between two writes of the file.",
)
def metrics(
    style: Literal["prometheus", "openmetrics"], listen: tuple[str, int] | None, textfile: str | None, every: float
) -> None:
    """Show the metrics of the server and of the app, for Prometheus.

    Requests by method and class of status, a histogram of their durations, requests in flight, workers, generation,
    reloads, processes, and what the app has registered. With workers all are in one answer, ended ones included.

    --listen answers at /metrics in the format that the scraper prefers, and 503 while nothing runs. --textfile is for
    the textfile collector of node_exporter. Both go on over stops and reloads, and end at SIGTERM and SIGINT. The text
    needs the extra "metrics" (pip install 'flask-ctl[metrics]'), --json does not.
    """
    given = settings()
    if listen is not None and textfile is not None:
        raise click.UsageError("--listen and --textfile are two commands")
    if given.json and (listen is not None or textfile is not None):
        raise click.UsageError("--json is for one answer")
    if not given.json:
        # Without prometheus_client this fails now, and not at the first scrape.
        exposition([])
    if listen is not None or textfile is not None:
        from ..scraping import keep_file, serve

        def ask() -> dict[str, Any]:
            with given.client() as client:
                return client.metrics()

        if textfile is not None:
            keep_file(textfile, given.client, max(every, 1.0))
        elif listen is not None:
            serve(listen, ask)
        return
    with given.client() as client:
        result = client.metrics()
    show(result, style)


def show(result: dict[str, Any], style: str) -> None:
    """Print the answer, and name on stderr the workers that have not answered."""
    if settings().json:
        print_json(result)
        return
    try:
        text, _ = exposition(result["families"], "application/openmetrics-text" if style == "openmetrics" else "")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LocalProtocolError(f"the metrics can't be shown as text, only by --json: {error}") from None
    for one in result["unanswered"]:
        settings().say(f"pid {one['worker']} did not answer, its figures are those of its last answer: {one['error']}")
    write(text.decode())
