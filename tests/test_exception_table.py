"""The table of unhandled exceptions: what is the same, what stays, what is never kept."""

from __future__ import annotations

import json
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_ctl.inspection.exceptions import MAX_BYTES, MAX_ENTRIES, ExceptionTable, merged
from flask_ctl.protocol.jsonrpc import encode
from flask_ctl.system.threads import ThreadExceptions


def raised(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def failing(message: str) -> BaseException:
    """Always from the same line."""

    def fail() -> None:
        raise ValueError(message)

    return raised(fail)


def elsewhere(number: int) -> BaseException:
    """From a file of its own."""
    return raised(lambda: exec(compile("1 / 0", f"/srv/shop/{number}.py", "exec")))


def test_equal_exceptions_are_one_entry_with_the_last_message() -> None:
    table = ExceptionTable(__file__.rpartition("/")[0])
    table.note(failing("one"), "request", "/paint/<colour>", "GET")
    table.note(failing("two"), "request", "/paint/<colour>", "POST")
    [entry] = table.entries()
    assert (entry["count"], entry["type"], entry["message"]) == (2, "ValueError", "two")
    assert (entry["origin"], entry["route"], entry["method"]) == ("request", "/paint/<colour>", "POST")
    assert entry["first"] < entry["last"]
    assert entry["where"].startswith(f"{__file__}:")
    assert entry["where"].endswith(", in fail")
    assert entry["traceback"].endswith("ValueError: one\n")


def test_another_line_is_another_exception_and_the_last_one_is_at_the_end() -> None:
    table = ExceptionTable()
    for error in (failing("x"), elsewhere(1), failing("y")):
        table.note(error, "thread")
    assert [entry["type"] for entry in table.entries()] == ["ZeroDivisionError", "ValueError"]
    assert [entry["where"] for entry in table.entries()] == [None, None]


def test_the_entry_that_came_least_recently_makes_room() -> None:
    table = ExceptionTable()
    for number in (*range(MAX_ENTRIES), 0, MAX_ENTRIES):
        table.note(elsewhere(number), "request")
    assert len(table) == MAX_ENTRIES
    assert [entry["count"] for entry in table.entries()[-2:]] == [2, 1]
    assert "shop/1.py" not in json.dumps(table.entries())


def test_the_table_is_bounded_in_bytes() -> None:
    table = ExceptionTable()
    for number in range(MAX_ENTRIES):
        error = elsewhere(number)
        error.args = ("ü" * 100_000,)
        table.note(error, "request")
    assert 1 < len(table) < MAX_ENTRIES
    assert len(encode(table.entries())) < 2 * MAX_BYTES


class Local:
    """Something that a frame holds."""


def test_neither_the_exception_nor_its_frames_are_kept() -> None:
    table, gone = ExceptionTable(), []

    def fail() -> None:
        local = Local()
        gone.append(weakref.ref(local))
        raise LookupError(local)

    error = raised(fail)
    table.note(error, "request")
    del error
    assert gone[0]() is None
    assert len(table) == 1


SECRETS = {
    "a keyword": "connect(password='hunter2')",
    "a header": "Authorization: Bearer hunter2",
    "a cookie": "Cookie: session=hunter2; theme=dark",
    "the user of a URL": "can't connect to postgresql://shop:hunter2@db/shop",
    "JSON": '{"token": "hunter2"}',
}


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_no_secret_is_in_message_and_traceback(text: str) -> None:
    table = ExceptionTable()
    table.note(failing(text), "request")
    table.note(raised(lambda: exec(compile(f"raise KeyError({text!r})", "/srv/x.py", "exec"))), "request")
    chained = failing("outer")
    chained.__cause__ = failing(text)
    table.note(chained, "hook")
    assert "hunter2" not in json.dumps(table.entries())


@pytest.mark.parametrize("before", [0, 450, 2990, 7990, 32_700, 32_760, 70_000])
@pytest.mark.parametrize("after", [0, 4990, 32_750, 70_000])
def test_no_secret_is_shown_where_a_long_text_is_cut(before: int, after: int) -> None:
    table = ExceptionTable()
    table.note(failing("x" * before + " password=hunter2hunter2 " + "y" * after), "request")
    [entry] = table.entries()
    assert "hunter2" not in json.dumps(entry)
    assert len(entry["message"]) <= 501
    assert len(entry["traceback"]) <= 8100


def test_the_traceback_of_a_deep_recursion_has_its_beginning_and_its_end() -> None:
    def odd(number: int) -> None:
        even(number + 1)

    def even(number: int) -> None:
        odd(number + 1)

    table = ExceptionTable()
    table.note(raised(lambda: odd(0)), "request")
    [entry] = table.entries()
    assert entry["traceback"].startswith("Traceback (most recent call last):\n")
    assert "characters left out …\n" in entry["traceback"]
    assert "RecursionError: maximum recursion depth exceeded" in entry["traceback"]


def test_an_exception_without_a_text_is_counted() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("mute")

    table = ExceptionTable()
    table.note(Mute(), "request")
    [entry] = table.entries()
    assert entry["message"] == "(its text can't be had: RuntimeError)"
    assert entry["type"].endswith("Mute")


def test_threads_lose_no_count() -> None:
    table, error = ExceptionTable(), failing("x")

    def note_often() -> None:
        for _ in range(200):
            table.note(error, "thread")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=note_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert [entry["count"] for entry in table.entries()] == [800]


def test_a_signal_handler_that_notes_one_meanwhile_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_ctl.inspection.exceptions.LOCK_TIMEOUT", 0.0)
    table = ExceptionTable()
    with table._lock:
        table.note(failing("x"), "request")
    assert len(table) == 0


def test_a_forked_child_does_not_wait_for_a_thread_that_it_has_not() -> None:
    table = ExceptionTable()
    with table._lock:
        child = os.fork()
        if child == 0:
            table.note(failing("x"), "request")
            os._exit(len(table))
        assert os.waitpid(child, 0)[1] >> 8 == 1


def test_tables_of_several_processes_become_one() -> None:
    one, two = ExceptionTable(), ExceptionTable()
    one.note(failing("first"), "request", "/a", "GET")
    two.note(failing("second"), "request", "/b", "GET")
    two.note(elsewhere(1), "hook")
    of_one = [{"worker": 1, **entry} for entry in one.entries()]
    of_two = [{"worker": 2, **entry} for entry in json.loads(json.dumps(two.entries()))]
    both = merged([*of_two, *of_one])
    assert [(entry["type"], entry["count"], entry["worker"]) for entry in both] == [
        ("ValueError", 2, 2),
        ("ZeroDivisionError", 1, 2),
    ]
    assert (both[0]["message"], both[0]["route"], both[0]["first"]) == ("second", "/b", of_one[0]["first"])


# Threads


@pytest.fixture
def hooked() -> Iterator[list[str]]:
    """What the program's own hook has got."""
    before, seen = threading.excepthook, []
    threading.excepthook = lambda args: seen.append(str(args.exc_value))
    yield seen
    threading.excepthook = before


def end_a_thread(error: BaseException) -> None:
    def fail() -> None:
        raise error

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def test_the_programs_own_hook_still_gets_what_ends_a_thread(hooked: list[str]) -> None:
    noted: list[str] = []
    ours, programs = ThreadExceptions(lambda error: noted.append(str(error))), threading.excepthook
    assert programs is ours
    end_a_thread(ValueError("x"))
    end_a_thread(SystemExit("y"))
    assert (noted, hooked) == (["x"], ["x", "y"])
    ours.end()
    end_a_thread(ValueError("z"))
    ours.end()
    assert (noted, hooked) == (["x"], ["x", "y", "z"])
    assert threading.excepthook is not ours


def test_a_hook_that_was_set_later_stays(hooked: list[str]) -> None:
    noted: list[str] = []
    ours = ThreadExceptions(lambda error: noted.append(str(error)))
    threading.excepthook = later = lambda args: ours(args)
    ours.end()
    assert threading.excepthook is later
    end_a_thread(ValueError("x"))
    assert (noted, hooked) == ([], ["x"])
