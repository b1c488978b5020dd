"""Levels of loggers for a time, and log files that are opened anew."""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fakehub import World, world
from harness import Program, Serve, first_quick, run_cli, until
from servers import SERVERS

from flask_ctl import CommandError
from flask_ctl.inspection.levels import Lease, LogLevels, reopen_logs

SHOP = "shop.levels"
DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger with the level ERROR."""
    logger = logging.getLogger(SHOP)
    logger.setLevel(ERROR)
    yield logger
    logger.setLevel(logging.NOTSET)


def lease(number: int, level: int, *, over: bool = False, logger: str = SHOP) -> Lease:
    return Lease(number, logger, level, time.monotonic() + (-1 if over else 3600), "2026-01-01T00:00:00.000Z", {})


# What holds in one process: the leases that it is given one after the other, and the level after each.
STORIES: dict[str, list[tuple[list[Lease], int]]] = {
    "one": [([lease(1, DEBUG)], DEBUG), ([], ERROR)],
    "one that expires": [([lease(1, DEBUG)], DEBUG), ([lease(1, DEBUG, over=True)], ERROR)],
    "the last of two": [([lease(1, DEBUG)], DEBUG), ([lease(1, DEBUG), lease(2, INFO)], INFO), ([], ERROR)],
    "the first outlives the last": [
        ([lease(1, DEBUG), lease(2, INFO)], INFO),
        ([lease(1, DEBUG), lease(2, INFO, over=True)], DEBUG),
        ([lease(1, DEBUG, over=True)], ERROR),
    ],
    "the last outlives the first": [
        ([lease(1, DEBUG), lease(2, INFO)], INFO),
        ([lease(1, DEBUG, over=True), lease(2, INFO)], INFO),
        ([], ERROR),
    ],
    "told in any order": [([lease(2, INFO), lease(1, DEBUG)], INFO), ([], ERROR)],
    "told twice": [([lease(1, DEBUG)], DEBUG), ([lease(1, DEBUG)], DEBUG), ([], ERROR)],
    "of another logger": [([lease(1, DEBUG, logger="other.levels")], ERROR), ([], ERROR)],
    "that has expired before": [([lease(1, DEBUG, over=True)], ERROR)],
}


@pytest.mark.parametrize("story", STORIES)
def test_leases_hold_as_the_table_says(logger: logging.Logger, story: str) -> None:
    levels = LogLevels()
    for leases, level in STORIES[story]:
        levels.hold(leases)
        assert logger.level == level


@pytest.mark.parametrize("same", [True, False])
def test_a_level_that_the_app_sets_meanwhile_stays(logger: logging.Logger, same: bool) -> None:
    """Even the very level that the lease has set."""
    levels = LogLevels()
    levels.hold([lease(1, DEBUG)])
    level = DEBUG if same else WARNING
    logging.config.dictConfig({
        "version": 1, "disable_existing_loggers": False, "incremental": True, "loggers": {SHOP: {"level": level}},
    })  # fmt: skip
    for leases in ([lease(1, DEBUG)], [lease(1, DEBUG), lease(2, INFO)], [lease(2, INFO)], []):
        levels.hold(leases)
        assert logger.level == (INFO if any(one.number == 2 for one in leases) else level)


def test_expired_leases_are_due_once(logger: logging.Logger) -> None:
    levels = LogLevels()
    levels.hold([Lease(1, SHOP, DEBUG, time.monotonic() + 0.001, "", {})])
    until(levels.due, "the end of the lease")
    levels.expire()
    assert logger.level == ERROR
    assert not levels.due()


def test_what_keeps_records_from_being_seen_is_noted(logger: logging.Logger) -> None:
    levels = LogLevels()
    logger.addHandler(handler := logging.NullHandler(WARNING))
    logger.propagate = False
    try:
        levels.hold([lease(1, DEBUG)])
        notes = {row["logger"]: row["note"] for row in levels.describe([SHOP, "nobody.levels"])}
        assert notes == {
            SHOP: "its handlers take nothing below WARNING",
            "nobody.levels": "no logger of this name has been used yet",
        }
        logger.disabled = True
        assert levels.describe([SHOP])[0]["note"] == "the logger is disabled"
        assert SHOP in [row["logger"] for row in levels.describe()]
    finally:
        levels.hold([])
        logger.disabled, logger.propagate = False, True
        logger.removeHandler(handler)


@pytest.fixture
def own_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the handlers that the test makes are there, not those of pytest."""
    monkeypatch.setattr(logging, "_handlerList", [])


