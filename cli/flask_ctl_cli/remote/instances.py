"""The instances of a rollout on other hosts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask_ctl import NotRunning

from ..rollout.member import Member, identity
from ..settings import Settings
from .command import side_by_side
from .ssh import Host, NotBegun, NotKnown, parse_hosts, run

TIMEOUT = 30.0
"""Seconds for a host to tell what runs there."""


def members_on(settings: Settings) -> list[Member]:
    """The selected instances on the hosts of --on, in the order of the hosts; one for each server.

    A host that is not reached is a member, too, of which nothing else is known. Raises NotRunning if nothing is
    selected on any host.
    """
    hosts = parse_hosts(settings.on or "")
    found: dict[str, list[Member]] = {}

    def ask(host: Host) -> None:
        try:
            document, _ = run(host, [*_selection(settings), "status"], TIMEOUT)
        except (NotBegun, NotKnown) as error:
            found[host.name] = [_absent(host, f"unreachable: {error}")]
        else:
            found[host.name] = list(_members(host, document))

    side_by_side(ask, hosts)
    members = [member for host in hosts for member in found.get(host.name, [_absent(host, "it was not asked")])]
    if not members:
        raise NotRunning(f"no running instance is selected on {', '.join(host.name for host in hosts)}", {"tried": []})
    return members


def _members(host: Host, document: Any) -> Iterator[Member]:
    """Of what `status` has printed there: one status, an error, or a list of answers."""
    if isinstance(document, dict) and document.keys() == {"error", "exit"}:
        if document["exit"] != 3:
            yield _absent(host, document["error"]["message"])
        return
    if isinstance(document, dict):
        name, sockets = document["app"], document["control"]["sockets"]
        yield Member(name, sockets[0], *identity(document), host=host.name, program=host.program)
        return
    servers = set()
    for item in document:
        status = item.get("result")
        if status is None:
            yield Member(
                item["name"] or "", item["socket"], item["pid"], None, None, host=host.name, program=host.program,
                problem=item["error"]["message"],
            )  # fmt: skip
        elif status["pid"] not in servers:
            # A server with several apps is one.
            servers.add(status["pid"])
            yield Member(item["name"], item["socket"], *identity(status), host=host.name, program=host.program)


def _absent(host: Host, problem: str) -> Member:
    return Member("", "", None, None, None, host=host.name, program=host.program, problem=problem)


def _selection(settings: Settings) -> list[str]:
    words = [word for socket in settings.sockets for word in ("--socket", socket)]
    for option, value in (
        ("--name", settings.selected_name),
        ("--dir", settings.selected_dir),
        ("--owner", settings.owner),
    ):
        words += [] if value is None else [option, value]
    return [*words, *(["--all"] if settings.selected_all else [])]
