"""Rollouts: what has become of each instance, in the record, on the terminal and in the exit code."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from harness import TIMEOUT, Pending, Serve, Server, run_cli, until

from flask_ctl import (
    AccessDenied,
    CommandError,
    ConfigurationError,
    ControlError,
    NotRunning,
    ReloadFailed,
    ServerDied,
    ServerReloaded,
    TimedOut,
)
from flask_ctl_cli.rollout import start
from flask_ctl_cli.rollout.course import Outcome, Plan
from flask_ctl_cli.rollout.files import MAX_RECORDS, FileArchive, FileRecord
from flask_ctl_cli.rollout.member import Answer, Health, Member, ask
from flask_ctl_cli.rollout.place import LocalPlace
from flask_ctl_cli.rollout.record import Record
from flask_ctl_cli.rollout.run import Run
from flask_ctl_cli.rollout.start import command_line

DONE = Answer(Outcome.DONE, 0)
ARCHIVE = FileArchive()


@pytest.fixture(autouse=True)
def state(short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The directory of the records."""
    monkeypatch.setenv("XDG_STATE_HOME", str(short_path / "state"))
    return short_path / "state" / "flask-ctl" / "rollouts"


def members(number: int) -> list[Member]:
    return [Member(f"shop-{n}", f"/run/{n}.sock", 100 + n, 1, "2026-01-01T00:00:00Z") for n in range(number)]


@contextlib.contextmanager
def new_record(chosen: list[Member], **more: Any) -> Iterator[Record]:
    fields: dict[str, Any] = {"method": "reload", "options": {}, "health": {}, "timeout": None, **more}
    fields["rollout"] = {"batch": "1", "canary": None, "max_failures": "0", "pause": 0.0}
    fields["operator"] = {"uid": os.getuid(), "pid": os.getpid(), "host": "here"}
    with ARCHIVE.new(chosen, **fields) as record:
        yield record


def outcomes(document: dict[str, Any]) -> list[str | None]:
    return [target["outcome"] for target in document["targets"]]


# The record


def test_an_outcome_is_in_the_record_before_the_next_batch_is_asked() -> None:
    chosen, seen = members(3), []

    def act(member: Member) -> Answer:
        document = ARCHIVE.load(None)
        seen.append(([target["asked"] for target in document["targets"]], outcomes(document)))
        return DONE

    with new_record(chosen) as record:
        Run(chosen, Plan(), 0.0, act, record, str).complete()
    assert seen == [
        ([True, False, False], [None, None, None]),
        ([True, True, False], ["done", None, None]),
        ([True, True, True], ["done", "done", None]),
    ]
    assert (ARCHIVE.load(None)["end"], outcomes(ARCHIVE.load(None))) == ("finished", ["done"] * 3)


def test_a_record_is_its_owners_alone_and_the_last_hundred_are_kept(state: pathlib.Path) -> None:
    for _ in range(MAX_RECORDS + 3):
        with new_record([]):
            """It has begun."""
    assert len(ARCHIVE.ids()) == MAX_RECORDS
    assert len(list(state.iterdir())) == 2 * MAX_RECORDS
    assert {stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()} == {0o600}
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_a_record_is_of_one_process_at_a_time_and_tells_whether_it_runs() -> None:
    with new_record(members(1)) as record:
        document = ARCHIVE.load(record.document["id"][:15])
        assert ARCHIVE.state_of(document) == "running"
        with pytest.raises(ConfigurationError, match="run by another process"):
            FileRecord(document)
    assert ARCHIVE.state_of(ARCHIVE.load(None)) == "abandoned", "its process has ended without an end of the rollout"
    with FileRecord(ARCHIVE.load(None)) as record:
        record.finish("finished")
    assert ARCHIVE.state_of(ARCHIVE.load(None)) == "ended"


class Untidy(FileArchive):
    """Its old records can't be removed."""

    error: BaseException = ControlError("the bucket is away")

    def _remove_old(self) -> None:
        raise self.error


def test_old_records_that_stay_are_a_remark(capsys: pytest.CaptureFixture[str]) -> None:
    archive = Untidy()
    with click.Context(click.Command("reload")), archive.new(members(1)) as record:
        assert archive.is_running(record.document["id"])
    assert capsys.readouterr().err == "old records are not removed: the bucket is away\n"
    archive.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        archive.new(members(1))
    assert not any(map(archive.is_running, archive.ids()))