@pytest.mark.usefixtures("own_handlers")
def test_files_are_opened_anew_behind_other_handlers_too(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "app.log"
    inner = logging.FileHandler(file)
    outer = logging.handlers.MemoryHandler(1, target=inner)
    later = logging.FileHandler(tmp_path / "later.log", delay=True)
    record = logging.makeLogRecord({"msg": "hello"})
    try:
        outer.handle(record)
        file.rename(tmp_path / "app.log.1")
        assert reopen_logs() == [{"file": str(file), "error": None}]
        outer.handle(record)
        assert file.read_text() == "hello\n"
        assert not (tmp_path / "later.log").exists()
    finally:
        for handler in (outer, inner, later):
            handler.close()


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("mode", ["w", "x", "a"])
def test_a_file_that_is_still_the_same_keeps_what_is_in_it(tmp_path: pathlib.Path, mode: str) -> None:
    """logrotate may have moved another one."""
    file = tmp_path / "app.log"
    handler = logging.FileHandler(file, mode)
    try:
        for _ in range(2):
            handler.handle(logging.makeLogRecord({"msg": "hello"}))
            assert reopen_logs() == [{"file": str(file), "error": None}]
        assert file.read_text() == "hello\nhello\n"
        assert handler.mode == mode
    finally:
        handler.close()


@pytest.mark.usefixtures("own_handlers")
def test_a_file_that_can_not_be_opened_leaves_the_old_one(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    handler = logging.FileHandler(directory / "app.log")
    directory.rename(tmp_path / "moved")
    try:
        (failed,) = reopen_logs()
        assert "No such file" in failed["error"]
        handler.handle(logging.makeLogRecord({"msg": "hello"}))
        assert (tmp_path / "moved" / "app.log").read_text() == "hello\n"
    finally:
        handler.close()


# Behind a hub


def held(w: World) -> set[tuple[str, int]]:
    """What a worker that comes now is told."""
    w.start_worker()
    count = len(w.living())
    w.run(lambda: len(w.hub.workers) == count and not w._ways)
    return {(one["logger"], one["level"]) for one in w.living()[-1].leases}


@pytest.mark.parametrize("seed", first_quick(range(5)))
def test_leases_hold_for_workers_to_come_and_the_next_hub(seed: int) -> None:
    with world(seed) as w:
        set_ = w.answer("log_level", logger="shop.db", level="debug").result
        assert [(one["logger"], one["level"]) for one in set_["leases"]] == [("shop.db", "DEBUG")]
        assert [worker.chores[0][0] for worker in w.living()] == ["log_levels", "log_levels"]
        w.answer("log_level", logger="root", level="INFO", seconds=30.0)
        assert held(w) == {("shop.db", DEBUG), ("", INFO)}
        w.kill_hub()
        w.next_hub()
        w.run(lambda: len(w.hub.workers) == 3)
        assert held(w) == {("shop.db", DEBUG), ("", INFO)}
        w.sleep(60.0)
        assert [one["logger"] for one in w.answer("log_level").result["leases"]] == ["shop.db"]
        w.answer("log_level", logger="shop.db", level="reset")
        assert held(w) == set()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"level": "DEBUG"}, "logger: must be the name"),
        ({"logger": "a", "level": "LOUD"}, "level: 'LOUD' is none of"),
        ({"logger": "a", "level": "DEBUG", "seconds": 0.0}, "seconds: must be more than 0"),
        ({"logger": "a" * 201, "level": "DEBUG"}, "logger: must be the name"),
    ],
)
def test_a_level_that_makes_no_sense_is_refused(shared: Any, params: dict[str, Any], message: str) -> None:
    with shared.client() as client, pytest.raises(CommandError, match=message) as caught:
        client.call("log_level", **params)
    assert caught.value.code == -32602


# Real servers

LOGGING = """
import logging, logging.config
logging.basicConfig(filename="app.log", level="INFO", format="%(process)d %(message)s")

@control.command
def whisper():
    logging.getLogger("shop").debug("whispered")

@control.command
def configure():
    logging.config.dictConfig({"version": 1, "incremental": True, "loggers": {"shop": {"level": "ERROR"}}})
"""


@pytest.mark.parametrize("kind", first_quick(["gunicorn gthread", "flask run"]))
def test_a_level_holds_in_every_process_and_over_a_reload(kind: str, start: Serve, program: Program) -> None:
    program.edit("old", LOGGING)
    server = start(SERVERS[kind])
    log = program.directory / "app.log"

    def whispers() -> int:
        server.call("whisper")
        return log.read_text().count("whispered")

    def level() -> list[str]:
        with server.client() as client:
            return [row["level"] for row in client.log_level("shop")["loggers"]]

    count = max(len(server.status()["workers"]), 1)
    assert whispers() == 0
    done = run_cli("log-level", "shop", "debug", "--for", "1h", "-s", server.socket)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("shop: DEBUG (pid ")
    assert whispers() == count
    server.reload()
    until(lambda: level() == ["DEBUG"], "the level in the new code")
    assert run_cli("log-level", "shop", "INFO", "--for", "0.2", "-s", server.socket).returncode == 0
    until(lambda: level() == ["DEBUG"], "the end of the later lease")
    log.rename(program.directory / "app.log.1")
    done = run_cli("reopen-logs", "-s", server.socket)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{log}: opened anew (pid ")
    assert whispers() == count
    server.call("configure")
    assert run_cli("log-level", "shop", "reset", "-s", server.socket).returncode == 0
    assert level() == ["ERROR"]
