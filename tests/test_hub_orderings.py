"""Every ordering of stops, reloads, signals, hooks and deaths behind a hub: see `fakehub` for how they take no time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from fakehub import SIGNALS, Asked, FakeProcess, World, world
from harness import first_quick

from flask_ctl.workers import messages

SEEDS = range(3)
"""Orders of what comes at the same time."""

MODES = ["graceful", "fast", "immediate"]
CONFLICT, RELOAD_FAILED, TIMED_OUT, NOT_SUPPORTED, INTERNAL, DIED = -32002, -32004, -32005, -32001, -32603, -32007


@pytest.fixture(params=first_quick(SEEDS))
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def pids(w: World) -> list[int]:
    """The workers that the hub knows."""
    return [worker.pid for worker in w.hub.workers]


def assert_runs(w: World) -> None:
    """The server goes on: it tells so, can be reloaded, and can be stopped."""
    w.new_code, w.preflight, w.hooks_hang = "good", "passes", False
    w.release_load()
    status = w.answer("status").result
    assert (status["state"], status["stopping"]) == ("running", None)
    assert w.answer("reload", cut=True, grace=1.0).result["generation"] > status["generation"]
    assert_ends(w, w.ask("stop", grace=1.0))


def assert_ends(w: World, stop: Asked) -> None:
    """The stop is answered, and then nothing is left."""
    lost = w.lost
    w.run()
    assert not w.master.alive
    assert not w.living()
    result = stop.result
    assert (result["outcome"] == "forced") == bool(result["cut"])
    assert result["cut"] == w.lost - lost
    assert len(result.get("cut_requests", [])) <= result["cut"]


# The master alone


def test_a_master_that_ends_while_the_hub_looks_is_noticed() -> None:
    with world(wanted=0) as w:

        def ended() -> bool:
            seen = not w.master.alive
            w.master.die()
            return seen

        w.master.ended = ended  # type: ignore[method-assign]
        w.hub._changed()
        w.run()


# A stop alone


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["drains by itself", "does not", "can't hold back"])
@pytest.mark.parametrize("busy", ["idle", "answers in time", "never answers"])
def test_a_stop_tells_what_was_cut(seed: int, mode: str, kind: str, busy: str) -> None:
    with world(seed, drains_by_itself=kind != "does not", can_hold_back=kind != "can't hold back") as w:
        if busy != "idle":
            w.living()[0].begin()
        w.run(lambda: w.hub.workers.in_flight == (busy != "idle"))
        stop = w.ask("stop", mode=mode, grace=5.0)
        if busy == "answers in time" and mode == "graceful":
            w.run(lambda: "drain" in stop.phases)
            w.living()[0].finish()
        assert_ends(w, stop)
        expected = {"idle": 0, "answers in time": mode != "graceful", "never answers": 1}[busy]
        assert stop.result["cut"] == expected
        assert stop.result["drained"] == (busy == "answers in time" and mode == "graceful")


@pytest.mark.parametrize("first", ["graceful", "fast"])
@pytest.mark.parametrize("kind", ["drains by itself", "does not"])
def test_a_fast_stop_leaves_hooks_that_hang_behind(seed: int, first: str, kind: str) -> None:
    with world(seed, hooks_hang=True, drains_by_itself=kind != "does not") as w:
        workers = w.living()
        stop = w.ask("stop", mode=first)
        if first == "graceful":
            w.run(lambda: "hooks" in stop.phases)
            again = w.ask("stop", mode="fast")
            w.run(lambda: again.done)
        assert_ends(w, stop)
        assert stop.result["hooks"] == "unfinished"
        assert all(worker.exit_functions_ran for worker in workers)


def test_hooks_that_take_their_time_are_waited_for(seed: int) -> None:
    with world(seed, hooks_hang=True) as w:
        stop = w.ask("stop")
        w.run(lambda: "hooks" in stop.phases)
        w.sleep(100.0)
        assert not stop.done
        for worker in w.living():
            worker.release_hooks()
        assert_ends(w, stop)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["drains by itself", "does not"])
@pytest.mark.parametrize("other", ["idle", "busy"])
def test_what_a_worker_does_that_hears_nothing_is_not_said_to_be_done(
    seed: int, mode: str, kind: str, other: str
) -> None:
    with world(seed, drains_by_itself=kind != "does not") as w:
        deaf, hearing = w.living()
        deaf.deaf = True
        if other == "busy":
            hearing.begin()
            w.run(lambda: w.hub.workers.in_flight == 1)
        stop = w.ask("stop", mode=mode, grace=1.0)
        w.run()
        assert (stop.result["outcome"], stop.result["cut"]) == ("forced", 1 + (other == "busy"))
        assert not deaf.alive


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_cuts_nothing_that_it_does_not_know(seed: int, mode: str) -> None:
    """A worker reports its counts now and then."""
    with world(seed) as w:
        w.living()[0].begin(reported=False)
        stop = w.ask("stop", mode=mode, grace=1.0)
        w.run()
        assert stop.result["cut"] == w.lost == 1


@pytest.mark.parametrize("mode", MODES)
def test_connections_that_nobody_has_accepted_are_cut(seed: int, mode: str) -> None:
    with world(seed) as w:
        for worker in w.living():
            worker.waiting = 5
        stop = w.ask("stop", mode=mode, grace=1.0)
        w.run()
        assert (stop.result["outcome"], stop.result["cut"]) == ("forced", 5)


@pytest.mark.parametrize("mode", ["graceful", "fast"])
def test_what_workers_begin_that_can_not_let_go_of_their_sockets_is_cut(seed: int, mode: str) -> None:
    """As uWSGI's at a Unix socket: they accept connections until the end."""
    with world(seed, drains_by_itself=False, can_hold_back=False, hooks_hang=True) as w:
        first, second = w.living()
        first.begin()
        w.run(lambda: w.hub.workers.in_flight == 1)
        stop = w.ask("stop", mode=mode, grace=1.0)
        w.run(lambda: "hooks" in stop.phases)
        first.finish()
        second.begin(reported=False)
        second.begin(reported=False)
        for worker in w.living():
            worker.release_hooks()
        w.run()
        assert (stop.result["outcome"], stop.result["cut"]) == ("forced", 2)
        assert w.lost == 2


