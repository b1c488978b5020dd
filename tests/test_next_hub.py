"""A hub that is killed during a reload: the next one finishes the watch, and tells the truth. On `fakehub`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from io import FileIO
from typing import Any

import pytest
from fakehub import FakeWorker, World, world
from harness import first_quick

from flask_ctl.system import metrics
from flask_ctl.workers.hub.history import HubHistory
from flask_ctl.workers.hub.table import Workers
from flask_ctl.workers.messages import SavedHistory, SavedState
from flask_ctl.workers.state_file import StateFile


@pytest.fixture(params=first_quick(range(5)))
def seed(request: pytest.FixtureRequest) -> int:
    """Orders of what comes at the same time."""
    return int(request.param)


def reloading(w: World, phase: str, **options: Any) -> FakeWorker:
    """A reload in this phase, with a request in flight in an old worker."""
    busy = w.living()[0]
    busy.begin()
    w.load_is_held = phase == "load"
    w.preflight = "held" if phase == "preflight" else "passes"
    w.run(lambda: w.hub.workers.in_flight)
    reload = w.ask("reload", **{"grace": 60.0, **options})
    w.run(lambda: phase in reload.phases)
    return busy


def status(w: World) -> Any:
    return w.answer("status").result


def settled(w: World) -> Any:
    w.run(lambda: w.hub._reload is None and w.hub._history.begun is None)
    return status(w)


@pytest.mark.parametrize("keeper", ["the state file", "the workers"])
@pytest.mark.parametrize("phase", ["load", "drain"])
def test_the_next_hub_finishes_the_watch(seed: int, phase: str, keeper: str) -> None:
    with world(seed) as w:
        w.state_file.broken = keeper == "the workers"
        busy = reloading(w, phase)
        w.run(lambda: not w._ways)
        w.kill_hub()
        w.next_hub()
        w.run(lambda: w.hub._reload is not None)
        during = status(w)
        assert (during["state"], during["generation"], during["last_reload"]) == ("reloading", 1, None)
        w.release_load()
        busy.finish()
        after = settled(w)
        assert (after["state"], after["generation"]) == ("running", 2)
        last = after["last_reload"]
        assert (last["ok"], last["generation"], last["cut"]) == (True, 2, 0)
        assert last["by"]["pid"]
        assert {worker["generation"] for worker in after["workers"]} == {2}


def test_it_waits_for_an_old_worker_that_does_not_connect_to_it(seed: int) -> None:
    with world(seed) as w:
        busy = reloading(w, "drain")
        w.kill_hub()
        w.next_hub(busy)
        w.sleep(5.0)
        assert status(w)["state"] == "reloading"
        busy.finish()
        assert settled(w)["generation"] == 2


@pytest.mark.parametrize("cut", [False, True])
def test_the_grace_goes_on(seed: int, cut: bool) -> None:
    with world(seed) as w:
        busy = reloading(w, "drain", grace=20.0, cut=cut)
        began = w.clock.now
        w.sleep(10.0)
        w.kill_hub()
        w.next_hub(busy)
        after = settled(w)
        assert w.clock.now - began < 22
        assert (after["generation"], after["last_reload"]["cut"]) == (2, int(cut))
        assert busy.alive != cut


def test_the_next_hub_names_the_requests_that_were_cut_before(seed: int) -> None:
    with world(seed) as w:
        left = w.living()[0]
        left.begin()
        w.run(lambda: w.hub.workers.in_flight == 1)
        assert w.answer("reload", grace=1.0).result["old_left"] == 1
        busy = next(worker for worker in w.living() if worker is not left)
        busy.begin()
        reload = w.ask("reload", grace=60.0, cut=True)
        w.run(lambda: "drain" in reload.phases and not w._ways)
        w.kill_hub()
        w.next_hub()
        w.run(lambda: w.hub._reload is not None)
        busy.finish()
        last = settled(w)["last_reload"]
        assert (last["cut"], last["generation"]) == (1, 3)
        assert [(cut["worker"], cut["route"]) for cut in last["cut_requests"]] == [(left.pid, "/")]


def test_old_workers_that_are_gone_before_the_next_hub_knows_a_new_one_take_nothing_with_them(seed: int) -> None:
    """Those that keep what it has to know have ended, and the new ones have not been told."""
    with world(seed) as w:
        w.load_is_held = True
        w.ask("reload")
        w.run(lambda: not any(worker.serves for worker in w.living()))
        w.kill_hub()
        w.next_hub()
        w.release_load()
        w.run(lambda: len(w.hub.workers) == 2)
        after = settled(w)
        assert (after["generation"], after["last_reload"]["ok"]) == (2, True)


def test_new_workers_that_do_not_come_are_told_by_the_next_hub(seed: int) -> None:
    with world(seed) as w:
        w.new_code = "never"
        busy = reloading(w, "load")
        w.kill_hub()
        w.next_hub()
        after = settled(w)
        assert (after["generation"], after["last_reload"]["ok"]) == (1, False)
        assert "0 of 2 new workers" in after["last_reload"]["error"]
        assert busy.alive


def test_a_reload_that_the_master_was_not_asked_for_is_not_gone_on_with(seed: int) -> None:
    with world(seed) as w:
        busy = reloading(w, "preflight")
        w.kill_hub()
        w.next_hub()
        w.run(lambda: len(w.hub.workers) == 2)
        after = status(w)
        assert (after["state"], after["generation"], after["last_reload"]) == ("running", 1, None)
        assert busy.alive


@pytest.mark.parametrize("mode", ["graceful", "fast"])
def test_a_stop_calls_off_what_the_next_hub_watches(seed: int, mode: str) -> None:
    with world(seed) as w:
        busy = reloading(w, "drain")
        w.kill_hub()
        w.next_hub()
        w.run(lambda: w.hub._reload is not None)
        stop = w.ask("stop", mode=mode)
        w.run(lambda: stop.phases or stop.done)
        busy.finish()
        w.run()
        assert stop.result["cut"] == w.lost
        assert not w.living()


def test_workers_keep_their_generation(seed: int) -> None:
    with world(seed) as w:
        busy = reloading(w, "drain", grace=1.0)
        w.run(lambda: w.hub._reload is None)
        w.kill_hub()
        w.next_hub()
        w.run(lambda: len(w.hub.workers) == 3)
        after = status(w)
        assert {worker["pid"]: worker["generation"] for worker in after["workers"]}[busy.pid] == 1
        busy.die()
        w.run(lambda: len(w.hub.workers) == 2)
        assert status(w)["last_reload"]["cut"] == 1


def test_a_failed_preflight_of_a_server_that_is_gone_is_no_refusal(seed: int) -> None:
    with world(seed, preflight="held") as w:
        reload = w.ask("reload")
        w.run(lambda: "preflight" in reload.phases)
        w.preflight = "fails"
        w.master.die()
        w.run(lambda: reload.done)
        assert reload.error == -32007


# The state file


def test_the_start_of_the_server_stays_the_same_when_the_clock_is_set(
    file: FileIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which clients tell two instances of the same pid apart."""
    monkeypatch.setattr(metrics, "age_of", lambda pid: 100.0)
    first = HubHistory(1, Workers(), StateFile(file.fileno()))
    first.save(None)
    monkeypatch.setattr(metrics, "age_of", lambda pid: 4000.0)
    assert HubHistory(1, Workers(), StateFile(file.fileno())).started_at == first.started_at


@pytest.fixture
def file(tmp_path: pathlib.Path) -> Iterator[FileIO]:
    with open(tmp_path / "lock", "w+b", buffering=0) as file:
        yield file


def memory(number: int, **totals: Any) -> SavedState:
    return SavedState(number, totals, SavedHistory(1))


def test_a_state_file_tells_what_was_written_last(file: FileIO) -> None:
    state_file = StateFile(file.fileno())
    assert state_file.read() is None
    for kept in (memory(1, first=(1, 2), second=(3, 4)), memory(2)):
        state_file.write(kept)
        assert StateFile(file.fileno()).read() == kept


@pytest.mark.parametrize("text", [b"", b"{", b"[]\n", b"\xff\n", b"{}\n", json.dumps({"number": 1}).encode() + b"\n"])
def test_what_makes_no_sense_in_it_is_nothing(file: FileIO, text: bytes) -> None:
    file.write(text)
    assert StateFile(file.fileno()).read() is None


def test_a_state_file_that_can_not_be_written_costs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with open("/dev/full", "r+b", buffering=0) as full:
        state_file = StateFile(full.fileno())
        state_file.write(memory(1))
        state_file.write(memory(2))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
