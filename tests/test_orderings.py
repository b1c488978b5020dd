"""Every ordering of a stop, a reload, signals, hooks and what fails, for a server in one process.

The HTTP server and the program are fakes; all between them is what runs in a real process.
"""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NoReturn

import pytest
from fakes import Gate, Scene
from harness import TIMEOUT, until

from flask_ctl.errors import CommandError, ReloadFailed, TimedOut
from flask_ctl.lifecycle import commit
from flask_ctl.lifecycle import reload as reloading
from flask_ctl.lifecycle import stop as stopping

Make = Callable[..., Scene]

DRAINED = {"outcome": "drained", "cut": 0}


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for in vain takes no time."""
    monkeypatch.setattr(commit, "MIN_UNWIND", 0.1)
    monkeypatch.setattr(reloading, "PAUSE", 0.02)
    monkeypatch.setattr(reloading, "THREAD_INTERVAL", 0.005)
    monkeypatch.setattr(stopping, "IDLE_LINGER", 0.0)
    monkeypatch.setattr(stopping, "SETTLE_TIME", 0.01)
    monkeypatch.setattr(stopping, "HOOKS_TIMEOUT", 0.05)


@pytest.fixture
def make(short_path: pathlib.Path) -> Iterator[Make]:
    scenes = []

    def make(**options: Any) -> Scene:
        scenes.append(Scene(short_path, **options))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.close()


@pytest.fixture
def scene(make: Make) -> Scene:
    return make()


def failure(future: Future[Any]) -> CommandError:
    error = future.exception(TIMEOUT)
    assert isinstance(error, CommandError), error
    return error


def gate_of(scene: Scene, phase: str) -> Gate:
    program = scene.program
    gates = {"preflight": program.preflight, "hooks": scene.on_stop, "unwinding": program.unwinding}
    return {**gates, "exit functions": program.exit_function}[phase]


def reach(scene: Scene, phase: str, **options: Any) -> Future[Any]:
    """A reload that hangs in a phase; the Future has its failure."""
    if phase == "drain":
        scene.held = scene.server.begin()
        answer = scene.reload(**options)
        until(lambda: scene.reload_is_in("drain"), "the drain")
    else:
        gate_of(scene, phase).shut()
        answer = scene.reload(**options)
        assert gate_of(scene, phase).reached.wait(TIMEOUT)
    return answer


def let_go(scene: Scene, phase: str) -> None:
    """Let what the reload hangs in come to its end."""
    if phase == "drain":
        scene.server.answer(scene.held)
    else:
        gate_of(scene, phase).open()


BEFORE = ("preflight", "drain")
AFTER = ("hooks", "unwinding", "exit functions")


def test_a_reload_replaces_the_program_by_itself(scene: Scene) -> None:
    scene.reload()
    how, state = scene.program.wait()
    assert how == "exec"
    assert state["instance"]["reload"]["left_behind"] == {}
    assert scene.hooks_ran == 1
    assert scene.connection.kept == [{"id": 1}], "the next image owes the answer"
    assert scene.server.log == ["keep alive: False", "leave", "hand over"]


@pytest.mark.parametrize("phase", BEFORE)
@pytest.mark.parametrize("by", ["graceful", "fast", "TERM", "INT"])
def test_a_stop_before_the_commit_calls_the_reload_off(scene: Scene, phase: str, by: str) -> None:
    reload = reach(scene, phase)
    stop = scene.signal(by) if by.isupper() else scene.stop(by)
    error = failure(reload)
    assert error.code == -32002
    assert "called off by a stop" in error.message
    cut = phase == "drain" and by == "fast"
    if not cut:
        let_go(scene, phase)
    assert stop.result(TIMEOUT).items() >= ({"outcome": "forced", "cut": 1} if cut else DRAINED).items()
    assert scene.program.wait() == ("end", 0)
    assert scene.hooks_ran == 1
    assert scene.status()["last_reload"]["ok"] is False


@pytest.mark.parametrize("phase", BEFORE)
def test_a_stop_that_calls_a_reload_off_ends_with_the_last_answer(scene: Scene, phase: str) -> None:
    """The reload's thread may still be at work: it takes no wake-up away from the stop."""
    held = scene.server.begin()
    reload = reach(scene, phase)
    stop = scene.signal("TERM")
    assert failure(reload).code == -32002
    operation = scene.instance._reload
    assert operation is not None
    assert operation.wait(TIMEOUT)
    until(lambda: scene.stop_is_in("drain"), "the drain")
    if phase == "drain":
        let_go(scene, phase)
    scene.server.answer(held)
    assert stop.result(TIMEOUT)["cut"] == 0