# A stop, and what comes meanwhile

PHASES = ["drain", "hooks", "end"]


def in_phase(w: World, phase: str) -> tuple[Asked, Callable[[], None]]:
    """A graceful stop that is in this phase, and what lets it go on."""
    busy = w.living()[0]
    if phase == "drain":
        busy.begin()
    for worker in w.living():
        worker.hook_hangs = phase == "hooks"
    w.end_is_held = phase == "end"
    stop = w.ask("stop")
    w.run(lambda: phase in stop.phases)

    def go_on() -> None:
        busy.finish()
        for worker in w.living():
            worker.release_hooks()
        w.release_end()

    return stop, go_on


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("mode", MODES)
def test_a_second_stop_joins_the_first(seed: int, phase: str, mode: str) -> None:
    with world(seed) as w:
        first, go_on = in_phase(w, phase)
        second = w.ask("stop", mode=mode)
        if mode == "graceful":
            w.run(lambda: second.phases or second.done)
            go_on()
        w.run(lambda: second.done)
        w.release_end()
        w.run()
        assert first.result == second.result
        assert not w.living()


@pytest.mark.parametrize("phase", PHASES)
def test_a_reload_during_a_stop_is_a_conflict(seed: int, phase: str) -> None:
    with world(seed) as w:
        stop, go_on = in_phase(w, phase)
        assert w.answer("reload").error == CONFLICT
        go_on()
        assert_ends(w, stop)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("command", ["status", "ping", "greet", "commands"])
def test_commands_are_answered_during_a_stop(seed: int, phase: str, command: str) -> None:
    with world(seed) as w:
        stop, go_on = in_phase(w, phase)
        assert "result" in w.answer(command).answers[0] or phase == "end"
        go_on()
        assert_ends(w, stop)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("who", ["the busy one", "another one", "all", "the master"])
def test_a_death_during_a_stop_leaves_an_answer_that_tells_what_was_lost(seed: int, phase: str, who: str) -> None:
    with world(seed) as w:
        stop, go_on = in_phase(w, phase)
        workers = w.living()
        dying: dict[str, Sequence[FakeProcess]] = {
            "the busy one": workers[:1], "another one": workers[1:2], "all": workers, "the master": [w.master],
        }  # fmt: skip
        for process in dying[who]:
            process.die()
        if who != "the master":
            assert w.answer("status").result["state"] == "stopping"
        go_on()
        w.run()
        assert stop.result["cut"] == w.lost


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("what", SIGNALS)
def test_signals_from_elsewhere_during_a_stop_lose_nothing(seed: int, phase: str, what: str) -> None:
    with world(seed) as w:
        stop, go_on = in_phase(w, phase)
        w.master.signal(SIGNALS[what])
        if what == "fast":
            w.run(lambda: not w.living())
        else:
            w.answer("status")
        go_on()
        w.run()
        assert stop.result["cut"] == w.lost


