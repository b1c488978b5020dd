"""``flask-ctl ls``."""

from __future__ import annotations

import contextlib
import os
import time

import click

from ..output import print_result
from ..selection import matching, selected
from ..settings import ClientCommand, settings
from ..watching import LEAST_INTERVAL, show_one, watch_option

CHECK_INTERVAL = 0.1
"""Seconds between two looks at which instances run, while --watch waits for the next time to show them."""

WATCH_TIMEOUT = 0.3
"""Seconds for the answers with --watch, so that silent instances do not delay the others."""


@click.command(
    cls=ClientCommand,
    role="observe",
    examples=[
        "flask-ctl ls",
        "flask-ctl ls --watch",
        "flask-ctl ls --name 'shop*' --json",
        "sudo flask-ctl ls --owner www-data",
    ],
)
@watch_option
@click.option("--prune", is_flag=True, help="First remove the files that killed instances have left.")
def ls(watch: float | None, prune: bool) -> None:
    """List the instances that run on this machine: yours, or as root those of all users.

    An instance that does not answer is listed with what it said when it registered. The pid is that of the process to
    signal, from the kernel; `-` is what is not known. With --watch it is shown also whenever an instance has come or
    gone. Without that, with --name, --dir or --all: exit code 3 if there is none.
    """
    given = settings()
    everyone = not given.selects and given.owner is None and hasattr(os, "geteuid") and os.geteuid() == 0
    if prune:
        from flask_ctl import remove_dead_instances

        removed = remove_dead_instances(owner=given.owner, everyone=everyone)
        given.say(f"removed {len(removed)} {'file' if len(removed) == 1 else 'files'} of instances that have ended")
    if watch is None:
        print_result("ls", [instance.as_dict() for instance in selected(given, everyone=everyone)], as_json=given.json)
        return
    with contextlib.suppress(KeyboardInterrupt):
        _watch(max(watch, LEAST_INTERVAL), everyone)


def _watch(interval: float, everyone: bool) -> None:
    from flask_ctl import registered_instances

    given = settings()
    timeout = WATCH_TIMEOUT if given.timeout is None else given.timeout
    while True:
        before, due = registered_instances(owner=given.owner, everyone=everyone), time.monotonic() + interval
        show_one("ls", [instance.as_dict() for instance in matching(given, timeout, everyone=everyone)])
        while (left := due - time.monotonic()) > 0:
            time.sleep(min(CHECK_INTERVAL, left))
            if registered_instances(owner=given.owner, everyone=everyone) != before:
                break
