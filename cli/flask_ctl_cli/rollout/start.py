"""Beginning and resuming rollouts, wherever their instances are."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import click

from flask_ctl import ConfigurationError, ControlError, NotRunning, without_secret

from ..many import TARGET_TIMEOUT, first_of
from ..output import print_json, write
from ..settings import settings
from .course import Outcome, Plan, number_of
from .member import Answer, Change, Health, Member, ask, now_of
from .place import LocalPlace, Place
from .record import Document, Record
from .run import Run
from .text import render

AGAIN = (Outcome.NOT_STARTED.value, Outcome.REFUSED.value, Outcome.UNREACHABLE.value)
"""Outcomes after which a resumed rollout asks an instance: nothing has been done there."""


def begin(
    method: str,
    options: dict[str, Any],
    rollout: dict[str, Any],
    *,
    max_errors: float = 0.0,
    place: Place | None = None,
) -> NoReturn:
    """Have the selected instances do it, batch by batch; prints the record, and ends with the exit code.

    `options` are those of the client's method, `rollout` those of `rolling_options`. Raises NotRunning for an empty
    selection, ConfigurationError if the record can't be written, or another rollout is at work on one of them.
    """
    given, place = settings(), place or LocalPlace()
    members, archive = place.members(), place.archive
    archive.check_free(members)
    health = Health(rollout.get("min_healthy") or 0.0, max_errors, allow_idle=bool(rollout.get("allow_idle")))
    with archive.new(
        members,
        method=method,
        options=options,
        rollout=rollout,
        health=asdict(health),
        timeout=given.timeout,
        command=command_line(sys.argv[1:]),
        operator=_operator(place),
    ) as record:
        # Somebody else may have begun at the same moment.
        try:
            archive.check_free(members, but=record.document["id"])
        except ConfigurationError:
            record.remove()
            raise
        _run(record, members, place)


def resume(id: str | None, place: Place | None = None) -> NoReturn:
    """Go on with a rollout that has not come to all of its instances; prints the record, ends with the exit code.

    Those of which nothing is done are asked. Where the outcome is unknown, it looks what serves there; raises
    ControlError if that does not tell either, ConfigurationError if there is no such rollout.
    """
    place = place or LocalPlace()
    archive = place.archive
    with archive.open(archive.load(id)) as record:
        # Read again: the one who ran it may have ended just now.
        record.document = archive.read(record.document["id"])
        members = [Member(**fields) for fields in record.document["targets"]]
        archive.check_free(members, but=record.document["id"])
        try:
            for member in members:
                if member.outcome == Outcome.UNKNOWN.value or (member.outcome is None and member.asked):
                    _find_out(member, record.document, place)
        finally:
            record.members = members
            record.save()
        for member in members:
            if member.outcome in AGAIN:
                member.outcome, member.asked = None, False
        record.document.update(ended=None, end=None, operator=_operator(place))
        _run(record, members, place)


def _run(record: Record, members: Sequence[Member], place: Place) -> NoReturn:
    given, document = settings(), record.document
    health = Health(**document["health"])
    timeout = document["timeout"] if given.timeout is None else given.timeout
    change = _change(document["method"], document["options"], health, timeout)

    def act(member: Member) -> Answer:
        if member.generation is None:
            return Answer(Outcome.UNREACHABLE, 1, member.problem or "it was not reached when the rollout began")
        try:
            client = place.client(member)
        except ControlError as error:
            return Answer(Outcome.UNREACHABLE, 1, error.message)
        with client:
            return ask(client, member, document["method"], change, health)

    rollout, left = document["rollout"], [member for member in members if member.outcome is None]
    plan = Plan(
        number_of(rollout["batch"], len(members), at_least=1),
        rollout["canary"] or 0,
        number_of(rollout["max_failures"], len(members)),
    )
    given.say(f"rollout {document['id']}: {f'{len(left)} instances' if left else 'nothing to go on with'}")
    Run(left, plan, rollout["pause"], act, record, given.say).complete()
    if given.json:
        print_json(document)
    elif not given.quiet:
        write(render(document, program=place.archive.program))
    raise click.exceptions.Exit(first_of(member.exit for member in members))


def _change(method: str, options: dict[str, Any], health: Health, timeout: float | None) -> Change:
    """Sends the command, with a limit of time for each instance."""
    limit: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    if method == "stop":
        return lambda client: client.stop(**options, **limit)
    watch: dict[str, Any] = {"confirm": health.seconds or None, "max_errors": health.max_errors}
    limit = limit or {"timeout": TARGET_TIMEOUT}
    if method == "restart":
        return lambda client: client.restart(**options, **watch, **limit)
    return lambda client: client.reload(**options, **watch, **limit)


def _find_out(member: Member, document: Document, place: Place) -> None:
    """Whether a command that was not answered has been done. Raises ControlError if the instance does not tell.

    A reload of the configuration alone leaves nothing to see: its outcome stays unknown.
    """
    method = document["method"]
    try:
        with place.client(member) as client:
            status = client.status()
    except NotRunning as error:
        if not place.has_ended(member):
            raise ControlError(f"the outcome of {member.described()} is still unknown: {error.message}") from None
        done = method == "stop"
        member.take(Answer(Outcome.DONE if done else Outcome.FAILED, 0 if done else 6, "it does not run any more"))
        return
    except ControlError as error:
        raise ControlError(f"the outcome of {member.described()} is still unknown: {error.message}") from None
    if status["state"] not in ("running", "draining"):
        raise ControlError(f"the outcome of {member.described()} is still unknown: it is {status['state']}")
    if document["options"].get("what") == "config":
        if member.outcome is None:
            unseen = "a reload of the configuration leaves nothing to see"
            member.take(Answer(Outcome.UNKNOWN, 1, unseen, now_of(status)))
        return
    replaced = (status["pid"], status["started_at"]) != (member.pid, member.started_at)
    done = not member.is_as_before(status) if method == "reload" and not replaced else replaced
    if not done:
        # Where somebody else has reloaded it, it is told so when its turn comes.
        member.outcome = Outcome.NOT_STARTED.value
        return
    failed = method == "reload" and replaced
    outcome = Outcome.FAILED if failed else Outcome.DONE
    member.take(Answer(outcome, 6 if failed else 0, "found when the rollout was resumed", now_of(status)))


def command_line(words: Sequence[str]) -> str:
    """The words of the command line, without users and passwords in the URLs of --nats."""
    shown: list[str] = []
    before = ""
    for word in words:
        option, separator, servers = word.partition("=")
        if before == "--nats":
            shown.append(_without_secrets(word))
        elif option == "--nats":
            shown.append(option + separator + _without_secrets(servers))
        else:
            shown.append(word)
        before = word
    return shlex.join(shown)


def _without_secrets(servers: str) -> str:
    return ",".join(without_secret(url) for url in servers.split(","))


def _operator(place: Place) -> dict[str, Any]:
    return {"uid": os.getuid(), "pid": os.getpid(), "host": socket.gethostname(), **place.operator()}