# A reload alone


@pytest.mark.parametrize("kind", ["drains by itself", "does not"])
@pytest.mark.parametrize("busy", ["idle", "answers in time"])
def test_a_reload_replaces_every_worker_and_loses_nothing(seed: int, kind: str, busy: str) -> None:
    with world(seed, drains_by_itself=kind != "does not") as w:
        before = w.living()
        if busy != "idle":
            before[0].begin()
        w.run(lambda: w.hub.workers.in_flight == (busy != "idle"))
        reload = w.ask("reload", grace=60.0)
        w.run(lambda: reload.done or {"drain", "load"} & set(reload.phases))
        before[0].finish()
        w.run(lambda: reload.done)
        assert (reload.result["generation"], reload.result["cut"], w.lost) == (2, 0, 0)
        assert not any(worker.alive for worker in before)
        assert {worker["generation"] for worker in w.answer("status").result["workers"]} == {2}
        assert_runs(w)


@pytest.mark.parametrize("kind", ["drains by itself", "does not"])
def test_a_reload_that_may_cut_tells_what_it_has_cut(seed: int, kind: str) -> None:
    with world(seed, drains_by_itself=kind != "does not") as w:
        w.living()[0].begin()
        w.run(lambda: w.hub.workers.in_flight)
        assert w.answer("reload", grace=1.0, cut=True).result["cut"] == w.lost == 1
        assert_runs(w)


@pytest.mark.parametrize("kind", ["drains by itself", "does not"])
def test_a_reload_that_may_cut_counts_what_it_can_not_know(seed: int, kind: str) -> None:
    """A worker that does not answer has something in flight."""
    with world(seed, drains_by_itself=kind != "does not") as w:
        stuck = w.living()[0]
        stuck.begin(reported=False)
        stuck.deaf = True
        assert w.answer("reload", grace=1.0, cut=True).result["cut"] == w.lost == 1
        assert not stuck.alive
        assert_runs(w)


def test_a_reload_that_may_cut_cuts_what_earlier_ones_have_left(seed: int) -> None:
    with world(seed) as w:
        left = w.living()[0]
        left.begin()
        assert w.answer("reload", grace=1.0).result["old_left"] == 1
        w.living()[-1].begin()
        began = w.clock.now
        assert w.answer("reload", grace=1.0, cut=True).result["cut"] == w.lost == 2
        assert not left.alive
        assert w.clock.now - began < 3
        assert_runs(w)


NEW = {"too few": 1, "never": 0}


@pytest.mark.parametrize("new_code", NEW)
def test_a_reload_whose_workers_do_not_come_is_told_and_the_server_goes_on(seed: int, new_code: str) -> None:
    with world(seed) as w:
        w.new_code = new_code
        [answer] = w.answer("reload").answers
        assert answer["error"]["code"] == INTERNAL
        assert answer["error"]["data"] == {"new": NEW[new_code], "wanted": 2, "old": 0}
        assert w.answer("status").result["last_reload"]["ok"] is False
        assert_runs(w)


def test_code_that_does_not_pass_the_preflight_is_refused(seed: int) -> None:
    with world(seed, preflight="fails") as w:
        before = w.living()
        assert w.answer("reload").error == RELOAD_FAILED
        assert w.living() == before
        assert_runs(w)


def test_code_that_kills_the_master_is_told(seed: int) -> None:
    with world(seed, new_code="kills the master") as w:
        reload = w.ask("reload")
        w.run()
        assert reload.error == DIED


# A reload, and what comes meanwhile

RELOAD_PHASES = ["preflight", "load", "drain"]


def in_reload(w: World, phase: str) -> tuple[Asked, Callable[[], None]]:
    """A reload that is in this phase, and what lets it go on."""
    busy = w.living()[0]
    w.preflight = "held" if phase == "preflight" else "passes"
    w.load_is_held = phase == "load"
    if phase == "drain":
        busy.begin()
    reload = w.ask("reload")
    w.run(lambda: phase in reload.phases)

    def go_on() -> None:
        w.preflight = "passes"
        w.wake()
        w.release_load()
        busy.finish()

    return reload, go_on


