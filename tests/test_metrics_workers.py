"""Metrics of several workers: no count falls, whichever way a worker or the hub ends."""

from __future__ import annotations

import json
import math
import os
import pathlib
import queue
import re
import signal
from typing import Any

import prometheus_client
import pytest
from fakes import Gate
from harness import TIMEOUT, Program, Serve, Server, suspend, until
from manyworkers import hub, kill, workers
from servers import SERVERS
from test_hub import entry
from test_metrics import values

from flask_ctl.inspection.metrics import family, own_families, pack
from flask_ctl.servers.middleware import RequestCounter
from flask_ctl.workers.hub.metrics import Merges, WorkersMetrics
from flask_ctl.workers.hub.table import MAX_WORKERS, Snapshot, Worker, Workers
from flask_ctl.workers.messages import SavedMetrics

DASHBOARD = pathlib.Path(__file__).parents[1] / "examples" / "grafana" / "flask-ctl.json"

REGISTRY = """
import prometheus_client
registry = prometheus_client.CollectorRegistry()
orders = prometheus_client.Counter("orders", "", registry=registry)
queue = prometheus_client.Gauge("queue", "", registry=registry, multiprocess_mode="livesum")
queue.set(2)
control.metrics.register(registry)
app.add_url_rule("/metrics", "metrics", control.metrics)
app.before_request(orders.inc)
"""


# The hub's accounts, in memory


def counted(requests: int, orders: int, in_flight: int = 0) -> Snapshot:
    own = [
        family("flask_ctl_requests", "counter", "", [["_total", {"method": "GET", "status": "2xx"}, requests]]),
        family("flask_ctl_requests_in_flight", "gauge", "", [["", {}, in_flight]]),
    ]
    return Snapshot(pack(own), pack([family("orders", "counter", "", [["_total", {}, orders]])]))


class Accounts:
    """A hub's metrics with workers that come, count and end."""

    def __init__(self) -> None:
        self.workers = Workers()
        self.metrics = WorkersMetrics(self.workers)
        self.pids = iter(range(10, 10 + MAX_WORKERS))

    def begin(self, index: int = 0) -> Worker:
        worker = entry(next(self.pids), index=index)
        self.workers.add(worker)
        return worker

    def end(self, worker: Worker, *, in_order: bool = True) -> None:
        worker.has_last_snapshot = in_order
        self.workers.remove(worker)
        self.metrics.retire(worker)

    def shown(self) -> dict[str, float]:
        return values(self.metrics.merge("x")().families)


def test_what_ended_workers_have_counted_stays_in_the_sum() -> None:
    accounts = Accounts()
    sent = 0
    seen: dict[str, float] = {}
    for number in range(20):
        worker = accounts.begin()
        worker.snapshots["x"] = counted(number, 2 * number, in_flight=1)
        sent += number
        for _ in range(2):
            shown = accounts.shown()
            assert shown['flask_ctl_requests_total{method="GET",status="2xx"}'] == sent
            assert shown["orders_total"] == 2 * sent
            assert all(shown[name] >= value for name, value in seen.items() if name.endswith("_total"))
            seen = shown
            if worker in accounts.workers:
                accounts.end(worker, in_order=number % 4 != 0)
    assert accounts.metrics.ended == [15, 5]
    assert not [name for name in accounts.shown() if "in_flight" in name]


def test_the_next_hub_goes_on_with_the_sums() -> None:
    accounts = Accounts()
    worker = accounts.begin()
    worker.snapshots["x"] = counted(5, 7)
    accounts.end(worker, in_order=False)
    following = Accounts()
    following.metrics.restore(accounts.metrics.export())
    assert following.shown() == accounts.shown()
    assert following.metrics.ended == [0, 1]


def test_sums_that_can_not_be_read_begin_anew(caplog: pytest.LogCaptureFixture) -> None:
    accounts = Accounts()
    accounts.metrics.restore(SavedMetrics({"x": "?"}, (3, 0)))
    assert accounts.shown() == {}
    assert "the metrics that a previous hub has left" in caplog.text


def test_malformed_metrics_of_a_worker_do_not_hide_those_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    accounts = Accounts()
    bad, good = accounts.begin(), accounts.begin()
    bad.snapshots["x"], good.snapshots["x"] = Snapshot(counted(2, 0).own, "?"), counted(3, 4)
    for _ in range(2):
        shown = accounts.shown()
        assert shown["orders_total"] == 4
        assert shown['flask_ctl_requests_total{method="GET",status="2xx"}'] == 5
        if bad in accounts.workers:
            accounts.end(bad)
    assert f"the metrics of worker {bad.pid}" in caplog.text
    accounts.end(good)


def test_a_worker_that_ends_while_metrics_are_added_up_is_counted_once() -> None:
    accounts = Accounts()
    one, two = accounts.begin(), accounts.begin()
    one.snapshots["x"], two.snapshots["x"] = counted(3, 4), counted(5, 6)
    accounts.end(one)
    merge = accounts.metrics.merge("x")
    accounts.end(two)
    assert values(merge().families)["orders_total"] == 10
    assert accounts.shown()["orders_total"] == 10


