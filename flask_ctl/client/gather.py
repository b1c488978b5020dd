"""One question to many instances over NATS: one message for each app, and one subscription for all answers."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from ..errors import AccessDenied, ControlError, NotRunning, RemoteProtocolError, TimedOut, error_from_object
from ..fleet.inbox import Kind, Letter, Request
from ..fleet.roster import FleetInstance
from ..fleet.subjects import ALL
from ..protocol.jsonrpc import Response, encode, parse_reply, request_object
from .link import Link

Key = tuple[str, str]
"""An app, and the name of its instance."""

Answers = dict[Key, Union[Any, ControlError]]
"""The result of each instance, or why there is none."""

BROADCAST_SHARE = 0.5
"""The share of an app's instances from which on all of them are asked at once, and each singly below it."""


def gather(
    link: Link,
    method: str,
    params: Mapping[str, Any],
    asked: Sequence[FleetInstance],
    everybody: Iterable[FleetInstance],
    timeout: float,
) -> Answers:
    """The answers to a question of the role observe, once all have come, or the time has passed.

    `everybody` are all instances of which something is known. Raises AccessDenied where nothing at all is permitted.
    """
    letters: queue.SimpleQueue[Letter] = queue.SimpleQueue()
    message = encode(request_object(method, dict(params), id=1))
    left = {one.key: one for one in asked}
    # Which instances, or of which app, answer at a subject.
    replies: dict[str, tuple[str, str]] = {}
    denied: set[str] = set()
    deadline = time.monotonic() + timeout
    try:
        for app, instance in _addresses(asked, everybody):
            reply = link.send(Request("observe", app, instance, message), letters.put)
            replies[reply] = app, instance
        answers: Answers = {}
        while left and (rest := deadline - time.monotonic()) > 0:
            try:
                letter = letters.get(timeout=rest)
            except queue.Empty:
                break
            app, instance = replies[letter.reply]
            if letter.kind is Kind.DENIED:
                denied.add(letter.reply)
                if denied == replies.keys():
                    raise AccessDenied(letter.message)
            if letter.kind in (Kind.DENIED, Kind.ABSENT):
                for key in [key for key in left if key[0] == app and instance in (ALL, key[1])]:
                    name = left.pop(key).instance
                    answers[key] = (
                        AccessDenied(letter.message)
                        if letter.kind is Kind.DENIED
                        else NotRunning(f"nobody answers for {name} at the NATS server")
                    )
            elif letter.kind is Kind.ANSWER and (app, letter.instance) in left:
                answer = _result(letter.data, method)
                if answer is not None:
                    left.pop((app, letter.instance))
                    answers[app, letter.instance] = answer
    finally:
        for reply in replies:
            link.soon(link.inbox.forget, reply)
    for key in left:
        answers[key] = TimedOut(f"no answer to {method} within {timeout:g} s", {"can_be_killed": False})
    return answers


def _addresses(asked: Sequence[FleetInstance], everybody: Iterable[FleetInstance]) -> Iterable[Key]:
    """Apps, each with ALL, or with one of its instances."""
    totals: dict[str, int] = {}
    for one in everybody:
        totals[one.app] = totals.get(one.app, 0) + (not one.lost)
    chosen: dict[str, list[str]] = {}
    for one in asked:
        chosen.setdefault(one.app, []).append(one.instance)
    for app, instances in chosen.items():
        if len(instances) >= BROADCAST_SHARE * totals.get(app, 0):
            yield app, ALL
        else:
            yield from ((app, instance) for instance in instances)


def _result(data: bytes, method: str) -> Any:
    """What an instance has answered; None for something else, as a notification."""
    try:
        message = parse_reply(data)
    except RemoteProtocolError as error:
        return error
    if not isinstance(message, Response):
        return None
    if message.error is not None:
        return error_from_object(*message.error)
    return message.result if message.result is not None else RemoteProtocolError(f"the answer to {method} is empty")
