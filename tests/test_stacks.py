"""The stacks of this process's own threads and greenlets: what is shown, what is left out, what is not kept."""

from __future__ import annotations

import collections
import importlib
import os
import pathlib
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness import until

from flask_ctl.inspection import stacks as module
from flask_ctl.inspection.sources import Sources
from flask_ctl.inspection.stacks import INNER, OUTER, stacks, stacks_of, stacks_together
from flask_ctl.protocol.jsonrpc import encode
from flask_ctl.servers.middleware import InFlight, RequestCounter


class Serving:
    """An app whose requests run `view` in threads, until the gate opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.view: Callable[[], Any] = self.gate.wait
        self.requests = RequestCounter(self._serve)
        self.exceptions: Any = None
        self._pool = ThreadPoolExecutor(8, "server")

    def begin(self, id: str, view: Callable[[], Any] | None = None) -> None:
        before = self.requests.in_flight
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/{id}", "HTTP_X_REQUEST_ID": id, "view": view or self.view}
        self._pool.submit(lambda: self.requests(environ, lambda *_: None).close())  # type: ignore[attr-defined]
        until(lambda: self.requests.in_flight > before, id)

    def close(self) -> None:
        self.gate.set()
        self._pool.shutdown()

    def _serve(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["view"]()
        return []


@pytest.fixture
def app() -> Iterator[Serving]:
    serving = Serving()
    yield serving
    serving.close()


def shown(app: Any, request: str | None = None, everything: bool = False) -> list[dict[str, Any]]:
    [answer] = stacks(app.requests, request=request, everything=everything)
    found: list[dict[str, Any]] = answer["stacks"]
    return found


def when_waiting(app: Serving, count: int = 1) -> list[dict[str, Any]]:
    """The stacks, once so many requests wait at the gate."""

    def waiting() -> Any:
        found = shown(app)
        ends = [stack["frames"][-1]["function"].rpartition(".")[2] for stack in found if stack["frames"]]
        return found if ends == ["wait"] * count else None

    found: list[dict[str, Any]] = until(waiting, f"{count} wait")
    return found


def test_a_stack_ends_where_its_request_waits(app: Serving) -> None:
    def pay() -> None:
        app.gate.wait()

    app.begin("a", pay)
    [stack] = when_waiting(app)
    [frame] = [frame for frame in stack["frames"] if frame["function"].endswith("pay")]
    assert (frame["file"], frame["source"]) == (__file__, "app.gate.wait()")
    assert stack["frames"][-1]["file"] == threading.__file__
    assert (stack["thread"], stack["greenlet"], stack["note"]) == ("server_0", None, "")
    assert stack["thread_id"] in map(int, os.listdir("/proc/self/task"))
    assert (stack["request"]["path"], stack["request"]["id"]) == ("/a", "a")


def test_the_oldest_request_is_first_and_one_can_be_asked_for(app: Serving) -> None:
    for id in "abc":
        app.begin(id)
    assert [stack["request"]["id"] for stack in when_waiting(app, 3)] == ["a", "b", "c"]
    assert [stack["request"]["id"] for stack in shown(app, "b")] == ["b"]
    assert shown(app, "d") == []


def test_the_number_of_a_thread_of_another_process_is_not_shown(app: Serving) -> None:
    def stale() -> None:
        threading.current_thread()._native_id = 1  # type: ignore[attr-defined]
        app.gate.wait()

    app.begin("a", stale)
    assert [stack["thread_id"] for stack in when_waiting(app)] == [None]


def test_with_all_idle_threads_follow_and_each_thread_is_there_once(app: Serving) -> None:
    app.begin("a")
    when_waiting(app)
    first, *others = shown(app, everything=True)
    assert first["request"]["id"] == "a"
    assert {stack["request"] for stack in others} == {None}
    assert "MainThread" in {stack["thread"] for stack in others}
    numbers = [stack["thread_id"] for stack in (first, *others)]
    assert len(numbers) == len(set(numbers))


def test_of_a_deep_stack_both_ends_are_shown(app: Serving) -> None:
    def deep(number: int = 500) -> None:
        if number:
            deep(number - 1)
        else:
            app.gate.wait()

    app.begin("a", deep)
    [stack] = when_waiting(app)
    names = [frame["function"].rpartition(".")[2] for frame in stack["frames"]]
    assert len(names) == OUTER + INNER
    assert stack["left_out"]["after"] == OUTER
    assert 400 < stack["left_out"]["frames"] < 500
    assert (names[0], names[-1]) == ("_bootstrap", "wait")
    assert "pay" not in names


def test_what_takes_too_much_room_is_counted(app: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    for id in "abc":
        app.begin(id)
    one, *_ = when_waiting(app, 3)
    monkeypatch.setattr(module, "MAX_BYTES", 2 * len(encode(one)) + 100)
    [answer] = stacks(app.requests, request=None, everything=False)
    assert [stack["request"]["id"] for stack in answer["stacks"]] == ["a", "b"]
    assert answer["left_out"] == 1
    monkeypatch.setattr(module, "MAX_STACKS", 1)
    [answer] = stacks(app.requests, request=None, everything=False)
    assert (len(answer["stacks"]), answer["left_out"]) == (1, 2)


def test_the_work_for_one_answer_does_not_grow_with_the_requests(app: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def counting(name: str, of: Any) -> None:
        real = getattr(of, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            return real(*args)

        monkeypatch.setattr(of, name, counted)

    calls: collections.Counter[str] = collections.Counter()
    bodies = [
        app.requests({"HTTP_X_REQUEST_ID": id, "view": lambda: None}, lambda *_: None) for id in "abcabcabc"
    ]  # fmt: skip
    counting("full_description", module)
    counting("_described", module)
    counting("_current_frames", sys)
    for most, room, request, shown, described in (
        (9, 10**6, None, 9, 9),
        (4, 10**6, None, 4, 4),
        (9, 10**6, "b", 3, 3),
        (9, 1, None, 0, 1),
    ):
        monkeypatch.setattr(module, "MAX_STACKS", most)
        monkeypatch.setattr(module, "MAX_BYTES", room)
        calls.clear()
        [answer] = stacks(app.requests, request=request, everything=False)
        assert len(answer["stacks"]) == shown
        assert answer["left_out"] == (3 if request else 9) - shown
        assert calls["full_description"] == min(most, 3 if request else 9)
        assert (calls["_described"], calls["_current_frames"]) == (described, 1)
    del bodies


def test_processes_share_the_room_of_one_answer() -> None:
    stack = {"request": None, "thread": "x" * 100}
    room = 6 * len(encode({"worker": 1, **stack})) + 20
    answers = [
        {"worker": 1, "stacks": [stack] * 5, "left_out": 1, "notes": []},
        {"worker": 2, "stacks": [stack], "left_out": 0, "notes": ["something"]},
    ]
    together = stacks_together(answers, room)
    assert [one["worker"] for one in together["stacks"]] == [1, 1, 1, 2]
    assert (together["left_out"], together["notes"]) == (3, ["pid 2: something"])
    old, young = ({"request": {"age": age}} for age in (9.0, 1.0))
    answers = [
        {"worker": 1, "stacks": [young, {"request": None}], "left_out": 0, "notes": []},
        {"worker": 2, "stacks": [old], "left_out": 0, "notes": []},
    ]
    assert [one["worker"] for one in stacks_together(answers, room)["stacks"]] == [2, 1, 1]
    assert stacks_together([], room) == {"stacks": [], "left_out": 0, "notes": []}


class Local:
    """Something that a frame holds."""


def test_no_frame_is_kept(app: Serving) -> None:
    gone: list[weakref.ref[Local]] = []

    def hold() -> None:
        local = Local()
        gone.append(weakref.ref(local))
        app.gate.wait()

    app.begin("a", hold)
    when_waiting(app)
    shown(app, everything=True)
    app.gate.set()
    until(lambda: app.requests.in_flight == 0, "the end")
    until(lambda: gone[0]() is None, "its local variables are free")


def test_a_request_whose_thread_has_ended_is_told_as_such(app: Serving) -> None:
    def forgotten() -> None:
        """Werkzeug, for one, may call no close()."""
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/lost", "view": lambda: None}
        kept.append(app.requests(environ, lambda *_: None))

    kept: list[Any] = []
    thread = threading.Thread(target=forgotten)
    thread.start()
    thread.join()
    [stack] = shown(app)
    assert (stack["frames"], stack["note"]) == ([], "its thread has ended")
    kept.clear()


@pytest.mark.parametrize("request_id", [None, "old", "new"])
def test_of_requests_of_one_thread_only_the_newest_has_its_stack(app: Serving, request_id: str | None) -> None:
    notes = {"old": "its thread has ended, or serves another request", "new": ""}
    forgotten = app.requests({"HTTP_X_REQUEST_ID": "old", "view": lambda: None}, lambda *_: None)
    told = []
    view = lambda: told.extend(shown(app, request_id))  # noqa: E731
    app.requests({"HTTP_X_REQUEST_ID": "new", "view": view}, lambda *_: None).close()  # type: ignore[attr-defined]
    assert {stack["request"]["id"]: stack["note"] for stack in told} == {
        id: note for id, note in notes.items() if request_id in (None, id)
    }
    for stack in told:
        if stack["request"]["id"] == "old":
            assert (stack["frames"], stack["thread"], stack["thread_id"], stack["greenlet"]) == ([], None, None, None)
        else:
            assert (stack["frames"] != [], stack["thread"]) == (True, "MainThread")
    del forgotten


# Source lines


def code_in(path: pathlib.Path) -> str:
    path.write_text("first = 1\n    password = 'hunter2'\n")
    return str(path)


def sources_of(*paths: Any) -> Sources:
    """Those of the first lines of some files, which were not changed since the start."""
    sources = Sources((str(path), number) for path in paths for number in range(-1, 4))
    sources._loaded_at += 3600
    return sources


def test_a_source_line_is_shown_without_secrets(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = code_in(tmp_path / "code.py")
    sources = sources_of(path)
    assert sources.line(path, 1) == "first = 1"
    assert sources.line(path, 2) == "password = ***"
    assert [sources.line(path, number) for number in (0, 3, -1)] == [None] * 3


def test_a_file_that_has_been_changed_since_the_start_is_not_read(tmp_path: pathlib.Path) -> None:
    path = code_in(tmp_path / "code.py")
    assert Sources([(path, 1)]).line(path, 1) is None


def test_what_is_no_file_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    paths = (tmp_path / "fifo", tmp_path, "<string>", "relative.py", "/dev/zero", tmp_path / "missing")
    sources = sources_of(*paths)
    for path in paths:
        assert sources.line(str(path), 1) is None


def test_only_so_many_files_are_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_ctl.inspection.sources.MAX_FILES", 1)
    one, two = code_in(tmp_path / "one.py"), code_in(tmp_path / "two.py")
    sources = sources_of(one, two)
    assert [sources.line(one, 1), sources.line(two, 1), sources.line(one, 1)] == ["first = 1", None, "first = 1"]


def test_only_so_many_bytes_are_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = code_in(tmp_path / "one.py"), code_in(tmp_path / "two.py")
    small = tmp_path / "small.py"
    small.write_text("last = 1\n")
    monkeypatch.setattr("flask_ctl.inspection.sources.MAX_READ", os.path.getsize(one) + 10)
    sources = sources_of(one, two, small)
    assert [sources.line(str(path), 1) for path in (one, two, small)] == ["first = 1", None, "last = 1"]


def test_no_line_is_kept_but_the_wanted_ones(tmp_path: pathlib.Path) -> None:
    path = code_in(tmp_path / "code.py")
    sources = Sources([(path, 1)])
    sources._loaded_at += 3600
    assert [sources.line(path, number) for number in (1, 2)] == ["first = 1", None]
    assert sources._files == {path: {1: b"first = 1"}}


def test_for_slow_requests_no_source_is_read(app: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    app.begin("a")
    when_waiting(app)
    monkeypatch.setattr(Sources, "_read", lambda *_: pytest.fail("read"))
    in_flight = app.requests.requests_in_flight()
    [stack] = stacks_of(in_flight, in_flight)
    assert {frame["source"] for frame in stack["frames"]} == {None}


# Greenlets

greenlet: Any = importlib.import_module("greenlet")


def test_greenlets_are_searched_for_only_in_a_memory_of_moderate_size(
    app: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: Any = greenlet.greenlet(lambda: waiting.parent.switch())
    waiting.switch()
    found = [stack["greenlet"] for stack in shown(app, everything=True)]
    assert hex(id(waiting)) in found
    monkeypatch.setattr(module, "MAX_BLOCKS", 1)
    [answer] = stacks(app.requests, request=None, everything=True)
    assert not any(stack["greenlet"] for stack in answer["stacks"])
    [note] = answer["notes"]
    assert note.startswith("greenlets without a request were not searched for among ")
    waiting.switch()


def test_a_greenlet_that_has_ended_is_told_as_such() -> None:
    ended = greenlet.greenlet(lambda: None)
    ended.switch()
    request = InFlight(0, 1.0, {}, ended)
    app = types.SimpleNamespace(requests=types.SimpleNamespace(requests_in_flight=lambda: [request]))
    [stack] = shown(app)
    assert (stack["frames"], stack["note"]) == ([], "its greenlet has ended")
    assert stack["greenlet"] == hex(id(ended))


def test_only_a_caller_that_wants_all_has_the_memory_searched_for_greenlets(
    app: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []

    def search() -> list[Any]:
        searched.append("memory")
        return []

    monkeypatch.setattr("gc.get_objects", search)
    app.begin("one")
    shown(app)
    in_flight = app.requests.requests_in_flight()
    stacks_of(in_flight, in_flight)
    assert searched == []
    shown(app, everything=True)
    assert searched == ["memory"]
