"""``flask-ctl run``: the only command that imports the user's app."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, NoReturn

import click

from ..quick_exit import exit_quickly
from ..settings import ControlCommand, Session, settings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from flask import Flask

RUN_OPTIONS = "FLASK_CTL_RUN"
"""Environment variable with options for `WSGI_APP`, separated by spaces: ``quiet``, ``required``."""

RUN_DIRECTORY = "FLASK_CTL_RUN_DIRECTORY"
"""Environment variable with the directory of ``--directory`` for `WSGI_APP`."""

WSGI_APP = "flask_ctl_cli.wsgi:app"
"""The app that a server of several processes loads."""


def _check_server(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from flask_ctl import server_names

    if value not in server_names():
        raise click.BadParameter(f"{value!r} is not one of {', '.join(server_names())}.")
    return value


def _complete_server(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from flask_ctl import server_names

    from ..completion import items

    return items(dict.fromkeys(server_names()), incomplete)


class RunCommand(ControlCommand):
    """Enters the directory, and reads ``.env`` and ``.flaskenv`` as `flask` does, before it reads its other options.

    The values of these may be in the files. What reads them imports Flask, so the server's patches come before that.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = {} if ctx.resilient_parsing else self.make_parser(ctx).parse_args(list(args))[0]
        if not ctx.resilient_parsing and not given.get("help"):
            exit_quickly()
            _prepare(given.get("directory"), given.get("server"))
        return super().parse_args(ctx, args)


def _prepare(directory: str | None, server: str | None) -> None:
    from flask_ctl import ConfigurationError, prepare_server, server_names

    if directory is not None:
        _change_directory(directory)
    if server in server_names():
        # What is wrong with it is reported when it is to serve.
        with contextlib.suppress(ConfigurationError):
            prepare_server(server)
    from flask.cli import load_dotenv
    from flask.helpers import get_load_dotenv

    if get_load_dotenv():
        load_dotenv()


def _change_directory(value: str) -> None:
    """Change to the directory, by the name that was given."""
    if not os.path.isabs(value):
        raise click.BadParameter(
            "give an absolute path, which is valid in the next release, too.", param_hint="--directory"
        )
    try:
        os.chdir(value)
    except OSError as error:
        raise click.BadParameter(f"{value}: {error.strerror}.", param_hint="--directory") from None
    # As a shell sets it.
    os.environ["PWD"] = value


@click.command(
    cls=RunCommand,
    examples=[
        "flask-ctl run --app shop --port 8000 --socket /tmp/shop.sock",
        "flask-ctl run --app shop:app --server waitress --threads 8",
    ],
)
@click.option(
    "--directory",
    metavar="DIR",
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
@click.option("--host", "-h", envvar="FLASK_RUN_HOST", default="127.0.0.1", show_default=True)
@click.option("--port", "-p", envvar="FLASK_RUN_PORT", type=click.IntRange(0, 65535), default=5000, show_default=True)
@click.option(
    "--server",
    metavar="NAME",
    default="werkzeug",
    show_default=True,
    callback=_check_server,
    shell_complete=_complete_server,
    help="The HTTP server.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Answer at most N requests at once.")
def run(import_name: str | None, host: str, port: int, server: str, threads: int | None, directory: str | None) -> None:
    """Serve a Flask app with a control socket."""
    from flask_ctl import ConfigurationError, prepare_server, server_program

    if Session.current is not None:
        raise click.UsageError("the shell would become the server: run it outside of flask-ctl shell")
    try:
        program = server_program(server, WSGI_APP, host, port, threads, directory)
        if program is not None:
            _exec_server(program.command, program.environment, import_name, directory)
        prepare_server(server)
        app = load_app(import_name)
        reload_in(directory, app)
        _serve(app, host, port, server, threads)
    except ConfigurationError as error:
        raise click.ClickException(error.message) from None


def _exec_server(
    command: list[str], environment: dict[str, str], import_name: str | None, directory: str | None
) -> NoReturn:
    """Replace this process by the server's own program."""
    options = {"quiet": settings().quiet, "required": settings().socket is not None}
    variables = {RUN_OPTIONS: " ".join(word for word, yes in options.items() if yes)}
    if import_name is not None:
        variables["FLASK_APP"] = import_name
    if (socket := settings().socket) is not None:
        variables["FLASK_CTL_SOCKET"] = socket
    # Set or empty: the environment may be that of an app which has been started in the same way.
    variables[RUN_DIRECTORY] = directory or ""
    os.execve(command[0], command, {**environment, **variables})


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


def reload_in(directory: str | None, app: Flask) -> None:
    """Make reloads of the app start in the directory of ``--directory``, if that was given.

    By a setting, because programs that the app starts have its environment, and directories of their own.
    """
    if directory:
        # The option takes precedence.
        os.environ.pop("FLASK_CTL_DIRECTORY", None)
        app.config["CTL_DIRECTORY"] = directory


def show_log(*, quiet: bool) -> None:
    """Show log records on stderr, from INFO, or if `quiet` from WARNING; a logging configuration of the app stays."""
    logger = logging.getLogger("flask_ctl")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("flask-ctl: %(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
