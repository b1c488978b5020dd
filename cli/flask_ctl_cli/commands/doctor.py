"""``flask-ctl doctor``."""

from __future__ import annotations

from typing import Any

import click

from ..output import print_result
from ..settings import ClientCommand, settings

UNKNOWN_COMMAND = -32601

NETWORK_FILE_SYSTEM = "network file system"
"""The check of `machine_findings` for directories of other machines."""


@click.command(cls=ClientCommand, role="observe", examples=["flask-ctl doctor", "flask-ctl doctor --json"])
def doctor() -> None:
    """Look for what commonly breaks, with the remedy.

    On this machine: the directories of sockets, the sockets and their locks. In a server, if one runs: versions,
    signals, what systemd does not hear, the attributes of its HTTP server that flask-ctl uses, symlinks that a reload
    would not follow. A note is no fault.

    Exit codes: 0 nothing is wrong, 1 something is, 2 wrong usage.
    """
    from flask_ctl import AmbiguousTarget, ConfigurationError, ControlError, NotRunning, machine_findings

    result: dict[str, Any] = {"findings": machine_findings(settings().sockets), "unanswered": []}
    try:
        # The server may not be asked by a socket in a directory that may never answer.
        remote = any(finding["check"] == NETWORK_FILE_SYSTEM for finding in result["findings"])
        found = {"findings": [], "unanswered": []} if remote else _of_server()
        result = {name: result[name] + found[name] for name in result}
    except NotRunning as error:
        result["findings"].append(
            _finding("note", f"{error.message}: only this machine was looked at", "start a server")
        )
    except AmbiguousTarget as error:
        result["findings"].append(_finding("note", error.message, "say which one by --socket"))
    except ConfigurationError as error:
        # The check of the addresses may have found it already.
        if not any(finding["check"] == "address" for finding in result["findings"]):
            result["findings"].append(_finding("problem", error.message, "correct the option or the variable"))
    except ControlError as error:
        result["findings"].append(
            _finding("problem", error.message, "see the page of its symptom, or: flask-ctl stacks")
        )
    print_result("doctor", result, as_json=settings().json)
    if result["unanswered"] or any(finding["severity"] == "problem" for finding in result["findings"]):
        raise click.exceptions.Exit(1)


def _of_server() -> dict[str, list[Any]]:
    from flask_ctl import CommandError, service_findings, version_findings

    with settings().client() as client:
        versions = version_findings(client.ping()["version"])
        try:
            found = client.doctor()
        except CommandError as error:
            # A server of an earlier version has no such command.
            if not versions or error.code != UNKNOWN_COMMAND:
                raise
            found = {"findings": [], "unanswered": []}
        services = service_findings(client.status())
    return {"findings": versions + services + found["findings"], "unanswered": found["unanswered"]}


def _finding(severity: str, message: str, remedy: str) -> dict[str, str]:
    return {"check": "server", "severity": severity, "message": message, "remedy": remedy}
