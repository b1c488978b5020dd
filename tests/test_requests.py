"""The requests in flight, as a process tells of them, without an HTTP server."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import flask
import pytest
from flask import Flask
from werkzeug.routing import BaseConverter
from werkzeug.test import EnvironBuilder, run_wsgi_app

from flask_ctl.inspection import requests as module
from flask_ctl.inspection.bounds import that_fit
from flask_ctl.inspection.requests import oldest_request, requests_in_flight, together
from flask_ctl.protocol.framing import MAX_FRAME
from flask_ctl.protocol.jsonrpc import encode
from flask_ctl.servers.middleware import RequestCounter


class Word(BaseConverter):
    """A part of a URL that is an object in the app."""

    def to_python(self, value: str) -> Any:
        return SimpleNamespace(word=value)


class Lowered(BaseConverter):
    """A part of a URL in which case does not matter."""

    def to_python(self, value: str) -> str:
        return value.lower()


class Optional(BaseConverter):
    """A part of a URL that may be empty."""

    regex = "[^/]*"


class Site:
    """An app whose every request notes the answer to the question, asked while it is in flight."""

    def __init__(self, **asked: Any) -> None:
        self.asked = {"slower": 0.0, "full": True, **asked}
        self.told: list[dict[str, Any]] = []
        app = Flask("site")
        app.url_map.converters |= {"word": Word, "lowered": Lowered, "optional": Optional}
        for rule in RULES:
            app.add_url_rule(rule, rule, lambda **_: "done", methods=["GET", "POST"])
        app.after_request(self._note)
        self.requests = RequestCounter(app.wsgi_app)

    def _note(self, response: Any) -> Any:
        self.told += self.ask()
        return response

    def ask(self) -> list[dict[str, Any]]:
        (answer,) = requests_in_flight(self.requests, **self.asked)
        found: list[dict[str, Any]] = answer["requests"]
        return found

    def get(self, path: str, environ: dict[str, Any] | None = None, **builder: Any) -> dict[str, Any]:
        """What is told of the request while it is in flight."""
        environ = EnvironBuilder(path=path, **builder).get_environ() | (environ or {})
        run_wsgi_app(self.requests, environ)
        return self.told[-1]


RULES = [
    "/",
    "/items/<int:number>",
    "/reset/<token>/<user>",
    "/word/<word:secret>",
    "/keys/<int:key>",
    "/doors/<int:pin>.<user>/7",
    "/lowered/<lowered:token>",
    "/optional/<optional:token>/end",
    "/two/<token>/<secret>",
]

PATHS = {
    "/": ("/", "/"),
    "/items/7": ("/items/<int:number>", "/items/7"),
    "/reset/hunter2/bob": ("/reset/<token>/<user>", "/reset/***/bob"),
    "/keys/1234": ("/keys/<int:key>", "/keys/***"),
    "/keys/0071": ("/keys/<int:key>", "/keys/***"),
    "/keys/\u0667": ("/keys/<int:key>", "***"),
    "/doors/007.bob/7": ("/doors/<int:pin>.<user>/7", "/doors/***/***"),
    "/lowered/Hunter2": ("/lowered/<lowered:token>", "***"),
    "/lowered/hunter2": ("/lowered/<lowered:token>", "/lowered/***"),
    "/optional//end": ("/optional/<optional:token>/end", "/optional//end"),
    "/two/hunter/hunter2": ("/two/<token>/<secret>", "/two/***/***"),
    "/two/hunter2/hunter": ("/two/<token>/<secret>", "/two/***/***"),
    "/two/hunter2/hunter2": ("/two/<token>/<secret>", "/two/***/***"),
    "/word/hunter2": ("/word/<word:secret>", "***"),
    "/nowhere": (None, "/nowhere"),
    "/nowhere/token=hunter2": (None, "/nowhere/token=***"),
    "/caf\u00e9 \x1b[31m": (None, "/caf\u00e9%20%1B[31m"),
    "/" + "x" * 1000: (None, "/" + "x" * 199 + "\u2026"),
    f"/reset/{'x' * 1000}/bob": ("/reset/<token>/<user>", "***"),
}

QUERIES = {
    "": "",
    "a=1&b=": "a=1&b=",
    "a=1&token=hunter2&b=2": "a=1&token=***&b=2",
    "pass%77ord=hunter2": "pass%77ord=***",
    "a=1;api_key=hunter2;b=2": "a=1;api_key=***;b=2",
    "next=https://bob:hunter2@host/": "next=https://***@host/",
    "token": "token",
    "a=\x1b[31m": "a=%1B[31m",
    "a=" + "x" * 1000: "a=" + "x" * 198 + "\u2026",
}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_and_its_route_are_told_without_secrets(path: str) -> None:
    route, shown = PATHS[path]
    told = Site().get("/", {"PATH_INFO": path.encode().decode("latin-1")})
    assert (told["route"], told["path"]) == (route, shown)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_told_without_secrets(query: str) -> None:
    assert Site().get("/", {"QUERY_STRING": query})["query"] == QUERIES[query]


def test_the_client_is_what_the_server_or_the_app_takes_for_it_and_no_header() -> None:
    site = Site()
    assert site.get("/")["client"] is None
    headers = {"X-Forwarded-For": "1.2.3.4", "X-Request-ID": "7f3a"}
    told = site.get("/", {"REMOTE_ADDR": "127.0.0.1"}, headers=headers, method="POST")
    assert (told["client"], told["id"], told["method"]) == ("127.0.0.1", "7f3a", "POST")


def test_a_request_of_a_thread_names_it() -> None:
    site = Site()
    threading.Thread(target=lambda: site.get("/"), name="answering").start()
    for thread in threading.enumerate():
        if thread.name == "answering":
            thread.join()
    assert site.told[-1]["thread"] == "answering"
    assert site.told[-1]["thread_id"] not in (None, threading.get_native_id())
    assert site.told[-1]["greenlet"] is None


def test_an_observer_is_told_no_more_than_method_route_and_age() -> None:
    told = Site(full=False).get("/items/7")
    assert told.pop("age") >= 0
    assert told == {"method": "GET", "route": "/items/<int:number>"}


def test_requests_that_are_faster_are_left_out() -> None:
    site = Site(slower=60.0)
    with pytest.raises(IndexError):
        site.get("/")


@pytest.mark.parametrize(
    "environ",
    [{}, {"werkzeug.request": None}, {"werkzeug.request": object(), "REQUEST_METHOD": 5, "QUERY_STRING": None}],
)
def test_an_environ_of_any_kind_can_be_told(environ: dict[str, Any]) -> None:
    seen: list[Any] = []

    def app(_environ: Any, _start: Any) -> Iterable[bytes]:
        seen.extend(requests_in_flight(counter, slower=0, full=True))
        return []

    counter = RequestCounter(app)
    counter(environ, lambda *_: None)
    (told,) = seen[0]["requests"]
    assert (told["method"], told["route"], told["path"], told["query"]) == ("", None, "", "")


@pytest.mark.parametrize("status", [200, 500])
def test_while_a_response_is_streamed_its_route_is_told_and_the_secret_in_its_path_is_not(status: int) -> None:
    app = Flask("streams")
    app.add_url_rule("/sse/<token>", "sse", lambda token: (iter(["one", "two"]), status))
    counter = RequestCounter(app.wsgi_app)
    environ = EnvironBuilder(path="/sse/hunter2").get_environ()
    body: Any = counter(environ, lambda *_: None)
    chunks = iter(body)
    assert next(chunks) == b"one"
    assert environ["werkzeug.request"] is None, "as Flask leaves it"
    assert oldest_request(counter)[1] == {"method": "GET", "route": "/sse/<token>"}
    for full in (True, False):
        [answer] = requests_in_flight(counter, slower=0, full=full)
        [told] = answer["requests"]
        assert told["route"] == "/sse/<token>"
        assert told.get("path") == ("/sse/***" if full else None)
    body.close()


def test_the_request_object_of_a_response_is_let_go_when_it_has_been_closed() -> None:
    app = Flask("streams")
    seen: list[weakref.ref[Any]] = []

    @app.get("/")
    def stream() -> Any:
        seen.append(weakref.ref(flask.request._get_current_object()))  # type: ignore[attr-defined]
        return iter(["one"])

    counter = RequestCounter(app.wsgi_app)
    body: Any = counter(EnvironBuilder().get_environ(), lambda *_: None)
    assert list(body) == [b"one"]
    body.close()
    gc.collect()
    assert seen[0]() is None


def test_nothing_of_the_apps_code_is_run() -> None:
    class Request:
        @property
        def url_rule(self) -> Any:
            raise AssertionError("run")

        view_args = url_rule

    assert Site().get("/", {}) is not None
    counter = RequestCounter(lambda environ, start: [])
    body = counter({"werkzeug.request": Request()}, lambda *_: None)
    assert oldest_request(counter)[1] == {"method": "", "route": None}
    assert body is not None


def hanging(count: int, **environ: Any) -> RequestCounter:
    """A counter of so many requests, which are never closed."""
    counter = RequestCounter(lambda environ, start: [])
    bodies = [counter({"REQUEST_METHOD": "GET", **environ}, lambda *_: None) for _ in range(count)]
    counter.bodies = bodies  # type: ignore[attr-defined]
    return counter


@pytest.mark.parametrize("path", ["/", "/\u20ac" * 200])
def test_an_answer_is_bounded_and_tells_how_many_are_left_out(path: str) -> None:
    query = {"PATH_INFO": path.encode().decode("latin-1"), "QUERY_STRING": "\u00e9" * 300}
    counter = hanging(module.MAX_REQUESTS + 5, **query)
    (answer,) = requests_in_flight(counter, slower=0, full=True)
    ages = [request["age"] for request in answer["requests"]]
    assert ages == sorted(ages, reverse=True)
    assert len(ages) + answer["left_out"] == module.MAX_REQUESTS + 5
    assert len(encode(answer)) < MAX_FRAME
    merged = together([{"worker": pid, **answer} for pid in (1, 2, 3)])
    assert len(merged["requests"]) <= module.MAX_REQUESTS
    assert len(merged["requests"]) + merged["left_out"] == 3 * (module.MAX_REQUESTS + 5)
    assert len(encode(merged)) < MAX_FRAME


def test_no_request_is_described_after_the_first_that_does_not_fit() -> None:
    described = ({"number": number} for number in range(10))
    assert that_fit(described, 3 * len(encode({"number": 0})) + 3) == [{"number": number} for number in range(3)]
    assert next(described) == {"number": 4}


def test_answers_of_some_workers_become_one_the_oldest_first() -> None:
    answers = [
        {"worker": 1, "requests": [{"age": 3.0}, {"age": 1.0}], "left_out": 1},
        {"worker": 2, "requests": [{"age": 2.0}], "left_out": 0},
    ]
    assert together(answers) == {
        "requests": [{"worker": 1, "age": 3.0}, {"worker": 2, "age": 2.0}, {"worker": 1, "age": 1.0}],
        "left_out": 1,
    }
