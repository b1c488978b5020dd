"""`logs`: the records of the process itself, whatever its handlers do with them."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import signal
import subprocess
import threading
from typing import Any

import pytest
from harness import PYTHON, Program, Serve, Server, first_quick, raw, read_all, run_cli, until
from manyworkers import all_there, kill, workers
from servers import SERVERS

from flask_ctl import CommandError
from flask_ctl.inspection.feeds import parse_since
from flask_ctl.inspection.logs import MAX_MESSAGE, Entry, LogFilter, LogRecorder, as_item
from flask_ctl.inspection.ring import INBOX

# The filter


def entry(**fields: Any) -> Entry:
    return Entry(**{
        "created": 100.0, "level": logging.INFO, "logger": "shop.cart", "message": "added 3 pens", "thread": "t",
        "request": "r1", "traceback": None, **fields,
    })  # fmt: skip


FILTERS: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing is asked for": ({}, True),
    "of the level": ({"level": logging.INFO}, True),
    "below the level": ({"level": logging.WARNING}, False),
    "the logger": ({"logger": "shop.cart"}, True),
    "a logger above": ({"logger": "shop"}, True),
    "a logger whose name begins alike": ({"logger": "sho"}, False),
    "another logger": ({"logger": "shop.cart.items"}, False),
    "the request": ({"request": "r1"}, True),
    "another request": ({"request": "r2"}, False),
    "a text in it": ({"grep": "3 pens"}, True),
    "a text that is no part of it": ({"grep": "4 pens"}, False),
    "later than that": ({"since": 99.0}, True),
    "not later than that": ({"since": 100.0}, False),
}


@pytest.mark.parametrize(("wanted", "kept"), FILTERS.values(), ids=FILTERS)
def test_a_reader_sees_what_it_asks_for(wanted: dict[str, Any], kept: bool) -> None:
    assert LogFilter(**wanted).keep(entry()) is kept


def test_a_text_is_looked_for_in_the_traceback_too() -> None:
    assert LogFilter(grep="KeyError").keep(entry(traceback="KeyError: 'pen'"))


def test_a_secret_can_not_be_looked_for() -> None:
    secret = entry(message="login password=hunter2", traceback="token=abcdef")
    assert not LogFilter(grep="hunter").keep(secret)
    assert not LogFilter(grep="abc").keep(secret)
    assert LogFilter(grep="login").keep(secret)


TIMES = {"90": 90, "90s": 90, "10m": 600, "2h": 7200, "1d": 86400, "1.5h": 5400}


@pytest.mark.parametrize(("text", "seconds"), TIMES.items())
def test_an_age_is_a_number_with_a_unit(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    assert parse_since(text) == 1_000_000.0 - seconds


def test_a_time_is_that_of_rfc_3339() -> None:
    assert parse_since("1970-01-02T00:00:00Z") == parse_since("1970-01-02T01:00:00+01:00") == 86400
    assert parse_since("") == 0


@pytest.mark.parametrize("text", ["soon", "10x", "-5", "2026-13-01"])
def test_another_text_is_no_time(text: str) -> None:
    with pytest.raises(CommandError, match="is no time, such as 10m"):
        parse_since(text)


# The recorder


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> LogRecorder:
    """A recorder of this process, which ends with the test."""
    monkeypatch.setattr(logging.Logger, "callHandlers", logging.Logger.callHandlers)
    recorder = LogRecorder()
    recorder.begin(10)
    return recorder


def kept(recorder: LogRecorder) -> list[str]:
    return [entry.message for _, entry in recorder.ring.after(0)]


LOGGER = logging.getLogger("test_log_stream")


def test_warnings_are_always_kept_others_while_a_client_follows(recorder: LogRecorder) -> None:
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.info("nobody follows")
    LOGGER.warning("a warning")
    recorder.capture()
    LOGGER.debug("somebody follows")
    assert kept(recorder) == ["a warning", "somebody follows"]


def test_a_record_is_taken_as_it_is_at_that_moment(recorder: LogRecorder) -> None:
    changing = ["before"]
    LOGGER.warning("it is %s", changing)
    changing[0] = "after"
    assert kept(recorder) == ["it is ['before']"]


def test_a_long_message_is_cut(recorder: LogRecorder) -> None:
    LOGGER.warning("x" * 10 * MAX_MESSAGE)
    assert kept(recorder) == ["x" * MAX_MESSAGE + "…"]


def test_a_call_whose_arguments_do_not_fit_is_kept_as_such(
    recorder: LogRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    LOGGER.warning("%d", "no number")
    (message,) = kept(recorder)
    assert message == "'%d' can't be formatted: TypeError"


class Unreadable:
    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


STRANGE: dict[str, dict[str, Any]] = {
    "a message without a text": {"msg": Unreadable()},
    "an argument without a text": {"msg": "%s", "args": (Unreadable(),)},
    "an exception that is none": {"msg": "x", "exc_info": (1, 2)},
    "bytes": {"msg": b"x"},
    "no name of a thread": {"msg": "x", "threadName": None},
}


@pytest.mark.parametrize("fields", STRANGE.values(), ids=STRANGE)
def test_no_record_fails_the_logging_call_or_the_next_reload(recorder: LogRecorder, fields: dict[str, Any]) -> None:
    recorder.take(logging.makeLogRecord({"levelno": 30, "name": "x", **fields}))
    restored = LogRecorder()
    restored.restore_state(json.loads(json.dumps(recorder.export_state(100_000))))
    assert len(restored.ring.after(0)) == 1


def test_a_failing_id_of_a_request_costs_no_record(recorder: LogRecorder) -> None:
    recorder.request_id = lambda: 1 / 0  # type: ignore[assignment, return-value]
    LOGGER.warning("kept")
    assert len(recorder.ring.after(0)) == 1


def test_a_flood_of_other_records_does_not_push_out_a_warning(recorder: LogRecorder) -> None:
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.warning("a warning")
    recorder.capture()
    for number in range(2 * INBOX):
        LOGGER.debug("%d", number)
    assert kept(recorder)[0] == "a warning"


def test_another_size_of_the_ring_keeps_what_it_can(recorder: LogRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        LOGGER.warning("%d", number)
    following = LogRecorder()
    following.restore_state(recorder.export_state(100_000))
    following.begin(3)
    assert kept(following) == ["2", "3", "4"]


def test_of_a_deep_traceback_the_end_is_kept(recorder: LogRecorder) -> None:
    def fall(depth: int) -> float:
        return 1 / 0 if depth == 0 else fall(depth - 1)

    try:
        fall(500)
    except ZeroDivisionError:
        LOGGER.exception("it fell")
    ((_, entry),) = recorder.ring.after(0)
    assert entry.traceback.endswith("ZeroDivisionError: division by zero")
    assert len(entry.traceback) <= MAX_MESSAGE + 1


@pytest.mark.parametrize(
    ("message", "end"),
    [
        ("x" * 3000 + " password=hunter2 " + "y" * (MAX_MESSAGE - 17) + "\nbob", "…\nbob"),
        ("bob password=hunter2 " + "y" * (MAX_MESSAGE - 13), "y…"),
    ],
    ids=["lines", "one line"],
)
def test_a_cut_traceback_does_not_show_the_value_of_half_a_name(recorder: LogRecorder, message: str, end: str) -> None:
    try:
        raise ValueError(message)
    except ValueError:
        LOGGER.exception("it fell")
    ((_, entry),) = recorder.ring.after(0)
    shown = as_item(entry)["traceback"]
    assert "hunter2" not in shown
    assert shown.endswith(end)


def test_what_does_not_propagate_is_seen_and_so_is_what_dict_config_sets_up(recorder: LogRecorder) -> None:
    alone = logging.getLogger("test_log_stream.alone")
    alone.propagate = False
    alone.warning("one")
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"handlers": []}})
    alone.warning("two")
    LOGGER.warning("three")
    assert kept(recorder) == ["one", "two", "three"]


def test_the_programs_own_logging_is_as_without(recorder: LogRecorder) -> None:
    root = logging.getLogger()
    handlers = list(root.handlers)
    LOGGER.warning("one")
    assert root.handlers == handlers


def test_a_disabled_logger_is_named(recorder: LogRecorder) -> None:
    off = logging.getLogger("test_log_stream.off")
    off.disabled = True
    try:
        assert "test_log_stream.off" in recorder.describe()["disabled"]
    finally:
        off.disabled = False


def test_a_forked_child_has_none_of_its_parents_records(recorder: LogRecorder) -> None:
    LOGGER.warning("of the parent")
    pid = os.fork()
    if pid == 0:
        os._exit(len(kept(recorder)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert kept(recorder) == ["of the parent"]


def test_an_item_has_no_secrets() -> None:
    item = as_item(entry(message="login password=hunter2", traceback="ValueError: token=abcdef"))
    assert "hunter2" not in str(item)
    assert "abcdef" not in str(item)


# Real servers

KINDS = first_quick(["gunicorn gthread", "flask run"])

LOGS = """
import logging
shop = logging.getLogger("shop")
shop.setLevel("DEBUG")