class Awaited(threading.Event):
    """Opens a gate as soon as it is waited for."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def wait(self, timeout: float | None = None) -> bool:
        self.gate.open()
        return super().wait(timeout)


def test_the_server_ends_only_when_the_caller_of_a_reload_has_been_answered(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread may have begun to answer just before the stop, and be slower."""
    reload, gate = reach(scene, "drain"), Gate()
    answered: list[bool] = []
    operation = scene.instance._reload
    assert operation is not None
    operation.answered = Awaited(gate)
    gate.shut()

    def set_exception(error: BaseException) -> None:
        gate()
        Future.set_exception(operation.result, error)

    monkeypatch.setattr(operation.result, "set_exception", set_exception)
    end = scene.server.end

    def note_end() -> None:
        answered.append(reload.done())
        end()

    monkeypatch.setattr(scene.server, "end", note_end)
    threading.Thread(target=operation.settle, args=(CommandError("broken"),)).start()
    assert gate.reached.wait(TIMEOUT)
    stop = scene.signal("TERM")
    let_go(scene, "drain")
    assert stop.result(TIMEOUT)["cut"] == 0
    assert scene.program.wait() == ("end", 0)
    assert answered == [True]
    assert failure(reload).message == "broken"


@pytest.mark.parametrize("phase", AFTER)
@pytest.mark.parametrize("by", ["a client", "TERM", "INT"])
def test_a_graceful_stop_after_the_commit_goes_over_the_exec(scene: Scene, phase: str, by: str) -> None:
    reload = reach(scene, phase)
    stop = scene.stop() if by == "a client" else scene.signal(by)
    stopping = scene.status()["stopping"]
    assert scene.status()["state"] == "reloading"
    assert (stopping["mode"], stopping["deadline"]) == ("graceful", None)
    let_go(scene, phase)
    how, state = scene.program.wait()
    assert how == "exec"
    assert not reload.done()
    assert not stop.done()
    assert scene.connection.kept == [{"id": 1}]
    (accepted,) = state["instance"]["stops"]
    assert accepted["by"] == ({"pid": 2} if by == "a client" else {"signal": by})


def test_a_signal_that_comes_while_the_state_is_handed_over_goes_over_the_exec(scene: Scene) -> None:
    """Slow clients and collectors of metrics have a second each."""
    hand_over = scene.server.hand_over

    def signalled() -> dict[str, Any]:
        scene.instance.request_stop("graceful", {"signal": "TERM"})
        return hand_over()

    scene.server.hand_over = signalled  # type: ignore[method-assign]
    scene.reload()
    how, state = scene.program.wait()
    assert how == "exec"
    (accepted,) = state["instance"]["stops"]
    assert accepted["by"] == {"signal": "TERM"}


@pytest.mark.parametrize("phase", AFTER)
@pytest.mark.parametrize(
    "by", [["fast"], ["TERM", "TERM"], ["INT", "INT"], ["graceful", "fast"], ["TERM", "fast"]], ids="+".join
)
def test_a_fast_stop_after_the_commit_ends_the_process_whatever_hangs(scene: Scene, phase: str, by: list[str]) -> None:
    reload = reach(scene, phase)
    stops = [scene.signal(each) if each.isupper() else scene.stop(each) for each in by]
    for stop in stops:
        result = stop.result(TIMEOUT)
        assert result.items() >= DRAINED.items()
        assert (result.get("hooks") == "unfinished") == (phase == "hooks")
    assert failure(reload).code == -32002
    how, code = scene.program.wait()
    assert (how, code) in [("end", 0), ("exit", 0)]
    assert scene.connection.kept == []
    assert not scene.socket.exists()


def test_a_fast_stop_that_is_accepted_just_before_the_exec_is_answered(scene: Scene) -> None:
    """The standard streams are flushed then, which may take a second."""
    answers = []
    sent = threading.Event()

    def stop() -> None:
        answers.append(scene.stop("fast"))
        answers[0].add_done_callback(lambda answer: scene.instance._control.call_soon(sent.set))

    scene.program.flush = stop  # type: ignore[method-assign]
    scene.reload()
    assert scene.program.wait() == ("end", 0)
    assert answers[0].result(TIMEOUT).items() >= DRAINED.items()
    assert sent.is_set()
    assert not scene.socket.exists()