def test_metrics_are_added_up_outside_of_the_control_thread_and_who_asks_meanwhile_shares_the_next_answer() -> None:
    accounts, gate, calls = Accounts(), Gate(), queue.SimpleQueue[Any]()
    merge = accounts.metrics.merge

    def slow(key: str) -> Any:
        def add_up() -> Any:
            gate()
            return measure()

        measure = merge(key)
        return add_up

    accounts.metrics.merge = slow  # type: ignore[method-assign]
    merges = Merges(accounts.metrics, calls.put)
    gate.shut()
    first = merges.measured("x")
    assert gate.reached.wait(TIMEOUT)
    second, third = merges.measured("x"), merges.measured("x")
    assert not first.done()
    gate.open()
    first.result(TIMEOUT)
    assert not second.done()
    calls.get(timeout=TIMEOUT)()
    assert second.result(TIMEOUT) is third.result(TIMEOUT) is not first.result()
    calls.get(timeout=TIMEOUT)()
    assert calls.empty()


def test_a_worker_has_the_least_number_that_is_free_and_keeps_it_at_another_hub() -> None:
    accounts = Accounts()
    first, second, third = (accounts.begin() for _ in range(3))
    assert [first.index, second.index, third.index] == [1, 2, 3]
    accounts.end(second)
    assert accounts.begin().index == 2
    assert accounts.begin(index=7).index == 7
    assert accounts.begin(index=7).index == 4
    for worker in accounts.workers:
        accounts.end(worker)


# A real server


def metrics_of(server: Server) -> dict[str, float]:
    with server.client() as client:
        result = client.metrics()
    return values(result["families"])


def total(shown: dict[str, float]) -> float:
    return sum(value for name, value in shown.items() if name.startswith("flask_ctl_requests_total"))


def test_a_reload_and_a_view_keep_the_counts_of_all_workers(start: Serve, program: Program) -> None:
    program.file.write_text(program.file.read_text().replace("\n@app.get", f"{REGISTRY}\n@app.get", 1))
    server = start(SERVERS["gunicorn sync, 1 worker"])
    address = server.address
    for _ in range(3):
        server.get("/", address)
    server.reload()
    assert f"orders_total {4.0}".encode() in server.get("/metrics", address)[1].splitlines()
    until(lambda: total(metrics_of(server)) == 4, "four requests")
    assert metrics_of(server)["queue"] == 2


@pytest.mark.full
def test_counts_equal_the_requests_over_workers_reloads_a_killed_worker_and_a_killed_hub(
    start: Serve, program: Program
) -> None:
    program.edit("counted")
    program.file.write_text(program.file.read_text().replace("\n@app.get", f"{REGISTRY}\n@app.get", 1))
    server = start(SERVERS["gunicorn sync"], "--max-requests", "4")
    sent = 0
    address = server.address
    seen: dict[str, float] = {}

    def request(count: int, path: str = "/") -> None:
        nonlocal sent
        for _ in range(count):
            assert server.get(path, address)[0] == 200
            sent += 1

    def look() -> dict[str, float]:
        nonlocal seen
        shown = metrics_of(server)
        fallen = {
            name for name, value in seen.items() if re.search("_total|_count|_bucket", name) and shown[name] < value
        }
        assert not fallen, {name: (seen[name], shown[name]) for name in sorted(fallen)}
        seen = shown
        return shown

    def check() -> dict[str, float]:
        # What a worker that ends has counted last comes with its end.
        until(lambda: total(look()) == seen["orders_total"] == sent, lambda: f"{sent} requests: {seen}")
        return seen

    for _ in range(3):
        request(12)
        check()
        server.reload()
    until(lambda: len(workers(server)) == 2, "two workers")
    assert check()["queue"] == 4
    assert check()['flask_ctl_workers_ended_total{last_snapshot="yes"}'] >= 10
    assert check()['flask_ctl_workers_ended_total{last_snapshot="no"}'] == 0
    request(1)
    check()
    kill(workers(server)[0])
    until(lambda: metrics_of(server)['flask_ctl_workers_ended_total{last_snapshot="no"}'] == 1, "the end of a worker")
    check()
    kill(hub(server))
    until(lambda: server.status()["control"]["hub"] and len(workers(server)) == 2, "another hub")
    assert check()["flask_ctl_generation"] == 4
    status, text = server.get("/metrics", address)
    sent += 1
    assert status == 200
    assert f"orders_total {float(sent)}".encode() in text.splitlines()
    suspend(workers(server)[0])
    with server.client() as client:
        result = client.metrics()
    stopped = workers(server)[0]
    os.kill(stopped, signal.SIGCONT)
    assert [one["worker"] for one in result["unanswered"]] == [stopped]
    shown = values(result["families"])
    assert sum(value for name, value in shown.items() if name.startswith("flask_ctl_worker_stale")) == 1
    assert total(shown) >= sent - 1


# The dashboard


def test_the_dashboard_shows_only_metrics_that_there_are() -> None:
    requests = RequestCounter(lambda environ, start_response: [])
    requests.measure()
    names = {one["name"] for one in own_families(requests)}
    source = (pathlib.Path(__file__).parents[1] / "flask_ctl" / "lifecycle" / "metrics.py").read_text()
    names |= set(re.findall(r'"(flask_ctl_\w+)"', source))
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {name for text in expressions for name in re.findall(r"\bflask_ctl_\w+(?=\{)", text)}
    assert {re.sub("_total$|_bucket$", "", name) for name in used} <= names
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_values_that_json_lacks_reach_the_text() -> None:
    registry = prometheus_client.CollectorRegistry()
    for number, value in enumerate((math.inf, -math.inf)):
        prometheus_client.Gauge(f"g{number}", "", registry=registry).set(value)
    from flask_ctl.inspection.registries import Registries

    registries = Registries()
    registries.add(registry, {})
    assert values(json.loads(json.dumps(registries.families()))) == {"g0": math.inf, "g1": -math.inf}
