"""``flask-ctl run``: the only command that imports the user's app."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..quick_exit import exit_quickly
from ..settings import ControlCommand, settings

if TYPE_CHECKING:
    from flask import Flask

RUN_OPTIONS = "FLASK_CTL_RUN"
"""Environment variable with options for `WSGI_APP`, separated by spaces: ``quiet``, ``required``."""

WSGI_APP = "flask_ctl_cli.wsgi:app"
"""The app that a server of several processes loads."""


def _check_server(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from flask_ctl import server_names

    if value not in server_names():
        raise click.BadParameter(f"{value!r} is not one of {', '.join(server_names())}.")
    return value


def _change_directory(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Change to the directory, by the name that was given, and make reloads start there, too."""
    if value is None or ctx.resilient_parsing:
        return value
    if not os.path.isabs(value):
        raise click.BadParameter("give an absolute path, which is valid in the next release, too.")
    try:
        os.chdir(value)
    except OSError as error:
        raise click.BadParameter(f"{value}: {error.strerror}.") from None
    # PWD as a shell sets it. The option takes precedence over the environment.
    os.environ["PWD"] = os.environ["FLASK_CTL_DIRECTORY"] = value
    return value


@click.command(
    cls=ControlCommand,
    examples=[
        "flask-ctl run --app shop --port 8000 --socket /tmp/shop.sock",
        "flask-ctl run --app shop:app --server waitress --threads 8",
    ],
)
@click.option(
    "--directory",
    metavar="DIR",
    is_eager=True,
    callback=_change_directory,
    help="Run in this directory; a reload follows its symlinks again.",
)
@click.option(
    "--app",
    "-A",
    "import_name",
    envvar="FLASK_APP",
    metavar="IMPORT",
    help="The app, as for flask: module, module:name.",
)
@click.option("--host", "-h", default="127.0.0.1", show_default=True)
@click.option("--port", "-p", type=click.IntRange(0, 65535), default=5000, show_default=True)
@click.option(
    "--server", metavar="NAME", default="werkzeug", show_default=True, callback=_check_server, help="The HTTP server."
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Answer at most N requests at once.")
def run(import_name: str | None, host: str, port: int, server: str, threads: int | None, directory: str | None) -> None:
    """Serve a Flask app with a control socket."""
    exit_quickly()
    from flask_ctl import ConfigurationError, prepare_server, server_program

    try:
        program = server_program(server, WSGI_APP, host, port, threads, directory)
        if program is not None:
            _exec_server(program.command, program.environment, import_name)
        prepare_server(server)
        _serve(load_app(import_name), host, port, server, threads)
    except ConfigurationError as error:
        raise click.ClickException(error.message) from None


def _exec_server(command: list[str], environment: dict[str, str], import_name: str | None) -> NoReturn:
    """Replace this process by the server's own program."""
    options = {"quiet": settings().quiet, "required": settings().socket is not None}
    variables = {RUN_OPTIONS: " ".join(word for word, yes in options.items() if yes)}
    if import_name is not None:
        variables["FLASK_APP"] = import_name
    if (socket := settings().socket) is not None:
        variables["FLASK_CTL_SOCKET"] = socket
    os.execve(command[0], command, {**os.environ, **environment, **variables})


def _serve(app: Flask, host: str, port: int, server: str, threads: int | None) -> None:
    from flask_ctl import Control

    show_log(quiet=settings().quiet)
    control = app.extensions["ctl"].control if "ctl" in app.extensions else Control(app)
    control.run(app, socket=settings().socket, threads=threads, server=server, host=host, port=port)


def load_app(import_name: str | None) -> Flask:
    """The app that `flask` would load."""
    from flask.cli import ScriptInfo

    # As under `flask run`: an app.run() at the end of the module does nothing during its import.
    os.environ["FLASK_RUN_FROM_CLI"] = "true"
    try:
        return ScriptInfo(app_import_path=import_name).load_app()
    finally:
        del os.environ["FLASK_RUN_FROM_CLI"]


def show_log(*, quiet: bool) -> None:
    """Show log records on stderr, from INFO, or if `quiet` from WARNING; a logging configuration of the app stays."""
    logger = logging.getLogger("flask_ctl")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("flask-ctl: %(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
