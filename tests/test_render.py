"""Results as text for people."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_ctl import CommandError, render_for_terminal, render_message, render_result
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
    "requests": {
        "in_flight": 1,
        "oldest": 2.1,
        "oldest_request": {"method": "GET", "route": "/slow/<name>"},
        "total": 100,
        "errors": 0,
    },
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
        "requests   1 in flight (oldest 2.1 s: GET /slow/<name>), 100 in all, 0 errors\n"
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
        (
            {"outcome": "forced", "cut": 9, "cut_requests": [{"method": "GET", "route": None, "age": 2.0}] * 8},
            "pid 4242 stopped: 2 requests finished, 9 CUT ("
            + "GET (no route) after 2.0 s, " * 5
            + "4 more), in 0.8 s\n",
        ),
        ({"embedded": True}, "the server stopped: 2 requests finished, in 0.8 s\n"),
        ({"outcome": "killed", "drained": None, "cut": None}, "pid 4242 was killed after 0.8 s\n"),
        ({"outcome": "died", "drained": None, "cut": None}, "pid 4242 died before the stop was done\n"),
        (
            {"outcome": "stopped", "drained": None, "cut": None},
            "pid 4242 has ended before it told what became of its requests\n",
        ),
    ],
    ids=["drained", "one", "forced", "named", "embedded", "killed", "died", "stopped"],
)
def test_stop_says_how_it_ended_and_what_was_cut(fields: dict[str, Any], text: str) -> None:
    result = {"outcome": "drained", "drained": 2, "cut": 0, "elapsed": 0.8, "pid": 4242}
    assert render_result("stop", {**result, **fields}) == text


SHOP = {"kind": "systemd", "unit": "shop.service", "restart": "always"}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"supervisor": None, "starts_again": False}, ""),
        ({"supervisor": {"kind": "reloader", "restart": "no"}, "starts_again": False}, ""),
        ({"supervisor": {"kind": "container", "restart": "unknown"}}, "container may start it again\n"),
        (
            {"supervisor": {**SHOP, "restart": "unknown"}},
            "systemd shop.service may start it again; stop --for-good prevents that\n",
        ),
        (
            {"supervisor": SHOP, "starts_again": True},
            "systemd shop.service starts it again (restart policy: always); stop --for-good prevents that\n",
        ),
        (
            {"supervisor": {**SHOP, "restart": "no"}, "starts_again": False},
            "systemd shop.service does not start it again (restart policy: no)\n",
        ),
        (
            {"supervisor": SHOP, "starts_again": True, "activated": ["http"]},
            "systemd starts it again at the next connection to its sockets: http; stop --for-good prevents that\n",
        ),
        (
            {"supervisor": SHOP, "starts_again": False, "for_good": True, "activated": ["http"]},
            "systemd shop.service does not start it again: it was told to stop it\n",
        ),
    ],
    ids=["none", "the reloader", "a container", "unknown", "always", "no", "activated", "for good"],
)
def test_stop_says_whether_the_server_is_started_again(fields: dict[str, Any], line: str) -> None:
    result = {"outcome": "drained", "drained": 2, "cut": 0, "elapsed": 0.8, "pid": 4242}
    assert render_result("stop", {**result, **fields}) == f"pid 4242 stopped: 2 requests finished, in 0.8 s\n{line}"


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


# On a terminal

NOW = datetime(2026, 1, 1, 3, 0, tzinfo=timezone.utc)
WORKER = {
    "pid": 4243, "state": "running", "generation": 2, "in_flight": 1, "oldest": 2.1, "total": 100, "errors": 3,
    "rss": 30000000, "last_seen": 0.1,
}  # fmt: skip
BUSY = {
    **STATUS,
    "uptime": 10800.0,
    "workers": [WORKER, {**WORKER, "pid": 4244, "in_flight": 0, "oldest": None, "rss": None}],
    "last_reload": {"ok": False, "at": "2026-01-01T02:57:59.123Z", "elapsed": 0.4, "error": "the new code was refused"},
    "stopping": {
        "mode": "graceful", "since": "2026-01-01T02:59:48.000Z", "deadline": "2026-01-01T03:00:18.500Z",
        "waiting_for": ["mail"],
    },
}  # fmt: skip


def test_a_narrow_terminal_wraps_lines_and_leaves_out_the_least_important_columns() -> None:
    assert render_for_terminal("status", BUSY, 40, NOW) == (
        "hello      running, pid 4242, up\n"
        "           3 h 0 min, generation 1\n"
        "server     werkzeug 3.1.9 on\n"
        "           http://127.0.0.1:5000\n"
        "requests   1 in flight (oldest 2.1 s:\n"
        "           GET /slow/<name>), 100 in\n"
        "           all, 0 errors\n"
        "process    28.6 MiB, 0.40 cores,\n"
        "           5 threads, 12 descriptors\n"
        "directory  /srv/hello\n"
        "versions   python 3.11.7, flask 3.1.3\n"
        "reloaded   2 min ago FAILED: the new\n"
        "           code was refused\n"
        "stopping   graceful for 12 s, for 18 s\n"
        "           more at the latest, kept\n"
        "           alive by mail\n"
        "\n"
        "worker  state    in flight  oldest\n"
        "  4243  running          1   2.1 s\n"
        "  4244  running          0\n"
    )


def test_a_wide_terminal_shows_everything_in_few_lines() -> None:
    assert render_for_terminal("status", BUSY, 200, NOW).splitlines()[6:] == [
        "reloaded   2 min ago FAILED: the new code was refused",
        "stopping   graceful for 12 s, for 18 s more at the latest, kept alive by mail",
        "",
        "worker  state    in flight  oldest  errors  generation  requests    memory",
        "  4243  running          1   2.1 s       3           2       100  28.6 MiB",
        "  4244  running          0               3           2       100",
    ]


@properties
@given(width=st.integers(1, 300))
def test_no_line_is_wider_than_the_terminal_and_no_word_is_cut(width: int) -> None:
    shown = render_for_terminal("status", BUSY, width, NOW)
    words = shown.split()
    assert all(len(line) <= width or len(line.split()) <= 4 for line in shown.splitlines())
    assert {"running,", "http://127.0.0.1:5000", "/srv/hello", "mail", "4244"} <= set(words)


@pytest.mark.parametrize(
    ("ago", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86400 * 3 + 5, "3 d")],
)
def test_a_time_on_a_terminal_is_relative_in_its_largest_unit(ago: float, text: str) -> None:
    at = (NOW - timedelta(seconds=ago)).isoformat()
    reloaded = {**BUSY, "last_reload": {"ok": True, "at": at, "elapsed": 0.4}}
    assert f"reloaded   {text} ago in 0.4 s\n" in render_for_terminal("status", reloaded, 80, NOW)


@pytest.mark.parametrize("skew", [-6, 6])
def test_a_time_by_another_clock_is_shown_as_it_came(skew: int) -> None:
    shown = render_for_terminal("status", BUSY, 200, NOW + timedelta(seconds=skew))
    assert "reloaded   2026-01-01T02:57:59.123Z FAILED" in shown


def test_a_long_name_of_an_app_has_a_line_of_its_own() -> None:
    name = "a name that is longer than a third"
    shown = render_for_terminal("status", {**STATUS, "app": name}, 40, NOW).splitlines()
    assert shown[:2] == [name, "           running, pid 4242, up 12.3 s,"]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (
            80,
            ["command      role     scope  summary", "clear_cache  operate  each   Remove the entries that begin so."],
        ),
        (50, ["command      role     summary", "clear_cache  operate  Remove the entries that", f"{'':22}begin so."]),
        (40, ["command      summary", "clear_cache  Remove the entries that", "             begin so."]),
        (30, ["command", "  summary", "clear_cache", "  Remove the entries that", "  begin so."]),
    ],
)
def test_a_table_of_commands_leaves_out_the_scope_first(width: int, lines: list[str]) -> None:
    command = {"summary": "Remove the entries that begin so.", "role": "operate", "scope": "each"}
    assert render_for_terminal("commands", {"clear_cache": command}, width, NOW).splitlines() == lines
    assert render_for_terminal("commands", {}, width, NOW) == ""


def test_a_result_of_a_command_of_the_app_is_not_wrapped() -> None:
    assert render_for_terminal("custom", "word " * 30, 40, NOW) == "word " * 30 + "\n"


REQUEST = {"method": "GET", "route": "/slow/<name>", "age": 12.3, "worker": 4242}
INSPECTED = {
    **REQUEST,
    "path": "/slow/" + "a" * 90, "query": "token=***", "client": "127.0.0.1", "id": "7f3a", "thread": "Thread-1",
}  # fmt: skip
UNROUTED = {**INSPECTED, "age": 700, "method": "POST", "route": None, "path": "/x", "query": ""}
ANSWER = {"requests": [INSPECTED, UNROUTED], "left_out": 0, "unanswered": []}


def test_requests_are_a_table_in_a_pipe() -> None:
    assert render_result("requests", {**ANSWER, "requests": [REQUEST, {**REQUEST, "route": None}]}) == (
        "   age  method  route         worker\n"
        "12.3 s  GET     /slow/<name>    4242\n"
        "12.3 s  GET     (no route)      4242\n"
    )
    shown = render_result("requests", ANSWER).splitlines()
    assert shown[0].split() == ["age", "method", "route", "worker", "client", "id", "thread", "path"]
    assert shown[1].endswith(f"4242  127.0.0.1  7f3a  Thread-1  /slow/{'a' * 90}?token=***")


def test_requests_that_are_not_shown_are_counted_and_silent_workers_named() -> None:
    silent = {"worker": 4243, "error": "it does not answer"}
    assert render_result("requests", {**ANSWER, "requests": []}) == "no request in flight\n"
    assert render_result("requests", {"requests": [], "left_out": 2, "unanswered": [silent]}) == (
        "… 2 more requests\npid 4243 did not answer: it does not answer\n"
    )


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (40, ["age", "method", "route"]),
        (80, ["age", "method", "route", "worker", "id", "path"]),
        (200, ["age", "method", "route", "worker", "client", "id", "thread", "path"]),
    ],
)
def test_a_table_of_requests_fits_the_terminal(width: int, columns: list[str]) -> None:
    lines = render_for_terminal("requests", ANSWER, width, NOW).splitlines()
    assert lines[0].split() == columns
    assert "/slow/<name>" in lines[1]
    assert max(map(len, lines)) <= width


FRAMES = [{"file": "/srv/a.py", "line": number, "function": "pay", "source": None} for number in (1, 2, 3)]
STACK = {
    "worker": 7,
    "thread": "waitress-0",
    "thread_id": 9,
    "greenlet": None,
    "request": {"method": "GET", "path": "/pay", "age": 1.26},
    "frames": FRAMES,
    "left_out": None,
    "note": "",
}
HEADLINES: dict[str, tuple[dict[str, Any], str]] = {
    "a thread": ({}, "pid 7, thread waitress-0 (9): GET /pay, 1.3 s"),
    "an idle thread": ({"request": None}, "pid 7, thread waitress-0 (9)"),
    "without a name": ({"thread": None, "thread_id": None}, "pid 7, a thread without a name: GET /pay, 1.3 s"),
    "a greenlet": (
        {"thread": None, "thread_id": None, "greenlet": "0x7f"},
        "pid 7, greenlet 0x7f: GET /pay, 1.3 s",
    ),
    "a thread that has ended": ({"note": "its thread has ended"}, "GET /pay, 1.3 s, its thread has ended"),
    "a name with a command for a terminal": ({"thread": "a\x1b[2J"}, "pid 7, thread a\\x1b[2J (9)"),
}


def rendered(stack: dict[str, Any], **more: Any) -> list[str]:
    result = {"stacks": [stack], "left_out": 0, "notes": [], "unanswered": [], **more}
    return render_result("stacks", result).splitlines()


@pytest.mark.parametrize(("changes", "headline"), HEADLINES.values(), ids=HEADLINES)
def test_a_stack_says_whose_it_is(changes: dict[str, Any], headline: str) -> None:
    assert headline in rendered({**STACK, **changes})[0]


def test_what_is_left_out_of_stacks_is_said() -> None:
    lines = rendered(
        {**STACK, "left_out": {"after": 2, "frames": 40}},
        left_out=3,
        notes=["pid 7: a note"],
        unanswered=[{"worker": 8, "error": "late"}],
    )
    assert lines[1:] == [
        '  File "/srv/a.py", line 1, in pay',
        '  File "/srv/a.py", line 2, in pay',
        "  … 40 frames left out …",
        '  File "/srv/a.py", line 3, in pay',
        "",
        "3 stacks left out; ask one worker by --worker PID",
        "",
        "pid 7: a note",
        "",
        "pid 8 did not answer: late",
    ]


def test_an_exception_can_not_command_a_terminal() -> None:
    entry = {
        "worker": 7, "count": 2, "type": "ValueError", "message": "a\x1b[2Jb", "first": "1", "last": "2",
        "origin": "thread", "route": None, "method": None, "where": None,
        "traceback": "Traceback:\nValueError: a\x1b[2Jb\n",
    }  # fmt: skip
    assert render_result("exceptions", {"exceptions": [entry], "unanswered": []}).splitlines() == [
        "2 times in a thread, pid 7, at 2, the first at 1",
        "ValueError: a\\x1b[2Jb",
        "  Traceback:",
        "  ValueError: a\\x1b[2Jb",
    ]


# Items of streams

RECORD = {"time": "2026-01-31T12:00:00.000Z", "level": "INFO", "logger": "shop", "message": "sold"}

ITEMS = {
    "a record": ("logs", RECORD, "2026-01-31T12:00:00.000Z INFO shop: sold"),
    "of a worker": ("logs", {**RECORD, "worker": 7}, "2026-01-31T12:00:00.000Z [7] INFO shop: sold"),
    "a second line that looks like a record": (
        "logs",
        {**RECORD, "message": "a\n2026-01-31T12:00:00.000Z ERROR shop: forged"},
        "2026-01-31T12:00:00.000Z INFO shop: a\n    2026-01-31T12:00:00.000Z ERROR shop: forged",
    ),
    "a command for a terminal": (
        "logs",
        {**RECORD, "message": "\x1b[2Ja"},
        "2026-01-31T12:00:00.000Z INFO shop: \\x1b[2Ja",
    ),
    "a traceback": (
        "logs",
        {**RECORD, "traceback": "Traceback:\n  line"},
        "2026-01-31T12:00:00.000Z INFO shop: sold\n    Traceback:\n      line",
    ),
    "an event": (
        "events",
        {"time": "now", "event": "stopping", "mode": "fast", "by": {"uid": 0, "pid": None}, "worker": 7},
        "now [7] stopping mode=fast by=uid:0",
    ),
    "an event with texts": (
        "events",
        {"time": "now", "event": "reload_refused", "why": "a b", "stack": "x\ny\n"},
        'now reload_refused why="a b"\n    x\n    y',
    ),
    "items that were lost": ("logs", {"dropped": 3, "from": 1, "to": 3}, "— 3 dropped: this reader is too slow —"),
    "a gap of a worker": (
        "logs",
        {"gap": True, "worker": 7},
        "— gap: pid 7 has ended, and its last items are not known —",
    ),
    "a gap": ("logs", {"gap": True}, "— gap: what came between is not known —"),
    "a reload": ("logs", {"generation": 2}, "— generation 2 —"),
    "the end": ("logs", {"end": "complete"}, ""),
}


@pytest.mark.parametrize(("method", "message", "line"), ITEMS.values(), ids=ITEMS)
def test_a_message_of_a_stream_is_a_line(method: str, message: dict[str, Any], line: str) -> None:
    assert render_message(method, message) == line


def test_a_restart_tells_what_its_confirmation_has_found() -> None:
    counted = {"errors": 0, "requests": 20, "rate": 0.0, "generation": 1, "directory": "/srv/old"}
    result = {
        "stopped": {"outcome": "killed", "pid": 6, "elapsed": 0.1},
        "supervisor": SHOP,
        "pid": 7,
        "elapsed": 1.0,
        "confirmed": {"ok": False, "seconds": 5, "before": counted, "after": {**counted, "errors": 20, "rate": 1.0}},
    }
    assert "\nNOT CONFIRMED: 20 errors in 20 requests (100.00%) in 5.0 s" in render_result("restart", result)
    assert "CONFIRMED" not in render_result("restart", {**result, "confirmed": None})