@pytest.mark.parametrize("phase", RELOAD_PHASES)
@pytest.mark.parametrize("mode", MODES)
def test_a_stop_calls_a_reload_off(seed: int, phase: str, mode: str) -> None:
    with world(seed) as w:
        reload, go_on = in_reload(w, phase)
        stop = w.ask("stop", mode=mode)
        w.run(lambda: reload.done)
        assert reload.error == CONFLICT
        if mode != "immediate":
            go_on()
        w.run()
        assert stop.result["cut"] == w.lost
        assert not w.living()


@pytest.mark.parametrize("phase", RELOAD_PHASES)
@pytest.mark.parametrize("command", ["status", "ping", "greet"])
def test_commands_are_answered_during_a_reload(seed: int, phase: str, command: str) -> None:
    with world(seed) as w:
        reload, go_on = in_reload(w, phase)
        assert "result" in w.answer(command).answers[0]
        assert w.answer("reload").error == CONFLICT
        go_on()
        w.run(lambda: reload.done)
        assert reload.result["cut"] == 0
        assert_runs(w)


@pytest.mark.parametrize("phase", RELOAD_PHASES)
@pytest.mark.parametrize("who", ["the busy one", "another one", "all", "the newest"])
def test_a_worker_that_dies_during_a_reload_does_not_hold_it_up(seed: int, phase: str, who: str) -> None:
    with world(seed) as w:
        reload, go_on = in_reload(w, phase)
        workers = w.living()
        for worker in {
            "the busy one": workers[:1],
            "another one": workers[1:2],
            "all": workers,
            "the newest": workers[-1:],
        }[who]:
            worker.die()
        w.answer("status")
        go_on()
        w.run(lambda: reload.done)
        assert reload.result["generation"] == 2
        assert_runs(w)


@pytest.mark.parametrize("phase", RELOAD_PHASES)
def test_a_master_that_dies_during_a_reload_is_told(seed: int, phase: str) -> None:
    with world(seed) as w:
        reload, go_on = in_reload(w, phase)
        w.master.die()
        w.run(lambda: reload.done)
        assert reload.error == DIED
        go_on()
        w.run()


# A new worker in the place of one


def test_a_worker_that_ends_before_it_is_recycled_is_not_signalled_any_more(seed: int) -> None:
    # Its handle is closed by then, and another worker's may have its number.
    with world(seed, preflight="held") as w:
        first, other = w.living()
        signals: list[int] = []
        first.signal = signals.append  # type: ignore[assignment, method-assign]
        recycled = w.ask("workers", recycle=first.pid)
        w.run(lambda: w.hub._change is not None)
        first.die()
        w.run(lambda: first.pid not in pids(w) and len(pids(w)) == 2)
        w.preflight = "passes"
        w.wake()
        w.run(lambda: recycled.done)
        assert (recycled.result["ended"], len(recycled.result["started"])) == ([first.pid], 1)
        assert signals == []
        assert other.alive


# A moment without a worker, as by gunicorn's --max-requests


def without_workers(w: World) -> None:
    w.load_is_held = True
    for worker in w.living():
        worker.die()
    w.run(lambda: not len(w.hub.workers))


def test_status_tells_what_the_last_worker_has_told(seed: int) -> None:
    with world(seed) as w:
        w.living()[0].begin()
        w.run(lambda: w.hub.workers.in_flight)
        without_workers(w)
        status = w.answer("status").result
        assert (status["server"]["name"], status["cwd"], status["requests"]["total"]) == ("fake", "/srv", 1)
        assert (status["workers"], status["workers_expected"]) == ([], 2)


def test_commands_wait_for_a_worker(seed: int) -> None:
    with world(seed) as w:
        without_workers(w)
        greet = w.ask("greet")
        w.sleep(5.0)
        assert not greet.done
        w.release_load()
        w.run(lambda: greet.done)
        assert "by " in greet.result[0]["result"]
        assert_runs(w)


