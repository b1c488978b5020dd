"""Beginning and resuming rollouts of instances of this machine."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import click

from flask_ctl import ConfigurationError, ControlError, NotRunning

from ..many import ask_each, first_of
from ..output import print_json, write
from ..selection import Target, targets
from ..settings import Settings, settings
from .course import Outcome, Plan, number_of
from .member import QUESTION_TIMEOUT, Answer, Change, Client, Health, Member, ask, identity
from .record import Document, Record, load, others_at_work
from .run import Run
from .text import render

TARGET_TIMEOUT = 300.0
"""Seconds for one instance without --timeout: one that hangs does not hold up the rollout for ever."""

AGAIN = (Outcome.NOT_STARTED.value, Outcome.REFUSED.value, Outcome.UNREACHABLE.value)
"""Outcomes after which a resumed rollout asks an instance: nothing has been done there."""


def begin(method: str, options: dict[str, Any], rollout: dict[str, Any], *, max_errors: float = 0.0) -> NoReturn:
    """Have the selected instances do it, batch by batch; prints the record, and ends with the exit code.

    `options` are those of the client's method, `rollout` those of `rolling_options`. Raises NotRunning for an empty
    selection, ConfigurationError if the record can't be written, or another rollout is at work on one of them.
    """
    given = settings()
    if not given.selects_many and given.on is None:
        raise click.UsageError("--rolling is for several instances: select them by --name, --dir, --all or --socket")
    chosen: dict[str, Target] = {}
    if given.on is not None:
        from ..remote.instances import members_on

        members = members_on(given)
    else:
        chosen = {target.socket: target for target in targets(given, whole_server=True)}
        members = _frozen(list(chosen.values()))
    _check_free(members)
    health = Health(rollout.get("min_healthy") or 0.0, max_errors, allow_idle=bool(rollout.get("allow_idle")))
    with Record.new(
        method=method,
        options=options,
        rollout=rollout,
        health=asdict(health),
        timeout=given.timeout,
        command=shlex.join(sys.argv[1:]),
        operator=_operator(),
        members=members,
    ) as record:
        # Somebody else may have begun at the same moment.
        try:
            _check_free(members, but=record.document["id"])
        except ConfigurationError:
            record.remove()
            raise
        _run(record, members, chosen)


def resume(id: str | None) -> NoReturn:
    """Go on with a rollout that has not come to all of its instances; prints the record, ends with the exit code.

    Those of which nothing is done are asked. Where the outcome is unknown, it looks what serves there; raises
    ControlError if that does not tell either, ConfigurationError if there is no such rollout.
    """
    with Record(load(id)) as record:
        # Read again: the one who ran it may have ended just now.
        record.document = load(record.document["id"])
        members = [Member(**fields) for fields in record.document["targets"]]
        _check_free(members, but=record.document["id"])
        try:
            for member in members:
                if member.outcome == Outcome.UNKNOWN.value or (member.outcome is None and member.asked):
                    _find_out(member, record.document)
        finally:
            record.members = members
            record.save()
        for member in members:
            if member.outcome in AGAIN:
                member.outcome, member.asked = None, False
        record.document.update(ended=None, end=None, operator=_operator())
        _run(record, members, {})


def _run(record: Record, members: Sequence[Member], chosen: Mapping[str, Target]) -> NoReturn:
    given, document = settings(), record.document
    health = Health(**document["health"])
    timeout = document["timeout"] if given.timeout is None else given.timeout
    change = _change(document["method"], document["options"], health, timeout)

    def act(member: Member) -> Answer:
        if member.generation is None:
            return Answer(Outcome.UNREACHABLE, 1, member.problem or "it was not reached when the rollout began")
        with _client(member, given, chosen.get(member.socket)) as client:
            return ask(client, member, document["method"], change, health)

    rollout, left = document["rollout"], [member for member in members if member.outcome is None]
    plan = Plan(
        number_of(rollout["batch"], len(members), at_least=1),
        rollout["canary"] or 0,
        number_of(rollout["max_failures"], len(members)),
    )
    given.say(f"rollout {document['id']}: {len(left)} instances")
    Run(left, plan, rollout["pause"], act, record, given.say).complete()
    if given.json:
        print_json(document)
    elif not given.quiet:
        write(render(document))
    raise click.exceptions.Exit(first_of(member.exit for member in members))


def _client(member: Member, given: Settings, target: Target | None = None) -> Client:
    """A client of it; `target` is what was selected on this machine. Also in a thread without a click context."""
    if member.host is not None:
        from ..remote.client import RemoteClient
        from ..remote.ssh import Host

        return RemoteClient(Host(member.host, member.program), member.socket)
    return (target or Target(member.socket, None, member.name, member.pid)).client(given)


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


def _frozen(chosen: Sequence[Target]) -> list[Member]:
    """The members of a rollout of these; those that have not answered at once are asked again."""
    statuses = {target.socket: target.instance.status for target in chosen if target.instance is not None}
    silent = [target for target in chosen if statuses.get(target.socket) is None]
    problems = {}
    for target, answer in zip(silent, ask_each(lambda client: client.status(timeout=QUESTION_TIMEOUT), silent)):
        statuses[target.socket] = answer.result
        problems[target.socket] = "" if answer.error is None else answer.error.message
    return [_member(target, statuses[target.socket], problems.get(target.socket, "")) for target in chosen]


def _member(target: Target, status: dict[str, Any] | None, problem: str) -> Member:
    if status is None:
        return Member(target.name, target.socket, target.pid, None, None, problem=problem)
    return Member(target.name, target.socket, *identity(status))


def _check_free(members: Sequence[Member], but: str = "") -> None:
    """Raises ConfigurationError if a rollout is at work on one of these."""
    ours = {(member.host, member.socket) for member in members}
    for document in others_at_work():
        both = ours & {(target["host"], target["socket"]) for target in document["targets"]}
        if both and document["id"] != but:
            operator = document["operator"]
            raise ConfigurationError(
                f"the rollout {document['id']} (pid {operator['pid']}, begun {document['began']}) is at work on"
                f" {len(both)} of these instances; flask-ctl rollout status {document['id']} shows how far it is"
            )


def _find_out(member: Member, document: Document) -> None:
    """Whether a command that was not answered has been done. Raises ControlError if the instance does not tell.

    A reload of the configuration alone leaves nothing to see: its outcome stays unknown.
    """
    method = document["method"]
    try:
        with _client(member, settings()) as client:
            status = client.status()
    except NotRunning:
        done = method == "stop"
        member.take(Answer(Outcome.DONE if done else Outcome.FAILED, 0 if done else 6, "it does not run any more"))
        return
    except ControlError as error:
        raise ControlError(f"the outcome of {member.described()} is still unknown: {error.message}") from None
    if status["state"] not in ("running", "draining"):
        raise ControlError(f"the outcome of {member.described()} is still unknown: it is {status['state']}")
    if document["options"].get("what") == "config":
        return
    replaced = (status["pid"], status["started_at"]) != (member.pid, member.started_at)
    done = not member.is_as_before(status) if method == "reload" and not replaced else replaced
    if not done:
        # Where somebody else has reloaded it, it is told so when its turn comes.
        member.outcome = Outcome.NOT_STARTED.value
        return
    failed = method == "reload" and replaced
    now = {name: status[name] for name in ("pid", "generation", "state")}
    outcome = Outcome.FAILED if failed else Outcome.DONE
    member.take(Answer(outcome, 6 if failed else 0, "found when the rollout was resumed", now))


def _operator() -> dict[str, Any]:
    return {"uid": os.getuid(), "pid": os.getpid(), "host": socket.gethostname()}
