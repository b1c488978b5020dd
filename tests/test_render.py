"""Results as text for people."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_ctl import CommandError, render_result
from flask_ctl.protocol.text import plural, render_error, seconds, size

properties = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

STATUS: dict[str, Any] = {
    "protocol": 1,
    "pid": 4242,
    "parent": None,
    "app": "hello",
    "cwd": "/srv/hello",
    "root_path": "/srv/hello",
    "state": "running",
    "generation": 1,
    "started_at": "2026-01-01T00:00:00Z",
    "reloaded_at": None,
    "uptime": 12.3,
    "server": {"name": "werkzeug", "version": "3.1.9", "listeners": ["http://127.0.0.1:5000"]},
    "requests": {"in_flight": 1, "oldest": 2.1, "total": 100, "errors": 0},
    "process": {"rss": 30000000, "cpu": 0.4, "threads": 5, "fds": 12},
    "versions": {"python": "3.11.7", "flask": "3.1.3"},
    "workers": [],
    "last_reload": None,
    "stopping": None,
}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0 s"),
        (0.04, "0.0 s"),
        (0.8, "0.8 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 0 s"),
        (60, "1 min 0 s"),
        (303.2, "5 min 3 s"),
        (3599.4, "59 min 59 s"),
        (3599.9, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d 0 h"),
        (273600, "3 d 4 h"),
        (86400 * 1000, "1000 d 0 h"),
    ],
)
def test_a_duration_is_written_as_people_do(value: float, text: str) -> None:
    assert seconds(value) == text


@properties
@given(st.floats(0, 10**9))
def test_no_duration_has_sixty_seconds(value: float) -> None:
    assert not seconds(value).startswith("60.")
    assert " 60 " not in seconds(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (30_000_000, "28.6 MiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**3, "1.0 GiB"),
        (5000 * 1024**3, "5000.0 GiB"),
    ],
)
def test_a_size_is_written_as_people_do(value: int, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 requests"), (1, "1 request"), (2, "2 requests")])
def test_one_is_singular(count: int, text: str) -> None:
    assert plural(count, "request") == text


def test_status_is_one_screen() -> None:
    assert render_result("status", STATUS) == (
        "hello      running, pid 4242, up 12.3 s, generation 1\n"
        "server     werkzeug 3.1.9 on http://127.0.0.1:5000\n"
        "requests   1 in flight (oldest 2.1 s), 100 in all, 0 errors\n"
        "process    28.6 MiB, 0.40 cores, 5 threads, 12 descriptors\n"
        "directory  /srv/hello\n"
        "versions   python 3.11.7, flask 3.1.3\n"
    )


STOPPING = {"mode": "graceful", "since": "12:00", "deadline": "12:01", "by": {"uid": 0}}
IDLE = {"in_flight": 0, "oldest": None, "total": 1, "errors": 1}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"parent": 4241}, "hello      running, pid 4242, under 4241, up 12.3 s, generation 1"),
        ({"requests": IDLE}, "requests   0 in flight, 1 in all, 1 error"),
        ({"server": {"name": "x", "version": "1", "listeners": []}}, "server     x 1 on an unknown address"),
        ({"server": {"name": "x", "version": "", "listeners": ["a", "b"]}}, "server     x on a, b"),
        ({"stopping": STOPPING}, "stopping   graceful since 12:00, until 12:01 at the latest"),
        (
            {"stopping": {**STOPPING, "waiting_for": ["worker", "mail"]}},
            "stopping   graceful since 12:00, until 12:01 at the latest, kept alive by worker, mail",
        ),
        ({"app": "a much longer name"}, "server              werkzeug 3.1.9 on http://127.0.0.1:5000"),
        ({"a later field": [1]}, "directory  /srv/hello"),
    ],
    ids=["parent", "idle", "no listeners", "no version", "stopping", "waiting", "a long name", "a later version"],
)
def test_status_shows_what_there_is_to_say(fields: dict[str, Any], line: str) -> None:
    assert line in render_result("status", {**STATUS, **fields}).splitlines()


def test_ping_says_who_answered() -> None:
    result = {"pong": True, "protocol": 1, "pid": 4242, "version": "0.1.0"}
    assert render_result("ping", result) == "pong from pid 4242, flask-ctl 0.1.0, protocol 1\n"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "pid 4242 stopped: 2 requests finished, in 0.8 s\n"),
        ({"drained": 1}, "pid 4242 stopped: 1 request finished, in 0.8 s\n"),
        ({"outcome": "forced", "cut": 3}, "pid 4242 stopped: 2 requests finished, 3 CUT, in 0.8 s\n"),
        ({"embedded": True}, "the server stopped: 2 requests finished, in 0.8 s\n"),
        ({"outcome": "killed", "drained": None, "cut": None}, "pid 4242 was killed after 0.8 s\n"),
        ({"outcome": "died", "drained": None, "cut": None}, "pid 4242 died before the stop was done\n"),
    ],
    ids=["drained", "one", "forced", "embedded", "killed", "died"],
)
def test_stop_says_how_it_ended_and_what_was_cut(fields: dict[str, Any], text: str) -> None:
    result = {"outcome": "drained", "drained": 2, "cut": 0, "elapsed": 0.8, "pid": 4242}
    assert render_result("stop", {**result, **fields}) == text


def test_commands_are_a_table_of_names_roles_scopes_and_summaries() -> None:
    commands = {
        "ping": {"summary": "Answer.", "role": "observe", "scope": "one"},
        "clear_cache": {"summary": "", "role": "operate", "scope": "each"},
    }
    text = "ping         observe  one   Answer.\nclear_cache  operate  each\n"
    assert render_result("commands", commands) == text
    assert render_result("commands", {}) == ""


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, ""),
        ("", ""),
        ("text", "text\n"),
        ("text\n", "text\n"),
        ("a\nb", "a\nb\n"),
        (3, "3\n"),
        (True, "true\n"),
        ({"ä": [1]}, '{\n  "ä": [\n    1\n  ]\n}\n'),
        ([], "[]\n"),
    ],
    ids=repr,
)
def test_any_other_result_is_its_text_or_its_json(result: Any, text: str) -> None:
    assert render_result("custom", result) == text


def test_an_error_is_one_line() -> None:
    assert render_error(CommandError("no such key")) == "error: no such key\n"
