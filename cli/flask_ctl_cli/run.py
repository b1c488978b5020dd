"""``flask-ctl run``: the only command that imports the user's app."""

from __future__ import annotations

import click

from .group import ControlCommand, settings


@click.command(cls=ControlCommand)
@click.option(
    "--app", "-A", "import_name", envvar="FLASK_APP", metavar="IMPORT", help="As for flask: module, module:name."
)
@click.option("--host", "-h", default="127.0.0.1", show_default=True)
@click.option("--port", "-p", type=click.IntRange(0, 65535), default=5000, show_default=True)
@click.option("--server", metavar="NAME", default="werkzeug", show_default=True, help="The HTTP server.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Answer at most so many requests at once.")
def run(import_name: str | None, host: str, port: int, server: str, threads: int | None) -> None:
    """Serve a Flask app with a control socket."""
    from flask.cli import ScriptInfo

    from flask_ctl import ConfigurationError, Control, servers

    if server not in servers():
        raise click.BadParameter(f"{server!r} is not one of {', '.join(servers())}", param_hint="--server")
    _show_log()
    app = ScriptInfo(app_import_path=import_name).load_app()
    control = app.extensions["ctl"].control if "ctl" in app.extensions else Control(app)
    try:
        control.run(app, socket=settings().socket, threads=threads, host=host, port=port)
    except ConfigurationError as error:
        raise click.ClickException(error.message) from None


def _show_log() -> None:
    """Let INFO through, unless --quiet, where the app sets up no logging of its own."""
    import logging

    logger = logging.getLogger("flask_ctl")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("flask-ctl: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING if settings().quiet else logging.INFO)
