"""``flask ctl …``: the same commands, at the address that the app's own configuration gives."""

from __future__ import annotations

import click
from flask.cli import ScriptInfo

from flask_ctl import find_instance_of

from .group import ControlGroup
from .settings import settings_of


class AppControlGroup(ControlGroup):
    """The commands for the app of ``flask --app``, which is loaded if no address is given otherwise."""

    def default_socket(self, ctx: click.Context) -> str | None:
        app = ctx.ensure_object(ScriptInfo).load_app()
        if "ctl" not in app.extensions:
            raise click.UsageError("this app has no Control; add Control(app), or give an address by --socket")
        socket = next(iter(app.extensions["ctl"].control.sockets(app)), "off")
        return find_instance_of(socket, settings_of(ctx).timeout)


ctl = AppControlGroup(
    "ctl",
    own=("call", "help", "ping", "reload", "status", "stop"),
    help="Stop, reload, inspect and call this app where it runs in another process.",
)