@app.get("/log/<level>/<text>")
def log_it(level, text):
    shop.log(getattr(logging, level), "%s password=hunter2", text)
    return "ok"
"""


LAST_WORDS = """
@control.on_stop
def say():
    shop.warning("last words password=hunter2")
"""


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, program: Program, start: Serve) -> Server:
    program.edit("first", LOGS)
    return start(SERVERS[request.param])


def messages(items: list[dict[str, Any]], logger: str = "shop") -> list[str]:
    return [item["message"].split()[0] for item in items if item.get("logger") == logger]


def test_the_last_records_are_shown_and_no_secrets(server: Server) -> None:
    for level, text in (("INFO", "a"), ("WARNING", "b"), ("ERROR", "c")):
        server.get(f"/log/{level}/{text}")
    with server.client() as client:
        items = list(client.follow("logs"))
        assert messages(items) == ["b", "c"]
        assert items[-1] == {"end": "complete"}
        assert "hunter2" not in str(items)
        assert messages(list(client.follow("logs", level="ERROR"))) == ["c"]
        assert messages(list(client.follow("logs", lines=1, logger="shop"))) == ["c"]
        with pytest.raises(CommandError, match="level: 'loud' is none of DEBUG"):
            list(client.follow("logs", level="loud"))


def test_a_follower_sees_every_level_over_a_reload(server: Server, program: Program) -> None:
    with server.client() as client:
        followed = client.follow("logs", follow=True, lines=0, logger="shop")
        assert "about" in next(followed)
        captured = threading.Event()
        seen: list[dict[str, Any]] = []

        def follow() -> None:
            for item in followed:
                seen.append(item)
                captured.set()

        thread = threading.Thread(target=follow, name="follower")
        thread.start()
        # From the first look on, records of every level are taken.
        number = 0

        def shown() -> bool:
            nonlocal number
            number += 1
            server.get(f"/log/DEBUG/n{number}")
            return captured.wait(0.1)

        until(shown, "a record of level DEBUG")
        program.edit("second", LOGS)
        server.reload()
        number = 1000

        def shown_again() -> bool:
            nonlocal number
            number += 1
            server.get(f"/log/DEBUG/n{number}")
            return any(text.startswith("n10") and len(text) > 4 for text in messages(seen))

        until(shown_again, "a record of the new code")
        assert {"generation": 2} in seen
        numbers = [item["seq"] for item in seen if "seq" in item]
        assert numbers == sorted(set(numbers))
        client.stop()
        thread.join()
        assert seen[-1] == {"end": "the server has ended"}


@pytest.mark.full
def test_what_workers_log_at_their_end_is_not_lost_and_of_a_killed_one_that_is_told(
    program: Program, start: Serve
) -> None:
    program.edit("first", LOGS + LAST_WORDS)
    server = all_there(start(SERVERS["gunicorn gthread"]), 2)
    before = workers(server)
    seen: list[dict[str, Any]] = []
    with server.client() as client:
        followed = client.follow("logs", follow=True, lines=0, logger="shop")
        assert "about" in next(followed)
        thread = threading.Thread(target=lambda: seen.extend(followed), name="follower")
        thread.start()
        program.edit("second", LOGS)
        server.reload()
        said = [item for item in client.follow("logs") if item.get("message") == "last words password=***"]
        assert sorted(item["worker"] for item in said) == sorted(before)
        assert {item["generation"] for item in said} == {1}
        one = list(client.follow("logs", worker=before[0], follow=True, logger="shop"))
        assert [item["message"] for item in one if "message" in item] == ["last words password=***"]
        assert one[-1] == {"end": "the worker has ended"}
        pid = workers(server)[0]
        until(lambda: server.get("/log/WARNING/alive") and pid in writers(seen), "the follower knows the new worker")
        kill(pid)
        until(lambda: any("gap" in item for item in seen), "the follower is told")
        client.stop()
        thread.join()
    assert writers(seen, "last words") == set(before)
    assert {"gap": True, "worker": pid} in seen


def writers(items: list[dict[str, Any]], text: str = "") -> set[int]:
    """The workers that have logged this."""
    return {item["worker"] for item in items if item.get("message", "").startswith(text) and "worker" in item}


@pytest.mark.parametrize("server", ["gunicorn gthread"], indirect=True)
def test_records_of_all_workers_come_in_the_order_of_their_times_or_those_of_one(server: Server) -> None:
    until(
        lambda: [server.get(f"/log/WARNING/{n}") for n in range(4)] and len(_writers(server)) == 2, "both have logged"
    )
    with server.client() as client:
        items = [item for item in client.follow("logs", logger="shop") if "time" in item]
        assert [item["time"] for item in items] == sorted(item["time"] for item in items)
        pid = workers(server)[0]
        assert {item["worker"] for item in client.follow("logs", worker=pid) if "time" in item} == {pid}
        kill(pid)
        until(lambda: pid not in workers(server), "it is replaced")
        assert pid not in _writers(server)


def _writers(server: Server) -> set[int]:
    with server.client() as client:
        return {item["worker"] for item in client.follow("logs", logger="shop") if "time" in item}


def test_a_follower_that_does_not_read_delays_neither_the_app_nor_another_reader(server: Server) -> None:
    with raw(server.socket) as sock:
        sock.sendall(b"logs follow=yes\n")
        for n in range(50):
            assert server.get(f"/log/WARNING/{n}")[0] == 200
        with server.client() as client:
            assert len(messages(list(client.follow("logs", logger="shop")))) == 50


def test_over_netcat_records_are_lines(server: Server) -> None:
    server.get("/log/ERROR/x")
    with raw(server.socket) as sock:
        sock.sendall(b"logs level=ERROR logger=shop\n")
        line = read_all(sock).decode()
    assert line.endswith(" ERROR shop: x password=***\n")


def test_at_the_command_line_records_are_lines(server: Server) -> None:
    server.get("/log/ERROR/x")
    done = run_cli("logs", "--logger", "shop", "-s", server.socket)
    assert done.returncode == 0
    assert done.stdout.endswith("ERROR shop: x password=***\n")


def test_ctrl_c_ends_a_follower_at_the_command_line_quietly(server: Server) -> None:
    server.get("/log/ERROR/x")
    command = [*PYTHON, "-m", "flask_ctl_cli", "logs", "--follow", "--logger", "shop", "--json", "-s", server.socket]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        assert '"about"' in follower.stdout.readline()
        assert "x password=***" in follower.stdout.readline()
        follower.send_signal(signal.SIGINT)
        assert json.loads(follower.stdout.read()) == {"end": "interrupted"}
        assert follower.stderr.read() == ""
    assert follower.returncode == 0


def test_the_callers_timeout_holds_for_the_beginning_of_a_stream(serve: Serve) -> None:
    server = serve().suspend()
    done = run_cli("logs", "--timeout", "0.3", "-s", server.socket)
    assert (done.returncode, done.stdout) == (4, "")
    assert "did not answer logs within 0.3 s; it is still there" in done.stderr


def test_a_setting_switches_it_off(program: Program, start: Serve) -> None:
    program.edit("first", LOGS + 'app.config["CTL_LOG_RING"] = 0\n')
    server = start(SERVERS["flask run"])
    server.get("/log/ERROR/x")
    done = run_cli("logs", "-s", server.socket)
    assert (done.returncode, done.stdout) == (0, "")
    assert "CTL_LOG_RING is 0: no record is kept" in done.stderr
