"""What a stop and a reload tell of requests and workers that were lost behind a hub, on `fakehub`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from fakehub import FakeWorker, World, world
from harness import first_quick


@pytest.fixture(params=first_quick(range(5)))
def seed(request: pytest.FixtureRequest) -> int:
    """Orders of what comes at the same time."""
    return int(request.param)


def busy(w: World, count: int = 1) -> FakeWorker:
    """A worker with so many requests in flight, of which the hub knows."""
    worker = w.living()[0]
    for _ in range(count):
        worker.begin()
    w.run(lambda: w.hub.workers.in_flight == count)
    return worker


def test_what_a_worker_has_counted_is_in_the_sum_though_it_ends_while_it_is_asked(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: Callable[[], Any]) -> NoReturn:
        raise RuntimeError("no thread")

    # Added up at once, on the control thread.
    monkeypatch.setattr("flask_ctl.workers.hub.metrics.start_thread", refuse)
    with world(seed) as w:
        ending, other = w.living()
        for worker in (ending, other):
            worker.begin()
            worker.finish()
            worker.tell_metrics()
        prompt = w.hub.workers.named(other.pid, "worker")
        w.run(lambda: all(one.snapshots for one in w.hub.workers))
        ending.metrics_hang = True
        asked = w.ask("metrics")
        w.run(lambda: ending.metrics_asked and other.metrics_asked and not prompt._calls)
        ending.die()
        w.run(lambda: asked.done)
        (requests,) = (one for one in asked.result["families"] if one["name"] == "flask_ctl_requests")
        assert [sample[2] for sample in requests["samples"]] == [2]


# Requests that the server itself ends


@pytest.mark.parametrize("others", [0, 1])
def test_a_request_that_the_server_aborts_in_a_drain_is_cut_and_not_finished(seed: int, others: int) -> None:
    with world(seed) as w:
        aborted, other = busy(w), w.living()[1]
        for _ in range(others):
            other.begin()
        stop = w.ask("stop", grace=60.0)
        w.run(lambda: "drain" in stop.phases)
        aborted.abort()
        other.finish()
        w.run()
        assert (stop.result["outcome"], stop.result["cut"], stop.result["drained"]) == ("forced", 1, others)
        assert "died" not in stop.result


def test_what_was_aborted_before_a_stop_is_not_the_stops(seed: int) -> None:
    with world(seed) as w:
        aborted = busy(w)
        aborted.abort()
        w.run(lambda: not aborted.alive)
        stop = w.ask("stop")
        w.run()
        assert (stop.result["outcome"], stop.result["cut"], stop.result["drained"]) == ("drained", 0, 0)


def test_what_the_server_aborts_during_a_reload_is_cut(seed: int) -> None:
    with world(seed) as w:
        old = busy(w)
        reload = w.ask("reload", grace=60.0)
        w.run(lambda: "drain" in reload.phases)
        old.abort()
        w.run(lambda: reload.done)
        assert (reload.result["cut"], w.lost) == (1, 1)
        assert w.answer("status").result["last_reload"]["cut"] == 1


def test_a_worker_that_is_killed_during_a_reload_takes_its_requests_with_it(seed: int) -> None:
    with world(seed) as w:
        old = busy(w, 2)
        reload = w.ask("reload", grace=60.0)
        w.run(lambda: "drain" in reload.phases)
        old.die()
        w.run(lambda: reload.done)
        assert (reload.result["cut"], w.lost) == (2, 2)


@pytest.mark.parametrize("how", ["abort", "die"])
def test_what_is_lost_in_workers_that_a_reload_has_left_is_added_to_it(seed: int, how: str) -> None:
    with world(seed) as w:
        old = busy(w)
        assert w.answer("reload", grace=1.0).result["old_left"] == 1
        assert w.answer("status").result["last_reload"]["cut"] == 0
        getattr(old, how)()
        w.run(lambda: not w.hub.workers.get(old.pid))
        last = w.answer("status").result["last_reload"]
        assert (last["ok"], last["cut"], w.lost) == (True, 1, 1)
        assert w.memory["history"]["last_reload"]["cut"] == 1, "the next hub knows it, too"


def test_what_a_left_worker_answers_is_not_added(seed: int) -> None:
    with world(seed) as w:
        old = busy(w)
        w.answer("reload", grace=1.0)
        old.finish()
        w.run(lambda: not w.hub.workers.get(old.pid))
        assert w.answer("status").result["last_reload"]["cut"] == 0


def test_what_is_cut_by_force_is_counted_once(seed: int) -> None:
    with world(seed) as w:
        old = busy(w, 2)
        assert w.answer("reload", grace=1.0, cut=True).result["cut"] == w.lost == 2
        assert not old.alive
        assert w.answer("status").result["last_reload"]["cut"] == 2


def test_a_worker_that_dies_once_its_requests_are_counted_as_cut_is_not_counted_twice(seed: int) -> None:
    with world(seed) as w:
        worker = busy(w)
        for one in w.living():
            one.hook_hangs = True
        stop = w.ask("stop", grace=1.0)
        w.run(lambda: "hooks" in stop.phases)
        worker.die()
        for one in w.living():
            one.release_hooks()
        w.run()
        assert stop.result["cut"] == 1


# Workers that die


@pytest.mark.parametrize("count", [1, 2])
def test_workers_that_are_lost_in_a_hook_are_told(seed: int, count: int) -> None:
    with world(seed) as w:
        for worker in w.living()[:count]:
            worker.hook_kills = True
        stop = w.ask("stop")
        w.run()
        assert (stop.result["died"], stop.result["cut"]) == (count, 0)


def test_nobody_died_where_all_ended_in_order(seed: int) -> None:
    with world(seed, can_hold_back=False) as w:
        stop = w.ask("stop")
        w.run()
        assert "died" not in stop.result


@pytest.mark.parametrize("runs", [True, False])
def test_workers_that_run_no_exit_handlers_are_not_counted_as_died(seed: int, runs: bool) -> None:
    with world(seed, runs_exit_handlers=runs) as w:
        worker = busy(w)
        stop = w.ask("stop")
        w.run(lambda: "drain" in stop.phases)
        w.living()[1].die()
        worker.finish()
        w.run()
        assert stop.result.get("died") == (1 if runs else None)


def test_a_worker_that_was_forked_as_the_server_ended_does_not_hold_it_up(seed: int) -> None:
    """It has lost the master's signal, before it could hear of any."""
    with world(seed, deaf_while_loading=True) as w:
        w.living()[0].hook_kills = True
        w.load_is_held = True
        stop = w.ask("stop")
        w.run(lambda: w.master.stopping)
        w.sleep(1.0)
        assert len(w.living()) == 1
        w.release_load()
        w.run()
        assert not w.living()
        assert (stop.result["died"], stop.result["cut"]) == (1, 0)


@pytest.mark.parametrize("how", ["leave", "die"])
def test_new_workers_that_have_served_and_ended_in_order_count_as_new(seed: int, how: str) -> None:
    """Under gunicorn's --max-requests there may never be as many as wanted at once."""
    with world(seed) as w:
        w.load_is_held = True
        reload = w.ask("reload", preflight=False)
        w.run(lambda: "load" in reload.phases and not any(worker.serves for worker in w.living()))

        def come_and_go() -> None:
            worker = w._loading.pop(0)
            worker.hello()
            w.run(lambda: w.hub.workers.get(worker.pid))
            getattr(worker, how)()
            w.run(lambda: not w.hub.workers.get(worker.pid))

        for _ in range(3):
            come_and_go()
        w.run(lambda: reload.done)
        assert ("result" in reload.answers[0]) == (how == "leave")