@pytest.mark.parametrize("phase", AFTER)
def test_the_visitors_that_wait_at_the_door_are_cut_by_it(scene: Scene, phase: str) -> None:
    scene.server.copies.waiting = 3
    reach(scene, phase)
    assert scene.stop("fast").result(TIMEOUT).items() >= {"outcome": "forced", "cut": 3}.items()
    scene.program.wait()


@pytest.mark.parametrize("first", ["TERM", "INT"])
@pytest.mark.parametrize("second", ["TERM", "INT"])
def test_only_the_same_signal_once_more_is_an_end(scene: Scene, first: str, second: str) -> None:
    reach(scene, "hooks")
    scene.signal(first)
    scene.signal(second)
    let_go(scene, "hooks")
    assert scene.program.wait()[0] == ("exec" if first != second else "end")


@pytest.mark.parametrize(
    ("phase", "left"),
    [
        ("hooks", {"hooks": "unfinished"}),
        ("unwinding", {"hooks": "unfinished"}),
        ("exit functions", {"hooks": "unfinished"}),
    ],
)
def test_what_hangs_after_the_commit_is_left_behind_at_the_end_of_the_grace(
    scene: Scene, phase: str, left: dict[str, str]
) -> None:
    reach(scene, phase, grace=0.0)
    how, state = scene.program.wait()
    assert how == "exec"
    assert state["instance"]["reload"]["left_behind"] == left


def test_after_the_commit_nobody_is_served_by_the_old_code(scene: Scene) -> None:
    reach(scene, "hooks")
    assert not scene.server.serves
    let_go(scene, "hooks")
    scene.program.wait()


FAILS = {
    "no interpreter": lambda scene: scene.program.fails.update(check=PermissionError(13, "can't be executed")),
    "no descriptor for a listener": lambda scene: setattr(
        scene.server.copies, "fails", OSError(24, "Too many open files")
    ),
}


@pytest.mark.parametrize("fail", FAILS.values(), ids=FAILS)
def test_what_cannot_be_had_before_the_commit_leaves_the_old_code_serving(
    scene: Scene, fail: Callable[[Scene], None]
) -> None:
    fail(scene)
    error = failure(scene.reload())
    assert error.code == -32603
    assert "the old code still serves" in error.message
    until(lambda: scene.server.serves, "it serves")
    assert scene.hooks_ran == 0
    assert scene.status()["state"] == "running"
    scene.reload()
    assert scene.program.wait()[0] == "exec"


STARTS = {
    "no descriptor for the preflight": lambda scene, patch: scene.program.fails.update(
        start_preflight=OSError(24, "Too many")
    ),
    "no thread": lambda scene, patch: patch.setattr(threading.Thread, "start", no_thread_once(patch)),
}


def no_thread_once(patch: pytest.MonkeyPatch) -> Callable[[threading.Thread], NoReturn]:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> NoReturn:
        patch.setattr(threading.Thread, "start", start)
        raise RuntimeError("can't start new thread")

    return fail


@pytest.mark.parametrize("fail", STARTS.values(), ids=STARTS)
def test_a_reload_that_cannot_begin_can_be_asked_for_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Scene, pytest.MonkeyPatch], None]
) -> None:
    fail(scene, monkeypatch)
    assert failure(scene.reload()).code == -32603
    assert scene.status()["state"] == "running"
    scene.reload()
    assert scene.program.wait()[0] == "exec"


def test_a_stop_needs_no_thread_that_is_not_there_yet(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    start = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda thread: start(thread) if "fake" in thread.name else fail(thread)
    )
    assert scene.stop().result(TIMEOUT).items() >= DRAINED.items()
    assert scene.program.wait() == ("end", 0)


def test_an_exec_that_fails_ends_the_process_with_1(scene: Scene) -> None:
    scene.program.fails["execute"] = OSError(2, "No such file or directory")
    scene.reload()
    assert scene.program.wait() == ("exit", 1)
    assert not scene.socket.exists()


def test_a_hand_over_that_fails_ends_the_process_with_1(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene.server, "hand_over", lambda: 1 / 0)
    scene.reload()
    assert scene.program.wait() == ("exit", 1)
    assert not scene.socket.exists()


