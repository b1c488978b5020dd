"""``flask-ctl fleet``."""

from __future__ import annotations

import importlib

import click

from ..fleet.options import fleet_options

MODULES = {
    "call": "call",
    "drain": "operate",
    "events": "streams",
    "forget": "forget",
    "logs": "streams",
    "ls": "ls",
    "reload": "operate",
    "resume": "operate",
    "rollout": "rollout",
    "status": "ls",
    "stop": "operate",
    "top": "top",
}
"""The commands, and in which module each is."""


class FleetGroup(click.Group):
    """Its commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in MODULES:
            return None
        module = importlib.import_module(f"flask_ctl_cli.fleet.{MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command


fleet = FleetGroup(
    "fleet",
    params=fleet_options(),
    help="""Control instances on many machines, over NATS.

    The servers are those of --nats, or of FLASK_CTL_FLEET. What authenticates you there is in the variables
    FLASK_CTL_FLEET_CREDENTIALS, _NKEY, _USER and _PASSWORD, _CERTIFICATE and _KEY, with _CA for the servers'
    certificates. It needs the extra "fleet": pip install 'flask-ctl[fleet]'.
    """,
)
