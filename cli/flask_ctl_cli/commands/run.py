"""``flask-ctl run``: the only command that imports the user's app."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import click

from ..settings import ControlCommand, settings

if TYPE_CHECKING:
    from flask import Flask


def _known_server(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from flask_ctl import servers

    if value not in servers():
        raise click.BadParameter(f"{value!r} is not one of {', '.join(servers())}.")
    return value


@click.command(cls=ControlCommand)
@click.option(
    "--app", "-A", "import_name", envvar="FLASK_APP", metavar="IMPORT", help="As for flask: module, module:name."
)
@click.option("--host", "-h", default="127.0.0.1", show_default=True)
@click.option("--port", "-p", type=click.IntRange(0, 65535), default=5000, show_default=True)
@click.option(
    "--server", metavar="NAME", default="werkzeug", show_default=True, callback=_known_server, help="The HTTP server."
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Answer at most so many requests at once.")
def run(import_name: str | None, host: str, port: int, server: str, threads: int | None) -> None:
    """Serve a Flask app with a control socket."""
    from flask_ctl import ConfigurationError, Control

    app = _load(import_name)
    _show_log()
    control = app.extensions["ctl"].control if "ctl" in app.extensions else Control(app)
    try:
        control.run(app, socket=settings().socket, threads=threads, host=host, port=port)
    except ConfigurationError as error:
        raise click.ClickException(error.message) from None


def _load(import_name: str | None) -> Flask:
    from flask.cli import ScriptInfo

    # As under `flask run`: an app.run() at the module's end does nothing while it is imported.
    os.environ["FLASK_RUN_FROM_CLI"] = "true"
    try:
        return ScriptInfo(app_import_path=import_name).load_app()
    finally:
        del os.environ["FLASK_RUN_FROM_CLI"]


def _show_log() -> None:
    """Show INFO too, unless --quiet; the app's own logging, if it has set any up, stays as it is."""
    logger = logging.getLogger("flask_ctl")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("flask-ctl: %(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING if settings().quiet else logging.INFO)