def test_broken_code_is_refused_and_can_be_tried_again(scene: Scene) -> None:
    scene.program.broken = "SyntaxError"
    assert isinstance(scene.reload().exception(TIMEOUT), ReloadFailed)
    assert scene.server.serves
    scene.program.broken = None
    scene.reload()
    assert scene.program.wait()[0] == "exec"


def test_past_the_grace_the_reload_is_given_up(scene: Scene) -> None:
    held = scene.server.begin()
    error = scene.reload(grace=0.0).exception(TIMEOUT)
    assert isinstance(error, TimedOut)
    assert "1 still in flight" in error.message
    assert scene.server.serves
    scene.server.answer(held)
    assert scene.server.log[-1] == "keep alive: True"


def test_with_cut_the_rest_is_cut_past_the_grace(scene: Scene) -> None:
    scene.server.begin()
    scene.reload(grace=0.0, cut=True)
    how, state = scene.program.wait()
    assert (how, state["instance"]["reload"]["cut"]) == ("exec", 1)


class TestThreads:
    """The program's own threads that are not daemon threads, and the workers of its executors."""

    def test_without_a_hook_the_reload_waits_for_them(self, make: Make) -> None:
        scene = make(hooks=False)
        scene.program.threads.append("worker")
        scene.reload()
        until(lambda: scene.reload_is_in("drain"), "the drain")
        assert scene.program.fate is None
        scene.program.threads.clear()
        assert scene.program.wait()[0] == "exec"

    def test_without_a_hook_it_is_given_up_after_the_grace_and_names_them(self, make: Make) -> None:
        scene = make(hooks=False)
        scene.program.threads.append("worker")
        error = scene.reload(grace=0.0).exception(TIMEOUT)
        assert isinstance(error, TimedOut)
        for text in ("worker", "daemon", "on_stop", "cut", "the old code still serves"):
            assert text in error.message
        assert scene.server.serves

    @pytest.mark.parametrize(("hooks", "cut"), [(True, False), (True, True), (False, True)])
    def test_with_a_hook_or_cut_those_that_stay_are_left_behind(self, make: Make, hooks: bool, cut: bool) -> None:
        scene = make(hooks=hooks)
        scene.program.threads.append("worker")
        scene.reload(grace=0.0, cut=cut)
        how, state = scene.program.wait()
        assert how == "exec"
        assert state["instance"]["reload"]["left_behind"] == {"threads_left": ["worker"]}
        assert scene.program.exit_function.reached.is_set(), "exit functions have run"

    def test_those_that_a_hook_ends_are_not(self, make: Make) -> None:
        scene = make()
        scene.program.threads.append("worker")
        scene.on_stop.shut()
        scene.reload()
        assert scene.on_stop.reached.wait(TIMEOUT)
        scene.program.threads.clear()
        scene.on_stop.open()
        assert scene.program.wait()[1]["instance"]["reload"]["left_behind"] == {}

    def test_a_busy_executor_is_work_in_flight(self, scene: Scene) -> None:
        scene.program.busy.append("pool_0")
        error = scene.reload(grace=0.0).exception(TIMEOUT)
        assert isinstance(error, TimedOut)
        assert "1 still in flight" in error.message
        scene.program.busy.clear()
        scene.reload()
        assert scene.program.wait()[0] == "exec"


