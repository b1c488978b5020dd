"""The audit log: a record for every order and every refusal, which nobody can forge and which tells no secret."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from harness import TIMEOUT, Pending, Program, Serve, Server, raw, read_all, until
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_ctl import CommandError, ServerReloaded
from flask_ctl.dispatch.commands import CommandRegistry, command_from
from flask_ctl.dispatch.dispatcher import Dispatcher
from flask_ctl.dispatch.guard import Guard
from flask_ctl.dispatch.peer import Peer, this_process
from flask_ctl.dispatch.policy import Policy
from flask_ctl.dispatch.redaction import MAX_PARAMETERS, MAX_TEXT, is_secret
from flask_ctl.dispatch.replies import Call
from flask_ctl.system import logs

STRANGER = Peer(pid=None, uid=54321, gid=54322)


def custom(text: str = "") -> str:
    """A command of the app's own."""
    return text


CUSTOM = command_from(custom)


class Bench:
    """A dispatcher with a few commands, and the audit log."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", logger="flask_ctl.audit")
        self.caplog = caplog
        self.future: Future[Any] = Future()
        registry = CommandRegistry(command_from(function, builtin=True) for function in (self.login, self.order))
        registry.add(command_from(self.look, role="observe", builtin=True))
        registry.add(CUSTOM)
        self.guard = Guard(Policy({"observe": frozenset([("uid", STRANGER.uid)])}))
        self.dispatcher = Dispatcher(registry, lambda command, arguments: self.future, self.guard)

    def login(self, call: Call, user: str = "", password: str = "", pin: int = 0, tags: list[str] = []) -> str:  # noqa: B006
        if user == "wrong":
            raise CommandError(f"{user} can't be {password} or {pin}")
        return password

    def order(self, call: Call, what: str = "") -> None:
        if what == "fail":
            raise ValueError(what)

    def look(self, call: Call) -> str:
        return "seen"

    def handle(self, method: str, params: Any = (), peer: Peer | None = None, **members: Any) -> Any:
        message = {"jsonrpc": "2.0", "method": method, "params": params or {}, "id": 1, **members}
        return self.dispatcher.handle(json.dumps(message).encode(), peer or this_process(), lambda data: None)

    @property
    def records(self) -> list[logging.LogRecord]:
        return [record for record in self.caplog.records if record.name == "flask_ctl.audit"]

    @property
    def audit(self) -> list[dict[str, Any]]:
        return [vars(record)["audit"] for record in self.records]

    def one(self) -> dict[str, Any]:
        [fields] = self.audit
        return fields


@pytest.fixture
def bench(caplog: pytest.LogCaptureFixture) -> Bench:
    return Bench(caplog)


# What is logged


def test_an_order_is_logged_with_who_what_and_how_it_ended(bench: Bench) -> None:
    bench.handle("order", {"what": "tea"})
    fields = bench.one()
    assert fields["peer"] == {**this_process().describe(), "program": fields["peer"]["program"]}
    assert (fields["command"], fields["parameters"], fields["outcome"]) == ("order", {"what": "tea"}, "done")
    assert fields["error"] is None
    assert fields["duration"] >= 0
    assert bench.records[0].levelno == logging.INFO
    who = f'uid {os.geteuid()}, gid {os.getegid()}, pid {os.getpid()}, program "'
    assert bench.records[0].getMessage().startswith(f'order(what="tea") by {who}')


def test_what_only_looks_is_not_logged(bench: Bench) -> None:
    bench.handle("look")
    bench.handle("look", peer=STRANGER)
    bench.handle("nothing")
    assert bench.audit == []


def test_an_order_that_fails_is_logged_with_code_and_text(bench: Bench) -> None:
    bench.handle("order", {"what": "fail"})
    assert bench.one()["error"] == {"code": -32603, "message": "ValueError: fail"}
    assert bench.records[0].levelno == logging.INFO
    assert bench.records[0].getMessage().endswith("s: -32603 ValueError: fail")
    assert bench.one()["outcome"] == "failed"


def test_an_order_with_wrong_parameters_is_an_order_that_failed(bench: Bench) -> None:
    bench.handle("order", {"whta": "tea"})
    assert (bench.one()["outcome"], bench.one()["error"]["code"]) == ("failed", -32602)
    assert bench.one()["parameters"] == {"whta": "***"}


@pytest.mark.parametrize("error", [None, ValueError("no")])
def test_an_order_that_takes_its_time_is_logged_when_it_is_done(bench: Bench, error: ValueError | None) -> None:
    bench.handle("custom", {"text": "x"})
    assert bench.audit == []
    if error is None:
        bench.future.set_result("x")
    else:
        bench.future.set_exception(error)
    assert bench.one()["outcome"] == ("failed" if error else "done")


def test_orders_are_logged_in_plain_text_batches_and_notifications_too(bench: Bench) -> None:
    bench.dispatcher.handle_plain(b"order what=tea", this_process())
    request = {"jsonrpc": "2.0", "method": "order", "params": ["tea"]}
    bench.dispatcher.handle(json.dumps([request, {**request, "id": 1}]).encode(), this_process(), lambda data: None)
    bench.dispatcher.handle(json.dumps(request).encode(), this_process(), lambda data: None)
    assert [fields["parameters"] for fields in bench.audit] == [{"what": "tea"}] * 4


def test_a_refusal_is_a_warning_with_who_what_and_why(bench: Bench) -> None:
    bench.handle("order", {"what": "tea"}, STRANGER)
    fields = bench.one()
    assert (fields["outcome"], fields["command"], fields["parameters"]) == ("refused", "order", {"what": "tea"})
    assert fields["peer"] == STRANGER.describe()
    assert fields["error"]["code"] == -32003
    assert bench.records[0].levelno == logging.WARNING
    assert bench.records[0].getMessage() == (
        'order(what="tea") by uid 54321, gid 54322: refused: -32003 uid 54321 may observe this server'
        " but not operate it; CTL_ALLOW of the app gives more"
    )


def test_a_refusal_is_logged_for_a_command_that_there_is_not(bench: Bench) -> None:
    bench.handle("nothing\nINFO done", {"a": "b"}, Peer())
    assert (bench.one()["command"], bench.one()["parameters"]) == ("nothing\nINFO done", {"a": "***"})
    assert bench.records[0].getMessage().startswith('nothing\\nINFO done(a="***") by unknown: refused: -32003 a peer')


def test_a_key_and_an_address_are_named(bench: Bench) -> None:
    bench.handle("order", {}, Peer(key="ann"))
    bench.handle("order", {}, Peer(address="127.0.0.1"))
    assert [fields["peer"].get("key") or fields["peer"]["address"] for fields in bench.audit] == ["ann", "127.0.0.1"]
    assert bench.records[0].getMessage().startswith('order() by key "ann": refused')
    assert bench.records[1].getMessage().startswith('order() by address "127.0.0.1": refused')


def test_who_is_refused_before_asking_is_logged_too(bench: Bench) -> None:
    bench.guard.reject(Peer(address="10.0.0.9"), "its key is not among the allowed ones")
    assert bench.one()["command"] is None
    message = 'address "10.0.0.9": refused: -32003 its key is not among the allowed ones'
    assert bench.records[0].getMessage() == message


def test_without_handlers_only_refusals_reach_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python's last resort does it."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    guard = Guard()
    guard.audit.begin(this_process(), command_from(lambda: None, name="order"), {}).done(None)
    guard.reject(STRANGER, "no")
    assert logs.flush(TIMEOUT)
    assert capsys.readouterr().err == "uid 54321, gid 54322: refused: -32003 no\n"


def test_a_filter_that_fails_costs_the_record_and_not_the_answer(bench: Bench) -> None:
    def fail(record: logging.LogRecord) -> bool:
        raise RuntimeError("no")

    logger = logging.getLogger("flask_ctl.audit")
    logger.addFilter(fail)
    try:
        assert json.loads(bench.handle("order"))["result"] is None
        assert logs.flush(TIMEOUT)
    finally:
        logger.removeFilter(fail)
    assert "a record of flask_ctl.audit could not be written" in bench.caplog.text


# Secrets, and what is too long


SECRETS = [
    "password",
    "PASSWD",
    "api_key",
    "apiKey",
    "secret",
    "auth_header",
    "db_credentials",
    "cookie",
    "pin",
    "token",
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_name_that_tells_of_a_secret_is_known(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["ping", "spin", "grace", "mode", "compass", "passenger", "option"])
def test_another_name_is_not(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    "params",
    [
        {"user": "ann", "password": "hunter2", "pin": 9876},
        ["ann", "hunter2", 9876],
        {"user": "wrong", "password": "hunter2", "pin": 9876},
        {"user": "ann", "password": ["hunter2"], "pin": "9876"},
        {"user": "ann", "passwort": "hunter2"},
        {"user": {"password": "hunter2"}, "tags": [{"password": "hunter2"}, ["hunter2"]]},
        ["ann", "x", 1, [], "hunter2", 9876],
    ],
    ids=["by name", "by position", "in the error", "of a wrong type", "misspelt", "nested", "one too many"],
)
@pytest.mark.parametrize("peer", [this_process(), STRANGER], ids=["done", "refused"])
def test_a_secret_is_nowhere_in_the_record(bench: Bench, params: Any, peer: Peer) -> None:
    bench.handle("login", params, peer)
    for text in (bench.records[0].getMessage(), json.dumps(bench.one())):
        assert "hunter2" not in text
        assert "9876" not in text


def test_a_secret_is_not_in_the_record_of_a_plain_command_either(bench: Bench) -> None:
    bench.dispatcher.handle_plain(b"login user=wrong password='hun\"ter\\2' pin=98x76", this_process())
    assert bench.one()["parameters"] == {"user": "wrong", "password": "***", "pin": "***"}
    assert bench.one()["error"]["message"] == "pin: must be an integer, not '***'"


def test_values_names_and_errors_are_cut_and_parameters_counted(bench: Bench) -> None:
    long = "x" * 100_000
    bench.handle("login", {"user": long, "tags": [long] * 1000, **{f"{n}{long}": n for n in range(1000)}})
    fields = bench.one()
    assert len(fields["parameters"]) == MAX_PARAMETERS + 1
    assert fields["parameters"]["…"] == f"{1002 - MAX_PARAMETERS} more"
    assert max(len(text) for item in fields["parameters"].items() for text in item) <= MAX_TEXT + 1
    assert len(fields["error"]["message"]) <= MAX_TEXT + 1
    assert len(bench.records[0].getMessage()) < 2 * MAX_TEXT * (MAX_PARAMETERS + 2)


EVIL = "x\n2026-01-01 INFO flask_ctl.audit stop() by uid 0: done\r\x1b[2J\x00\u2028\u202e\ud800"


def test_nobody_can_forge_a_line(bench: Bench) -> None:
    bench.handle(EVIL, {EVIL: EVIL}, Peer(uid=1))
    bench.handle("order", {"what": EVIL})
    bench.handle("order", {EVIL: EVIL})
    bench.dispatcher.handle_plain(f"order 'what={EVIL[:-1]}'".encode(), this_process())
    bench.handle("login", {"user": "wrong", "password": EVIL})
    bench.handle("order", {}, Peer(key=EVIL))
    assert len(bench.records) == 6
    for record in bench.records:
        assert record.getMessage().isascii()
        assert record.getMessage().isprintable()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@settings(deadline=None)
@given(name=st.text(), params=st.lists(ANYTHING) | st.dictionaries(st.text() | st.sampled_from(["text"]), ANYTHING))
def test_whatever_is_sent_is_one_bounded_line_and_json(name: str, params: Any) -> None:
    seen: list[logging.LogRecord] = []
    logger = logging.getLogger("flask_ctl.audit")

    def keep(record: logging.LogRecord) -> bool:
        seen.append(record)
        return False

    logger.addFilter(keep)
    try:
        with contextlib.suppress(CommandError):
            Guard().authorize(STRANGER, name, CUSTOM, params)
        assert logs.flush(TIMEOUT)
    finally:
        logger.removeFilter(keep)
    [record] = seen
    assert record.getMessage().isascii()
    assert record.getMessage().isprintable()
    assert len(json.dumps(vars(record)["audit"])) < 10 * MAX_TEXT * (MAX_PARAMETERS + 2)


def test_a_program_can_not_forge_a_line_by_its_name(bench: Bench) -> None:
    path = "/proc/self/comm"
    with open(path) as file:
        before = file.read().strip()
    with open(path, "w") as file:
        file.write("a\nb: done")
    try:
        bench.handle("order")
    finally:
        with open(path, "w") as file:
            file.write(before)
    assert bench.one()["peer"]["program"] == "a\nb: done"
    assert 'program "a\\nb: done"): done' not in bench.records[0].getMessage()
    assert 'program "a\\nb: done": done in' in bench.records[0].getMessage()


# Orders without an outcome


def test_at_the_end_of_the_server_what_still_runs_is_logged_as_cut(bench: Bench) -> None:
    bench.handle("custom")
    bench.guard.audit.close()
    assert (bench.one()["outcome"], bench.one()["error"]["message"]) == ("failed", "cut off by the end of the server")
    bench.future.set_result("too late")
    assert len(bench.audit) == 1


def test_an_entry_that_is_left_is_logged_by_the_next_image(bench: Bench) -> None:
    bench.handle("custom", {"text": "x"})
    left = json.loads(json.dumps(bench.guard.audit.export_state()))
    bench.future.set_result("not here")
    assert bench.audit == []
    [entry] = Guard().audit.restore_state(left)
    entry.done("there")
    assert (bench.one()["command"], bench.one()["parameters"], bench.one()["outcome"]) == (
        "custom",
        {"text": "x"},
        "done",
    )


def test_only_the_first_outcome_counts_whichever_thread_has_it(bench: Bench) -> None:
    bench.handle("custom")
    [entry] = bench.guard.audit._open
    threads = [threading.Thread(target=entry.done, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bench.audit) == 1


# Real servers


LOGGING = "import logging; logging.basicConfig(level='INFO', format='%(name)s|%(levelname)s|%(message)s', force=True)"


@pytest.fixture
def logged(serve: Serve, program: Program) -> Server:
    """A server of the edited program, whose output has the audit log."""
    program.edit("first", LOGGING)
    return serve(cwd=program.directory)


def audit_of(server: Any, count: int = 1) -> list[str]:
    """The audit log of a server, once it has so many records: a thread of its own writes them."""

    def records() -> list[str]:
        return [line.partition("|")[2] for line in server.lines if line.startswith("flask_ctl.audit|")]

    until(lambda: len(records()) >= count, "the audit log")
    return records()


def by_us() -> str:
    return f"by uid {os.geteuid()}, gid {os.getegid()}, pid {os.getpid()}, program"


def test_a_reload_is_logged_once_refused_by_the_old_image_done_by_the_new_one(logged: Server, program: Program) -> None:
    program.edit("second", "import no_such_module")
    with pytest.raises(CommandError):
        logged.reload()
    program.edit("second", LOGGING)
    assert logged.reload()["generation"] == 2
    with raw(logged.socket) as sock:
        sock.sendall(b"reload\n")
        assert b"generation 3" in read_all(sock)
    refused, done, in_text = audit_of(logged, 3)
    asked = f'INFO|reload(what="code", cut=false, preflight=true) {by_us()}'
    assert refused.startswith(asked)
    assert ": failed in " in refused
    assert "-32004 the new code was refused" in refused
    assert done.startswith(asked)
    assert ": done in " in done
    assert in_text.startswith("INFO|reload(")


def test_a_command_that_a_reload_cuts_is_logged_by_the_next_image(logged: Server) -> None:
    with raw(logged.socket) as sock:
        sock.sendall(b'{"jsonrpc":"2.0","method":"wait_for","params":{"name":"x"},"id":1}\n')
        until(lambda: logged.status()["state"] == "running", "an answer")
        assert logged.reload(grace=0, cut=True)["generation"] == 2
    lines = sorted(line.partition("(")[0] + line.partition("s: ")[2] for line in audit_of(logged, 2))
    assert lines == ["INFO|reload", f"INFO|wait_for-32006 {ServerReloaded.before('wait_for').message}"]


@pytest.mark.full
def test_stops_that_come_too_late_for_a_reload_to_be_called_off_are_logged_by_the_next_image(
    serve: Serve, program: Program
) -> None:
    """Their callers are told that they may have run."""
    # A command that lets the hook go on might lose its own answer to the exec.
    gate = program.directory / "gate"
    os.mkfifo(gate)
    hook = "@control.on_stop\ndef hold_on(): say('held'); open('gate').close()"
    program.edit("first", f"{LOGGING}\n{hook}")
    server = serve(cwd=program.directory)
    program.edit("second", LOGGING)
    reload = Pending.call(server.reload)
    until(lambda: "held" in server.lines, "no way back")
    with raw(server.socket) as batch, raw(server.socket) as single:
        batch.sendall(b'[{"jsonrpc":"2.0","method":"stop","params":{"grace":1},"id":1}]\n')
        single.sendall(b'{"jsonrpc":"2.0","method":"stop","params":{"grace":2},"id":2}\n')
        until(lambda: server.status()["stopping"], "they are read")
        gate.write_text("")
        assert reload.result()["generation"] == 2
        for stop in (json.loads(read_all(batch))[0], json.loads(read_all(single))):
            assert (stop["error"]["code"], stop["error"]["data"]) == (-32006, {"may_have_run": True})
    assert server.wait() == 0
    commands = sorted(line.partition("(")[0] for line in audit_of(server))
    assert commands == ["INFO|reload", "INFO|stop", "INFO|stop"]
    assert all(": done in" in line for line in audit_of(server))


def test_an_immediate_stop_is_logged_before_the_process_ends(logged: Server) -> None:
    with raw(logged.socket) as sock:
        sock.sendall(b'{"jsonrpc":"2.0","method":"wait_for","params":{"name":"x"},"id":1}\n')
        with logged.client() as client:
            client.stop(mode="immediate")
    logged.wait()
    stop, cut = sorted(audit_of(logged))
    assert stop.startswith('INFO|stop(mode="immediate"')
    assert cut.startswith('INFO|wait_for(name="x"')
    assert "-32603 cut off by the end of the server" in cut


def test_a_stop_is_logged_once_when_it_is_done(logged: Server) -> None:
    with logged.client() as client:
        client.stop(grace=7)
    logged.wait()
    [line] = audit_of(logged)
    assert line.startswith("INFO|stop(")
    assert "grace=7" in line
    assert ": done in " in line


def test_a_signal_is_no_order_of_a_peer(logged: Server) -> None:
    os.kill(logged.pid, signal.SIGTERM)
    assert logged.wait() == 0
    assert audit_of(logged, 0) == []
