"""``flask-ctl run``: the only command that imports the user's app."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..settings import ControlCommand, settings

if TYPE_CHECKING:
    from flask import Flask

MANNER = "FLASK_CTL_RUN"
"""The variable by which a server of several processes is told how to run: ``quiet``, ``required``."""

SERVED = "flask_ctl_cli.served:app"
"""What such a server loads."""


def _known_server(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from flask_ctl import server_names

    if value not in server_names():
        raise click.BadParameter(f"{value!r} is not one of {', '.join(server_names())}.")
    return value


def _go(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Go to the directory, by that name, and have reloads go there again."""
    if value is None or ctx.resilient_parsing:
        return value
    if not os.path.isabs(value):
        raise click.BadParameter("give an absolute path, which leads there from the next release, too.")
    try:
        os.chdir(value)
    except OSError as error:
        raise click.BadParameter(f"{value}: {error.strerror}.") from None
    # As a shell has it. The option comes before what the variable said.
    os.environ["PWD"] = os.environ["FLASK_CTL_DIRECTORY"] = value
    return value


@click.command(cls=ControlCommand)
@click.option(
    "--directory",
    metavar="DIR",
    is_eager=True,
    callback=_go,
    help="Run in this directory; a reload goes there again, wherever symlinks lead by then.",
)
@click.option(
    "--app", "-A", "import_name", envvar="FLASK_APP", metavar="IMPORT", help="As for flask: module, module:name."
)
@click.option("--host", "-h", default="127.0.0.1", show_default=True)
@click.option("--port", "-p", type=click.IntRange(0, 65535), default=5000, show_default=True)
@click.option(
    "--server", metavar="NAME", default="werkzeug", show_default=True, callback=_known_server, help="The HTTP server."
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Answer at most so many requests at once.")
def run(import_name: str | None, host: str, port: int, server: str, threads: int | None, directory: str | None) -> None:
    """Serve a Flask app with a control socket."""
    from flask_ctl import ConfigurationError, prepare_server, server_program

    try:
        program = server_program(server, SERVED, host, port, threads, directory)
        if program is not None:
            _become(program.command, program.environment, import_name)
        prepare_server(server)
        _serve(load(import_name), host, port, server, threads)
    except ConfigurationError as error:
        raise click.ClickException(error.message) from None


def _become(command: list[str], environment: dict[str, str], import_name: str | None) -> NoReturn:
    """Be the server's own program from now on."""
    manner = {"quiet": settings().quiet, "required": settings().socket is not None}
    told = {MANNER: " ".join(word for word, yes in manner.items() if yes)}
    if import_name is not None:
        told["FLASK_APP"] = import_name
    if (socket := settings().socket) is not None:
        told["FLASK_CTL_SOCKET"] = socket
    os.execve(command[0], command, {**os.environ, **environment, **told})


def _serve(app: Flask, host: str, port: int, server: str, threads: int | None) -> None:
    from flask_ctl import Control

    show_log(quiet=settings().quiet)
    control = app.extensions["ctl"].control if "ctl" in app.extensions else Control(app)
    control.run(app, socket=settings().socket, threads=threads, server=server, host=host, port=port)


def load(import_name: str | None) -> Flask:
    """The app, found as `flask` finds it."""
    from flask.cli import ScriptInfo

    # As under `flask run`: an app.run() at the module's end does nothing while it is imported.
    os.environ["FLASK_RUN_FROM_CLI"] = "true"
    try:
        return ScriptInfo(app_import_path=import_name).load_app()
    finally:
        del os.environ["FLASK_RUN_FROM_CLI"]


def show_log(*, quiet: bool) -> None:
    """Show INFO too, unless it is to be quiet; the app's own logging, if it has set any up, stays as it is."""
    logger = logging.getLogger("flask_ctl")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("flask-ctl: %(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
