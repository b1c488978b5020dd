"""The requests in flight, as an operator sees them.

The environ belongs to the app, which may change it at any moment: everything is copied out of it at once. None of the
app's own code is run: attributes are taken out of the objects' dictionaries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ..dispatch.redaction import MASK, cut, is_secret, masked_text
from ..protocol.framing import MAX_FRAME
from ..servers.middleware import Environ, InFlight, RequestCounter
from ..system import native
from ..system.platform import LINUX
from .bounds import that_fit

MAX_REQUESTS = 1000
"""Requests in one answer; the others are counted."""

MAX_OLDEST = 50
"""Requests in flight of which a stop or a reload is told before it cuts them."""

MAX_METHOD = 20
"""Characters of a method: clients may send any word."""

MAX_URL = 500
"""Characters of a path, and of a query, that are looked at; fewer are shown."""

MAX_BYTES = MAX_FRAME * 7 // 8
"""Bytes of JSON in one answer, so that it fits into one message."""


def requests_in_flight(counter: RequestCounter, *, slower: float, full: bool) -> list[dict[str, Any]]:
    """One object: the ``requests`` of at least `slower` seconds, the oldest first, and the number ``left_out``.

    Each has ``method``, ``route`` and ``age``; with `full` also what may hold personal data.
    """
    found = [request for request in counter.requests_in_flight() if request.age >= slower]
    threads = Threads() if full else None
    described = (
        described_request(request) if threads is None else full_description(request, threads)
        for request in found[:MAX_REQUESTS]
    )
    requests = that_fit(described, MAX_BYTES)
    return [{"requests": requests, "left_out": len(found) - len(requests)}]


def together(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answers of some processes, each with its ``worker``, as one of the same form."""
    found = [{"worker": answer["worker"], **request} for answer in answers for request in answer["requests"]]
    found.sort(key=lambda request: -request["age"])
    requests = that_fit(found[:MAX_REQUESTS], MAX_BYTES)
    left_out = sum(answer["left_out"] for answer in answers) + len(found) - len(requests)
    return {"requests": requests, "left_out": left_out}


def oldest_request(requests: RequestCounter) -> tuple[float | None, dict[str, Any] | None]:
    """The age of the oldest request in flight, and its method and route."""
    oldest = requests.oldest()
    return (None, None) if oldest is None else (oldest.age, _kind_of(oldest))


def oldest_of(counters: Iterable[RequestCounter]) -> dict[str, Any] | None:
    """The oldest request of some apps, as it is told to observers; None without one."""
    found = [request for request in (counter.oldest() for counter in counters) if request is not None]
    return described_request(max(found, key=lambda request: request.age)) if found else None


def oldest_requests(counter: RequestCounter) -> list[dict[str, Any]]:
    """The oldest ones, as they are told to observers, each with its ``number`` in this process."""
    found = counter.requests_in_flight()[:MAX_OLDEST]
    return [{"number": request.number, **described_request(request)} for request in found]


def described_request(request: InFlight) -> dict[str, Any]:
    """What every observer may know of a request. The route is None where Flask has found none, or not yet."""
    return {**_kind_of(request), "age": round(request.age, 3)}


def full_description(request: InFlight, threads: Threads) -> dict[str, Any]:
    """All of it, without secrets. ``client`` is the server's or the app's own word, and no header of the client's."""
    environ = request.environ
    return {
        **described_request(request),
        "path": _path_of(request),
        "query": _query_of(environ),
        "client": _visible(_text_of(environ, "REMOTE_ADDR")) or None,
        "id": id_of(request),
        **threads.describe(request.served_by),
    }


def id_of(request: InFlight) -> str | None:
    """The id that the client, or a proxy, has given it."""
    return _visible(_text_of(request.environ, "HTTP_X_REQUEST_ID")) or None


class Threads:
    """The names of this process's threads, and of threads that are greenlets, at one moment."""

    def __init__(self) -> None:
        self._threads: dict[int, Any] = {}
        for module in (native.threading, sys.modules["threading"]):
            self._threads |= module._active.copy()

    def name_of(self, served_by: Any) -> str | None:
        """The name of a thread, by its identifier, or of one that is a greenlet."""
        thread = self._threads.get(served_by if isinstance(served_by, int) else id(served_by))
        return None if thread is None else cut(thread.name)

    def describe(self, served_by: Any) -> dict[str, Any]:
        """``thread``, ``thread_id`` as the system has it, and ``greenlet``, each None where it is not known."""
        is_thread = isinstance(served_by, int)
        thread = self._threads.get(served_by if is_thread else id(served_by))
        native_id = thread.native_id if is_thread and thread is not None else None
        return {
            "thread": self.name_of(served_by),
            # After a fork without Python, as uWSGI's, it is still that of the parent's thread.
            "thread_id": native_id if not LINUX or os.path.exists(f"/proc/self/task/{native_id}") else None,
            "greenlet": None if is_thread or served_by is None else hex(id(served_by)),
        }


def _kind_of(request: InFlight) -> dict[str, Any]:
    rule = _attribute(_attribute(request.request, "url_rule"), "rule")
    method = _visible(_text_of(request.environ, "REQUEST_METHOD"))[:MAX_METHOD]
    return {"method": method, "route": cut(rule) if isinstance(rule, str) else None}


def _path_of(request: InFlight) -> str:
    """The path without the parts that are secrets by their names in the route."""
    path = _decoded(_text_of(request.environ, "SCRIPT_NAME") + _text_of(request.environ, "PATH_INFO"))
    arguments = _attribute(request.request, "view_args")
    arguments = arguments.copy() if type(arguments) is dict else {}
    secrets = [value for name, value in arguments.items() if is_secret(name)]
    if secrets and len(path) > MAX_URL:
        return MASK
    # How a value of another type, or one that has been changed, is in the path, only the app's own converter knows.
    if any(type(secret) not in (str, int) or str(secret) not in path for secret in secrets):
        return MASK
    # The longest first: a shorter one may be a part of it.
    for secret in sorted(secrets, key=lambda secret: -len(str(secret))):
        if type(secret) is int:
            # With its leading zeros.
            path = "/".join(MASK if str(secret) in segment else segment for segment in path.split("/"))
        elif secret:
            path = path.replace(secret, MASK)
    return _visible(masked_text(path[:MAX_URL]))


def _query_of(environ: Environ) -> str:
    """The query, still encoded, without the values of secrets, whose names may be encoded."""
    # Flask has imported it. A hub, which does not need it, has not.
    from urllib.parse import unquote_plus

    query = _text_of(environ, "QUERY_STRING")[:MAX_URL]
    pairs = [pair.partition("=") for pair in query.split("&")]
    shown = [
        name + equals + (MASK if value and is_secret(unquote_plus(name)) else value) for name, equals, value in pairs
    ]
    return _visible(masked_text("&".join(shown)))


def _attribute(value: Any, name: str) -> Any:
    attributes = getattr(value, "__dict__", None)
    return attributes.get(name) if type(attributes) is dict else None


def _text_of(environ: Environ, name: str) -> str:
    value = environ.get(name)
    return value if type(value) is str else ""


def _decoded(text: str) -> str:
    """The text of a WSGI string, each of whose characters is a byte (PEP 3333)."""
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


def _visible(text: str) -> str:
    """The beginning of a text; spaces, and what a terminal might take for a command, are encoded as in a URL."""
    return "".join(char if char.isprintable() and char != " " else _encoded(char) for char in cut(text))


def _encoded(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "replace"))