def test_a_hub_that_is_to_give_way_ends_with_the_last_answer_of_a_worker(seed: int) -> None:
    with world(seed) as w:
        fake = w.living()[0]
        worker = w.hub.workers.get(fake.pid)
        assert worker is not None
        fake.deaf = True
        w.soon("test", worker.ask, 99, "nothing", {}, math.inf)
        w.soon(fake.pid, w.to_hub, fake, messages.request("received", {"id": 99}))
        w.sleep(10.0)
        w.hub._apps.outdated = True
        w.soon(fake.pid, w.to_hub, fake, messages.answer(99, None))
        w.run()


@pytest.mark.parametrize(("parameters", "seconds"), [({}, 30.0), ({"_timeout": 1.0}, 1.0)])
def test_commands_do_not_wait_for_ever(seed: int, parameters: dict[str, float], seconds: float) -> None:
    with world(seed) as w:
        without_workers(w)
        began = w.clock.now
        assert w.answer("greet", **parameters).error == TIMED_OUT
        assert seconds <= w.clock.now - began < seconds + 1
        assert_runs(w)


def test_a_command_that_waits_is_answered_when_the_server_ends(seed: int) -> None:
    with world(seed) as w:
        without_workers(w)
        greet = w.ask("greet")
        w.run(lambda: w.hub._requests._waiting)
        w.master.die()
        w.run()
        assert greet.error == CONFLICT


@pytest.mark.parametrize("preflight", [True, False])
def test_a_reload_goes_on_when_workers_are_there(seed: int, preflight: bool) -> None:
    with world(seed) as w:
        without_workers(w)
        reload = w.ask("reload", preflight=preflight)
        w.sleep(5.0)
        assert not reload.done
        w.release_load()
        w.run(lambda: reload.done)
        assert reload.result["generation"] == 2
        assert_runs(w)


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_needs_no_worker(seed: int, mode: str) -> None:
    with world(seed) as w:
        without_workers(w)
        assert_ends(w, w.ask("stop", mode=mode))


# When the system has nothing left to give


@pytest.mark.parametrize("command", ["reload", "stop"])
def test_what_finds_no_thread_has_done_nothing_and_can_be_repeated(seed: int, command: str) -> None:
    with world(seed) as w:
        w.threading.exhausted = True
        assert w.answer(command).error == INTERNAL
        w.threading.exhausted = False
        assert_runs(w)


# Anything


@pytest.mark.parametrize("walk", first_quick(range(100), count=25))
def test_whatever_happens_everybody_is_answered_and_a_fast_stop_ends_it(walk: int) -> None:
    choice = random.Random(walk)
    settings = {
        "drains_by_itself": choice.random() < 0.7,
        "can_hold_back": choice.random() < 0.8,
        "wanted": choice.randint(1, 3),
    }
    with world(walk, **settings) as w:
        asked = []
        for _ in range(choice.randint(3, 15)):
            if not w.master.alive:
                break
            workers = w.living()
            worker = choice.choice(workers) if workers else None
            what = choice.choice(["begin", "finish", "kill", "stop", "reload", "ask", "hang", "code", "wait", "signal"])
            if what == "begin" and worker and worker.serves and not worker.leaving:
                worker.begin()
            elif what == "finish" and worker:
                worker.finish()
            elif what == "kill" and worker and choice.random() < 0.3:
                worker.die()
            elif what == "stop" and choice.random() < 0.3:
                asked.append(w.ask("stop", mode="graceful", grace=choice.choice([0.0, 1.0, 30.0])))
            elif what == "reload":
                asked.append(w.ask("reload", grace=choice.choice([0.0, 1.0, 30.0]), cut=choice.random() < 0.5))
            elif what == "ask":
                asked.append(w.ask(choice.choice(["status", "greet", "ping"])))
            elif what == "hang" and worker and choice.random() < 0.3:
                worker.hook_hangs = True
            elif what == "code":
                w.new_code = choice.choice(["good", "good", "too few", "never"])
                w.preflight = choice.choice(["passes", "passes", "fails"])
            elif what == "signal" and choice.random() < 0.2:
                w.master.signal(SIGNALS["reload"])
            if what == "wait":
                w.sleep(choice.choice([0.0, 0.01, 0.3, 1.0, 5.0]))
        if w.main.is_alive():
            asked.append(w.ask("stop", mode="fast"))
            w.run()
        assert not w.master.alive
        assert not w.living()
        assert [len(one.answers) for one in asked] == [1] * len(asked)