class TestStops:
    """Stops among themselves."""

    def test_a_second_one_joins(self, scene: Scene) -> None:
        held = scene.server.begin()
        stops = [scene.stop(), scene.stop(), scene.signal("TERM")]
        until(lambda: scene.stop_is_in("drain"), "the drain")
        assert not any(stop.done() for stop in stops)
        scene.server.answer(held)
        assert [stop.result(TIMEOUT)["cut"] for stop in stops] == [0, 0, 0]

    def test_one_that_only_follows_changes_nothing_and_gets_the_result_of_the_next_one(self, scene: Scene) -> None:
        """Its client may have gone: a supervisor can refuse to begin the stop."""
        held = scene.server.begin()
        followers = [scene.follow_stop("fast", 0.0)]
        assert scene.server.serves
        stop = scene.stop(grace=TIMEOUT)
        followers.append(scene.follow_stop("immediate", 0.0))
        until(lambda: scene.stop_is_in("drain"), "the drain")
        stopping = scene.status()["stopping"]
        assert (stopping["mode"], stopping["deadline_by"]) == ("graceful", {"pid": 2})
        scene.server.answer(held)
        assert [future.result(TIMEOUT)["cut"] for future in (stop, *followers)] == [0, 0, 0]

    def test_a_grace_that_is_given_shortens_that_of_the_first_and_never_lengthens_it(self, scene: Scene) -> None:
        scene.server.begin()
        seen: list[Any] = []
        first = scene.stop(grace=TIMEOUT, progress=seen.append)
        scene.stop(grace=10 * TIMEOUT)
        assert scene.status()["stopping"]["deadline_by"] == {"pid": 2}
        scene.stop(grace=0.0, by={"pid": 3})
        assert first.result(TIMEOUT)["cut"] == 1
        assert scene.status()["stopping"]["by"] == {"pid": 2}
        assert scene.status()["stopping"]["deadline_by"] == {"pid": 3}
        shortened = [progress for progress in seen if progress.get("deadline_by") == {"pid": 3}]
        assert shortened[0]["remaining"] == 0

    def test_a_grace_does_not_shorten_the_delay_of_the_stop_that_gives_it(self, scene: Scene) -> None:
        stop = scene.stop(grace=0.0, delay=TIMEOUT)
        assert scene.server.serves
        assert scene.status()["stopping"]["deadline_by"] == {"pid": 2}
        scene.stop(grace=0.0)
        assert stop.result(TIMEOUT).items() >= DRAINED.items()

    @pytest.mark.parametrize("by", [None, {"signal": "TERM"}], ids=["a client", "TERM"])
    def test_one_without_a_grace_of_its_own_shortens_nothing(self, scene: Scene, by: dict[str, str] | None) -> None:
        held = scene.server.begin()
        first = scene.stop(grace=TIMEOUT)
        deadline = scene.status()["stopping"]["deadline"]
        scene.stop(by=by)
        assert scene.status()["stopping"]["deadline"] == deadline
        scene.server.answer(held)
        assert first.result(TIMEOUT)["cut"] == 0

    def test_a_fast_one_ends_the_waiting_of_all(self, scene: Scene) -> None:
        scene.server.begin()
        stops = [scene.stop(), scene.stop("fast")]
        assert [stop.result(TIMEOUT)["cut"] for stop in stops] == [1, 1]

    def test_a_fast_one_alone_leaves_a_hook_that_hangs_and_tells_so(self, scene: Scene) -> None:
        scene.on_stop.shut()
        assert scene.stop("fast").result(TIMEOUT)["hooks"] == "unfinished"
        assert scene.program.wait() == ("end", 0)

    def test_a_hook_that_hangs_is_left_by_a_fast_one_and_that_is_told(self, scene: Scene) -> None:
        scene.on_stop.shut()
        first = scene.stop()
        assert scene.on_stop.reached.wait(TIMEOUT)
        assert not first.done()
        scene.stop("fast")
        assert first.result(TIMEOUT)["hooks"] == "unfinished"
        assert scene.program.wait() == ("end", 0)

    def test_a_reload_is_refused_meanwhile(self, scene: Scene) -> None:
        held = scene.server.begin()
        stop = scene.stop()
        assert failure(scene.reload()).code == -32002
        scene.server.answer(held)
        stop.result(TIMEOUT)

    def test_a_result_is_given_without_a_lock(self, scene: Scene) -> None:
        """Whoever waits for it may run the app's own handlers, which may ask the instance in turn."""
        stop = scene.stop()
        stop.add_done_callback(lambda future: scene.instance._notify())
        stop.result(TIMEOUT)
        scene.program.wait()

    def test_commands_in_flight_are_waited_for(self, scene: Scene) -> None:
        command = Gate()
        command.shut()
        scene.instance._pool.submit(command)
        stop = scene.stop()
        until(lambda: scene.stop_is_in("drain"), "the drain")
        assert not stop.done()
        command.open()
        assert stop.result(TIMEOUT)["cut"] == 0


@pytest.mark.parametrize("phase", [*BEFORE, *AFTER])
def test_a_second_reload_is_refused_in_every_phase(scene: Scene, phase: str) -> None:
    reach(scene, phase)
    assert failure(scene.reload()).code == -32002
    let_go(scene, phase)
    assert scene.program.wait()[0] == "exec"


def test_the_grace_begins_when_the_preflight_has_passed(scene: Scene) -> None:
    reload = reach(scene, "preflight", grace=0.0)
    let_go(scene, "preflight")
    assert scene.program.wait()[0] == "exec"
    assert not reload.done()
