"""``flask ctl …``: the same commands, at the address that the app's own configuration gives."""

from __future__ import annotations

import click
from flask.cli import ScriptInfo

from .commands import BUILTIN
from .group import ControlGroup, settings_of


def _use_app(ctx: click.Context) -> None:
    def socket_of_app() -> str | None:
        app = ctx.ensure_object(ScriptInfo).load_app()
        if "ctl" not in app.extensions:
            raise click.UsageError("this app has no Control; add Control(app), or give an address by --socket")
        return next(iter(app.extensions["ctl"].control.sockets(app)), "off")

    settings_of(ctx).default_socket = socket_of_app


ctl = ControlGroup(
    "ctl",
    commands=BUILTIN,
    callback=click.pass_context(_use_app),
    help="Stop, inspect and call this app where it runs in another process.",
)
