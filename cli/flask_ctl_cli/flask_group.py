"""``flask ctl …``: the commands of flask-ctl, with the address from the app's configuration."""

from __future__ import annotations

from typing import Any

import click
from flask import Flask
from flask.cli import NoAppException, ScriptInfo

from flask_ctl import find_instance_of

from .group import ControlGroup
from .settings import settings_of
from .terminal import complete_streams


class _ImportFailed(Exception):
    """The import of the app raised an exception; the text is one line."""


def _load_app(info: ScriptInfo) -> Flask:
    """The app of ``flask --app``. Raises _ImportFailed if its import fails, NoAppException if there is no app."""
    try:
        return info.load_app()
    except NoAppException as error:
        # Flask turns an ImportError inside the app into NoAppException, too, with the traceback in its text.
        if not error.message.startswith(_IMPORT_FAILED):
            raise
        reason = error.message
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
    lines = reason.strip().splitlines()
    raise _ImportFailed(lines[-1] if reason.startswith(_IMPORT_FAILED) else lines[0])


_IMPORT_FAILED = "While importing"


class AppControlGroup(ControlGroup):
    """The commands for the app of ``flask --app``, which is imported if no address is given otherwise.

    If the import fails, an instance is looked for as by ``flask-ctl``: it may run older code.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        complete_streams()
        return super().make_context(info_name, args, parent, **extra)

    def default_socket(self, ctx: click.Context) -> str | None:
        try:
            app = _load_app(ctx.ensure_object(ScriptInfo))
        except _ImportFailed as error:
            settings_of(ctx).say(
                f"the app can't be imported ({error}); looking for an instance that runs in this directory"
            )
            return None
        if "ctl" not in app.extensions:
            raise click.UsageError("this app has no Control; add Control(app), or give an address by --socket")
        socket = next(iter(app.extensions["ctl"].control.sockets(app)), "off")
        return find_instance_of(socket, settings_of(ctx).timeout)


ctl = AppControlGroup(
    "ctl",
    builtin=("call", "help", "ping", "reload", "status", "stop"),
    help="Stop, reload, inspect and call this app, which runs in another process.",
)
