"""``flask-ctl keygen``."""

from __future__ import annotations

import os
from typing import Literal

import click

from flask_ctl import write_key_pair

from ..output import print_json, write
from ..settings import ControlCommand, settings

_NEXT = {
    "server": "Set CTL_CURVE_KEY of the app to {secret}; clients need {public} for --server-key.",
    "client": "Copy {public} into CTL_CURVE_CLIENTS of the app, where {name!r} is your name; --client-key is {secret}.",
}


@click.command(cls=ControlCommand, examples=["flask-ctl keygen server", "flask-ctl keygen client ann.key"])
@click.argument("kind", type=click.Choice(["server", "client"]))
@click.argument("file", required=False, type=click.Path(dir_okay=False))
def keygen(kind: Literal["server", "client"], file: str | None) -> None:
    """Make the CURVE key pair of a server or a client, for control over TCP.

    The key pair is written to FILE (by default server.key or client.key) with mode 0600, the public key to a .pub file
    beside it. Existing files are not overwritten.
    """
    secret = os.path.abspath(file or f"{kind}.key")
    public = write_key_pair(secret, kind)
    if settings().json:
        print_json({"secret": secret, "public": public})
        return
    write(f"{secret}  is secret\n{public}  is public\n")
    name = os.path.basename(public).removesuffix(".pub")
    settings().say(_NEXT[kind].format(secret=secret, public=public, name=name))
