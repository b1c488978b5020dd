"""``flask ctl …``: the same commands, at the address that the app's own configuration gives."""

from __future__ import annotations

import click
from flask import Flask
from flask.cli import NoAppException, ScriptInfo

from flask_ctl import find_instance_of

from .group import ControlGroup
from .settings import settings_of


class _Broken(Exception):
    """The app's source can't be imported; the text is one line."""


def _load(info: ScriptInfo) -> Flask:
    """The app. Raises _Broken if its source fails, NoAppException if there is none."""
    try:
        return info.load_app()
    except NoAppException as error:
        # Flask makes one of an ImportError inside of the app, too, with the traceback in its text.
        if not error.message.startswith(_IMPORT_FAILED):
            raise
        reason = error.message
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
    lines = reason.strip().splitlines()
    raise _Broken(lines[-1] if reason.startswith(_IMPORT_FAILED) else lines[0])


_IMPORT_FAILED = "While importing"


class AppControlGroup(ControlGroup):
    """The commands for the app of ``flask --app``, which is loaded if no address is given otherwise.

    Where its source is broken an instance is looked for, which may run the old code.
    """

    def default_socket(self, ctx: click.Context) -> str | None:
        try:
            app = _load(ctx.ensure_object(ScriptInfo))
        except _Broken as error:
            settings_of(ctx).say(f"the app can't be loaded ({error}); looking for an instance that runs here")
            return None
        if "ctl" not in app.extensions:
            raise click.UsageError("this app has no Control; add Control(app), or give an address by --socket")
        socket = next(iter(app.extensions["ctl"].control.sockets(app)), "off")
        return find_instance_of(socket, settings_of(ctx).timeout)


ctl = AppControlGroup(
    "ctl",
    own=("call", "help", "ping", "reload", "status", "stop"),
    help="Stop, reload, inspect and call this app where it runs in another process.",
)