def test_without_a_record_nothing_is_asked(state: pathlib.Path) -> None:
    state.parent.mkdir(parents=True)
    state.write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"can't be written: .*nothing was asked"), new_record(members(1)):
        """Not reached."""


def test_a_rollout_goes_on_when_the_disk_is_full(state: pathlib.Path) -> None:
    chosen = members(2)
    said: list[str] = []

    def act(member: Member) -> Answer:
        if member is not chosen[0]:
            return Answer(Outcome.CUT, 6)
        for path in state.iterdir():
            path.unlink()
        state.rmdir()
        state.write_text("in the way")
        return DONE

    with new_record(chosen) as record:
        Run(chosen, Plan(max_failures=1), 0.0, act, record, said.append).complete()
    assert [member.outcome for member in chosen] == ["done", "cut"]
    assert sum("can't be written" in line for line in said) == 1


def test_what_is_no_record_is_told(state: pathlib.Path) -> None:
    state.mkdir(parents=True)
    assert run_cli("rollout", "status").returncode == 2
    (state / "1.json").write_text("{")
    done = run_cli("rollout", "status", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no record of a rollout" in done.stderr
    (state / "1.json").write_text('{"version": 2}')
    assert "another version" in run_cli("rollout", "status", "1").stderr
    (state / "12.json").write_text("{}")
    assert run_cli("rollout", "status", "").returncode == 2
    with new_record(members(1)) as record:
        """A whole record."""
    history = run_cli("rollout", "history")
    assert (history.returncode, history.stdout.count("\n"), history.stderr.count("\n")) == (0, 1, 2)
    (state / "1.json").write_text((state / f"{record.document['id']}.json").read_text())
    assert "has the id of another one" in run_cli("rollout", "status", "1").stderr


def test_records_are_not_put_where_another_user_may_put_a_link(state: pathlib.Path) -> None:
    state.mkdir(parents=True)
    state.chmod(0o777)
    with pytest.raises(ConfigurationError, match="others can write to it"), new_record([]):
        """Not reached."""


def test_a_record_that_is_only_looked_at_can_be_gone_on_with() -> None:
    with new_record(members(1)) as record:
        """It has begun."""
    document, over = record.document, threading.Event()

    def look() -> None:
        while not over.is_set():
            ARCHIVE.state_of(document)

    looking = Pending.call(look)
    for _ in range(50):
        FileRecord(document).close()
    over.set()
    looking.result()


# Ctrl-C


def interrupting(times: int, answer: threading.Event) -> Callable[[Member], Answer]:
    """Sends this process so many SIGINT from the first member, and answers when it may."""

    def act(member: Member) -> Answer:
        if member.pid == 100:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        answer.wait(TIMEOUT)
        return DONE

    return act


def test_ctrl_c_lets_the_batch_end_and_no_other_begin() -> None:
    chosen, answer = members(4), threading.Event()
    with new_record(chosen) as record:
        Run(chosen, Plan(2), 0.0, interrupting(1, answer), record, lambda said: answer.set()).complete()
    document = ARCHIVE.load(None)
    assert (document["end"], outcomes(document)) == ("interrupted", ["done", "done", "not started", "not started"])


def test_ctrl_c_again_leaves_what_has_not_answered_unknown() -> None:
    chosen, answer = members(3), threading.Event()
    try:
        with new_record(chosen) as record:

            def say(said: str) -> None:
                if "Ctrl-C" in said:
                    os.kill(os.getpid(), signal.SIGINT)

            Run(chosen, Plan(2), 0.0, interrupting(1, answer), record, say).complete()
        document = ARCHIVE.load(None)
        assert (document["end"], outcomes(document)) == (
            "interrupted",
            ["unknown", "unknown", "not started"],
        )
    finally:
        answer.set()


def test_ctrl_c_ends_a_pause() -> None:
    chosen = members(2)

    def say(said: str) -> None:
        if said.startswith("1 of 2"):
            os.kill(os.getpid(), signal.SIGINT)

    with new_record(chosen) as record:
        Run(chosen, Plan(), 1000.0, lambda member: DONE, record, say).complete()
    assert outcomes(ARCHIVE.load(None)) == ["done", "not started"]


def test_a_fault_of_this_program_is_an_unknown_outcome() -> None:
    chosen = members(1)
    with new_record(chosen) as record:
        Run(chosen, Plan(), 0.0, lambda member: DONE._replace(exit=1 // 0), record, str).complete()
    assert ARCHIVE.load(None)["targets"][0]["message"].startswith("ZeroDivisionError")
    assert ARCHIVE.load(None)["end"] == "an unknown outcome"


# What an answer says of an instance


class Instance:
    """Answers `status` with these, one after the other; the last one again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def status(self, *, timeout: float) -> dict[str, Any]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        pid, generation, state = answer
        return {"pid": pid, "generation": generation, "state": state, "started_at": "2026-01-01T00:00:00Z"}


OLD, NEW, GONE = (100, 1, "running"), (100, 2, "running"), NotRunning("nothing is running")
RELOADED = {"pid": 100, "generation": 2, "cut": 0}
BEFORE, STOPPED = {"requests": 1000, "errors": 0}, {"outcome": "drained", "cut": 0}


def confirmed(ok: bool | None, requests: int, errors: int) -> dict[str, Any]:
    return {**RELOADED, "confirmed": {"ok": ok, "before": BEFORE, "after": {"requests": requests, "errors": errors}}}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["reload", "--rolling", "--on", "ann@web-1"], "reload --rolling --on ann@web-1"),
        (["fleet", "--nats", "nats://ann:secret@a", "stop"], "fleet --nats nats://a stop"),
        (["fleet", "stop", "--nats=tls://secret@a:4222,ann:secret@b"], "fleet stop --nats=tls://a:4222,b"),
        (
            ["fleet", "--nats", "ann:secret@a", "stop", "--nats", "b:4222"],
            "fleet --nats a stop --nats b:4222",
        ),
        (["fleet", "stop", "--nats=nats://ann:s/e@c#r?t@a"], "fleet stop --nats=nats://a"),
    ],
)
def test_a_record_has_the_command_without_passwords(words: list[str], shown: str) -> None:
    assert command_line(words) == shown


@pytest.mark.parametrize(
    ("method", "seen", "result", "outcome", "code", "message"),
    [
        ("reload", [OLD, NEW], RELOADED, "done", 0, ""),
        ("reload", [OLD, (100, 2, "draining")], RELOADED, "done", 0, ""),
        ("reload", [OLD, NEW], {**RELOADED, "cut": 3}, "cut", 6, "3 requests cut"),
        ("reload", [OLD, NEW], {**RELOADED, "hooks": "unfinished"}, "cut", 6, "hooks left unfinished"),
        ("reload", [OLD, NEW], {**RELOADED, "threads_left": ["T"]}, "cut", 6, "threads left: T"),
        ("reload", [OLD], ReloadFailed("broken"), "refused", 7, "broken"),
        ("reload", [OLD], TimedOut("busy"), "refused", 4, "busy"),
        ("reload", [OLD], CommandError("a conflict", code=-32002), "refused", 1, "a conflict"),
        ("reload", [OLD], AccessDenied("no"), "refused", 5, "no"),
        ("reload", [OLD, OLD], CommandError("it has run", data={"ran": True}), "unknown", 1, "it has run"),
        ("reload", [OLD, GONE], ServerDied("it ended"), "failed", 6, "it ended"),
        ("reload", [OLD], ServerReloaded("cut off"), "unknown", 1, "cut off"),
        ("reload", [OLD], ControlError("no answer", {"may_have_run": True}), "unknown", 1, "no answer"),
        ("reload", [OLD], ControlError("no answer"), "unknown", 1, "no answer"),
        ("reload", [OLD], ControlError("nothing was done", {"begun": False}), "unreachable", 1, "nothing was done"),
        ("reload", [OLD, NEW], CommandError("1 of 2 new workers serve", {"new": 1, "wanted": 2}), "failed", 1, "1 of"),
        ("reload", [OLD], ControlError("replaced", {"reload": RELOADED}), "failed", 1, "replaced"),
        ("reload", [GONE], RELOADED, "unreachable", 1, "nothing is running"),
        ("reload", [TimedOut("silent")], RELOADED, "unreachable", 1, "silent"),
        ("reload", [AccessDenied("no")], RELOADED, "refused", 5, "no"),
        ("reload", [NEW], RELOADED, "not started", 1, "it has changed since"),
        ("reload", [(101, 1, "running")], RELOADED, "not started", 1, "it has changed since"),
        ("reload", [OLD, GONE], RELOADED, "failed", 6, "it can't be asked"),
        ("reload", [OLD, (100, 3, "running")], RELOADED, "failed", 6, "is not what the reload has promised"),
        ("reload", [OLD, (100, 2, "stopping")], RELOADED, "failed", 6, "it is stopping"),
        ("restart", [OLD, (200, 1, "running")], {"pid": 200, "generation": 1, "stopped": STOPPED}, "done", 0, ""),
        ("restart", [OLD], ConfigurationError("no supervisor"), "refused", 2, "no supervisor"),
        ("restart", [OLD, GONE], NotRunning("not back", {"stopped": STOPPED}), "failed", 3, "not back"),
        ("restart", [OLD], TimedOut("not ready", {"stopped": STOPPED}), "failed", 4, "not ready"),
        ("restart", [OLD], TimedOut("still runs"), "unknown", 1, "still runs"),
        ("stop", [OLD], STOPPED, "done", 0, ""),
        ("stop", [OLD], {"outcome": "forced", "cut": 2}, "cut", 6, "2 requests cut"),
        ("stop", [OLD], {"outcome": "drained", "cut": 0, "hooks": "unfinished"}, "cut", 6, "hooks left unfinished"),
        ("stop", [OLD], {"outcome": "killed", "cut": None}, "cut", 6, "a process was killed"),
        ("stop", [OLD], TimedOut("still runs"), "unknown", 1, "still runs"),
        ("stop", [OLD], NotRunning("gone"), "unreachable", 1, "gone"),
    ],
)
def test_what_is_said_is_what_became_of_it(
    method: str, seen: list[Any], result: Any, outcome: str, code: int, message: str
) -> None:
    def change(client: Any) -> dict[str, Any]:
        if isinstance(result, Exception):
            raise result
        return dict(result)

    client: Any = Instance(*seen)
    answer = ask(client, members(1)[0], method, change, Health())
    assert (answer.outcome.value, answer.exit) == (outcome, code)
    assert message in answer.message


@pytest.mark.parametrize(
    ("result", "idle", "outcome", "message"),
    [
        (confirmed(True, 50, 0), False, "done", ""),
        (confirmed(False, 50, 20), False, "failed", "20 of 50 requests have failed within 5 s, before 0 of 1000"),
        (
            confirmed(True, 9, 0),
            False,
            "failed",
            "too little traffic to judge: 9 requests within 5 s, not 10; with --allow-idle this is no failure",
        ),
        (confirmed(None, 0, 0), False, "failed", "too little traffic"),
        (confirmed(None, 0, 0), True, "done", ""),
        (confirmed(False, 9, 9), True, "done", ""),
        (confirmed(False, 10, 9), True, "failed", "9 of 10 requests"),
    ],
)
def test_an_instance_is_judged_by_its_own_error_rate(result: Any, idle: bool, outcome: str, message: str) -> None:
    client: Any = Instance(OLD, NEW)
    health = Health(5.0, allow_idle=idle)
    answer = ask(client, members(1)[0], "reload", lambda client: dict(result), health)
    assert answer.outcome.value == outcome
    assert message in answer.message


@pytest.mark.parametrize("before", [None, "unknown"])
@pytest.mark.parametrize(
    ("method", "options", "seen", "outcome"),
    [
        ("reload", {}, OLD, "not started"),
        ("reload", {}, NEW, "done"),
        ("reload", {}, (101, 1, "running"), "failed"),
        ("reload", {}, GONE, "failed"),
        ("reload", {"what": "config"}, OLD, "unknown"),
        ("restart", {}, OLD, "not started"),
        ("restart", {}, NEW, "not started"),
        ("restart", {}, (101, 1, "running"), "done"),
        ("restart", {}, GONE, "failed"),
        ("stop", {}, OLD, "not started"),
        ("stop", {}, (101, 1, "running"), "done"),
        ("stop", {}, GONE, "done"),
        ("stop", {}, (100, 1, "stopping"), None),
        ("reload", {}, TimedOut("silent"), None),
    ],
)
def test_what_became_of_an_unanswered_command_is_found_out_or_it_stays_unknown(
    method: str, options: dict[str, Any], seen: Any, outcome: str | None, before: str | None
) -> None:
    """Also if its operator was killed before that was written down."""

    class Client(Instance):
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *exception: object) -> None: ...

        def status(self, *, timeout: float = 1.0) -> dict[str, Any]:
            return super().status(timeout=timeout)

    class Here(LocalPlace):
        def __init__(self) -> None: ...

        def client(self, member: Member) -> Any:
            return Client(seen)

    [member] = members(1)
    member.asked, member.outcome = True, before
    with pytest.raises(ControlError, match="still unknown") if outcome is None else contextlib.nullcontext():
        start._find_out(member, {"method": method, "options": options}, Here())
    assert member.outcome == (outcome or before)


# Real instances

SHOP = """
import os, sys
from flask import Flask
from flask_ctl import Control
app = Flask(sys.argv[1])
Control(app)
@app.get("/")
def index():
    return "old"
if __name__ == "__main__":
    app.run(port=0)
"""


@pytest.fixture
def shops(serve: Serve, short_path: pathlib.Path) -> Callable[[int], list[Server]]:
    def start(number: int) -> list[Server]:
        started = []
        for n in range(number):
            directory = short_path / f"shop-{n:02}"
            directory.mkdir()
            (directory / "app.py").write_text(SHOP)
            command = [sys.executable, "app.py", directory.name]
            started.append(serve(command=command, cwd=directory, ready=False))
        return [server.ready() for server in started]

    return start


def edit(server: Server, text: str) -> None:
    (pathlib.Path(server.status()["cwd"]) / "app.py").write_text(text)


def roll(*words: str, code: int) -> dict[str, Any]:
    done = run_cli(*words, "--rolling", "--json", "--quiet", cwd="/", timeout=120)
    assert done.returncode == code, (done.stdout, done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_the_broken_one_ends_the_rollout_and_a_resumed_one_does_the_rest(
    shops: Callable[[int], list[Server]], short_path: pathlib.Path
) -> None:
    servers = shops(3)
    edit(servers[1], "1 / 0")
    assert run_cli("reload", "--rolling").returncode == 2, "it is for several"
    assert run_cli("reload", "--all", "--batch", "2").returncode == 2, "it is for a rollout"
    for wrong in (["--batch", "0"], ["--batch", "x"], ["--max-failures", "101%"], ["--confirm", "1"]):
        assert run_cli("reload", "--all", "--rolling", *wrong).returncode == 2, wrong
    assert run_cli("reload", "--name", "nothing", "--rolling").returncode == 3
    assert ARCHIVE.ids() == [], "nothing was asked"

    document = roll("reload", "--all", code=1)
    assert outcomes(document) == ["done", "refused", "not started"]
    assert [target["exit"] for target in document["targets"]] == [0, 7, 1]
    assert "ZeroDivisionError" in document["targets"][1]["message"]
    assert [server.status()["generation"] for server in servers] == [2, 1, 1]
    shown = run_cli("rollout", "status")
    assert (shown.returncode, shown.stdout.count("\n")) == (0, 5)
    assert "1 done, 1 refused, 1 not started; ended by too many failures" in shown.stdout

    edit(servers[1], SHOP)
    resumed = run_cli("rollout", "resume", document["id"], timeout=120)
    assert resumed.returncode == 0, resumed
    assert [server.status()["generation"] for server in servers] == [2, 2, 2]
    assert ARCHIVE.load(None)["id"] == document["id"]
    assert "3 done" in run_cli("rollout", "history").stdout

    stopped = roll("stop", "--all", "--yes", "--batch", "50%", code=0)
    assert outcomes(stopped) == ["done"] * 3
    assert [server.wait() for server in servers] == [0, 0, 0]


@pytest.mark.full
def test_a_killed_operators_rollout_is_resumed_without_doing_anything_twice(
    shops: Callable[[int], list[Server]],
) -> None:
    """It was killed while one instance was asked, whose outcome nobody has written down."""
    servers = shops(2)
    document = roll("reload", "--all", code=0)
    servers[1].reload()
    for target, generation in zip(document["targets"], (2, 2)):
        target.update(asked=True, outcome=None, generation=generation)
    fields = [Member(**target) for target in document["targets"]]
    with FileRecord(document, fields) as record:
        record.document.update(ended=None, end=None)
        record.save()
    assert "reload: 2 asked; its operator was killed" in run_cli("rollout", "status").stdout
    done = run_cli("rollout", "resume", "--json", timeout=120)
    assert done.returncode == 0, done
    assert [server.status()["generation"] for server in servers] == [3, 3]
    assert [target["message"] for target in ARCHIVE.load(None)["targets"]] == ["", "found when the rollout was resumed"]

    # A reload of the configuration leaves nothing to see: nobody is asked again.
    config = ARCHIVE.load(None)
    for target in config["targets"]:
        target.update(asked=True, outcome=None)
    with FileRecord(config, [Member(**target) for target in config["targets"]]) as record:
        record.document.update(ended=None, end=None, options={"what": "config", "preflight": True})
        record.save()
    unknown = run_cli("rollout", "resume", timeout=120)
    assert unknown.returncode == 1, unknown
    assert unknown.stdout.count("unknown, generation 3: a reload of the configuration leaves nothing to see") == 2

    # An instance that still runs the command has no outcome yet.
    servers[1].suspend()
    with FileRecord(ARCHIVE.load(None), fields) as record:
        record.save()
    silent = run_cli("rollout", "resume", "--timeout", "0.5")
    assert silent.returncode == 1, silent
    assert [target["outcome"] for target in ARCHIVE.load(None)["targets"]][1] is None


@pytest.mark.full
def test_a_rollout_of_instances_of_which_one_is_broken_one_hangs_and_one_is_killed(
    shops: Callable[[int], list[Server]],
) -> None:
    """The record says who runs what, and the clients of the others lose nothing."""
    servers = shops(6)
    broken, hanging, killed = 1, 2, 4
    edit(servers[broken], "1 / 0")
    kill = f"import os\nif os.environ.get('FLASK_CTL_SOCKET'):\n    os.kill({servers[killed].pid}, 9)\n"
    edit(servers[killed], kill + SHOP)
    addresses = {n: server.address for n, server in enumerate(servers) if n not in (hanging, killed)}
    servers[hanging].suspend()
    stop = threading.Event()

    def ask_all() -> int:
        number = 0
        while not stop.wait(0.01):
            for n, address in addresses.items():
                assert servers[n].get("/", address) == (200, b"old"), n
                number += 1
        return number

    clients = Pending.call(ask_all)
    document = roll("reload", "--all", "--batch", "2", "--max-failures", "3", "--timeout", "60", code=1)
    stop.set()
    assert clients.result() > 20
    expected = ["done"] * 6
    expected[broken], expected[hanging], expected[killed] = "refused", "unreachable", "failed"
    assert outcomes(document) == expected
    for n in addresses:
        assert document["targets"][n]["now"]["generation"] == servers[n].status()["generation"] == 1 + (n != broken)
    assert document["targets"][killed]["now"] is None
    until(lambda: servers[killed].process.poll() is not None, "it was killed")


def test_who_must_not_go_on_waits_for_nothing_more() -> None:
    """As without the lease; what has not answered is unknown."""
    chosen, answer = members(3), threading.Event()
    try:
        with new_record(chosen) as record:

            def act(member: Member) -> Answer:
                record.on_lost("another operator has it")
                answer.wait(TIMEOUT)
                return DONE

            said: list[str] = []
            Run(chosen, Plan(2), 0.0, act, record, said.append).complete()
    finally:
        answer.set()
    document = ARCHIVE.load(None)
    assert (document["end"], outcomes(document)) == ("interrupted", ["unknown", "unknown", "not started"])
    assert said == ["the rollout ends at once: another operator has it"]
