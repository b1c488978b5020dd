"""Metrics: what a process counts, how processes are put together, and the text for Prometheus."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
from fakes import Gate
from flask import Flask
from harness import TIMEOUT, Server, run_cli, until
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Exemplar, Timestamp

from flask_ctl import BackgroundServer, ConfigurationError, Control, ControlClient, ControlError, exposition
from flask_ctl.dispatch.pool import SIZE, Pool
from flask_ctl.inspection import metrics
from flask_ctl.inspection.exposition import OPENMETRICS, prefers_openmetrics
from flask_ctl.inspection.levels import LogLevels
from flask_ctl.inspection.metrics import Family, Part, Totals, family, merged, own_families, pack, unpack
from flask_ctl.inspection.registries import Registries
from flask_ctl.lifecycle.history import History
from flask_ctl.lifecycle.processes import OwnProcess
from flask_ctl.servers.middleware import RequestCounter
from flask_ctl_cli import scraping
from flask_ctl_cli.scraping import WRITTEN, _Server, _TextFile, keep_file

parse_openmetrics: Any = parser.text_string_to_metric_families

ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


def values(families: list[Family]) -> dict[str, float]:
    """Each sample as the text format shows it, with its value."""
    lines = exposition(families)[0].decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def counter(value: float, **labels: str) -> Family:
    return family("orders", "counter", "Orders.", [["_total", labels, value]])


def gauge(value: Any, aggregate: str) -> Family:
    return family("queue", "gauge", "Jobs.", [["", {"kind": "mail"}, value]], aggregate=aggregate)


def histogram(*buckets: tuple[str, int]) -> Family:
    samples = [["_bucket", {"le": le}, value] for le, value in buckets]
    return family("took", "histogram", "Time.", [*samples, ["_count", {}, buckets[-1][1]], ["_sum", {}, 1.5]])


# Several processes


def test_counters_of_all_workers_are_summed_with_those_that_have_ended() -> None:
    past = Totals()
    past.add([counter(5, kind="book"), counter(1, kind="film")], 1)
    parts = [Part("1", 1, [counter(2, kind="book")]), Part("2", 2, [counter(4, kind="song")])]
    assert values(merged(past, parts)) == {
        'orders_total{kind="book"}': 7, 'orders_total{kind="film"}': 1, 'orders_total{kind="song"}': 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("aggregate", "shown"),
    [
        ("each", {'queue{kind="mail",worker="1"}': 3, 'queue{kind="mail",worker="4"}': 1}),
        ("sum", {'queue{kind="mail"}': 4}),
        ("max", {'queue{kind="mail"}': 3}),
        ("min", {'queue{kind="mail"}': 1}),
        ("last", {'queue{kind="mail"}': 1}),
    ],
)
def test_a_gauge_is_shown_as_it_declares(aggregate: str, shown: dict[str, float]) -> None:
    past = Totals()
    past.add([gauge(100, aggregate)], 1)
    parts = [Part("1", 1, [gauge(3, aggregate)]), Part("4", 1, [gauge(1, aggregate)])]
    assert values(merged(past, parts)) == shown


def test_a_label_of_the_apps_own_that_is_called_worker_stays() -> None:
    one = family("queue", "gauge", "", [["", {"worker": "mail"}, 3]])
    assert values(merged(Totals(), [Part("2", 1, [one])])) == {'queue{flask_ctl_worker="2",worker="mail"}': 3}


def test_a_process_that_serves_by_itself_gets_no_label() -> None:
    assert values(merged(Totals(), [Part("", 1, [gauge(3, "each")])])) == {'queue{kind="mail"}': 3}


def test_histograms_are_summed_where_their_bounds_are_equal() -> None:
    parts = [Part(str(n), n, [histogram(("0.5", 1), ("+Inf", 2))]) for n in (1, 2)]
    assert values(merged(Totals(), parts)) == {
        'took_bucket{le="0.5"}': 2, 'took_bucket{le="+Inf"}': 4, "took_count": 4, "took_sum": 3,
    }  # fmt: skip


def test_histograms_of_other_bounds_are_shown_by_generation() -> None:
    past = Totals()
    past.add([histogram(("0.5", 1), ("+Inf", 2))], 1)
    parts = [Part("1", 3, [histogram(("1", 1), ("+Inf", 1))]), Part("2", 2, [histogram(("1", 3), ("+Inf", 3))])]
    assert values(merged(past, parts)) == {
        'took_bucket{generation="1",le="0.5"}': 1, 'took_bucket{generation="1",le="+Inf"}': 2,
        'took_count{generation="1"}': 2, 'took_sum{generation="1"}': 1.5,
        'took_bucket{generation="2",le="1"}': 4, 'took_bucket{generation="2",le="+Inf"}': 4,
        'took_count{generation="2"}': 4, 'took_sum{generation="2"}': 3,
    }  # fmt: skip


def test_histograms_of_other_bounds_in_one_generation_are_told_apart() -> None:
    parts = [Part(str(n), 1, [histogram((bound, n), ("+Inf", n))]) for n, bound in enumerate(("0.5", "1", "2"), 1)]
    shown = values(merged(Totals(), parts))
    counts = {name: value for name, value in shown.items() if name.startswith("took_count")}
    assert counts == {
        'took_count{generation="1"}': 1, 'took_count{generation="1.2"}': 2, 'took_count{generation="1.3"}': 3,
    }  # fmt: skip
    assert len(shown) == 12


def test_a_label_of_the_apps_own_that_is_called_generation_stays() -> None:
    def named(bound: str) -> Family:
        one = histogram((bound, 1), ("+Inf", 1))
        return {
            **one,
            "samples": [[name, {**labels, "generation": "x"}, value] for name, labels, value in one["samples"]],
        }

    shown = values(merged(Totals(), [Part(str(n), n, [named(str(n))]) for n in (1, 2)]))
    assert [name for name in shown if name.startswith("took_count")] == [
        'took_count{flask_ctl_generation="1",generation="x"}', 'took_count{flask_ctl_generation="2",generation="x"}'
    ]  # fmt: skip


def test_quantiles_which_have_no_sum_are_left_out() -> None:
    one = family("size", "summary", "", [["", {"quantile": "0.5"}, 3], ["_count", {}, 2], ["_sum", {}, 6]])
    assert values(merged(Totals(), [Part("1", 1, [one]), Part("2", 1, [one])])) == {"size_count": 4, "size_sum": 12}


def test_the_newest_exemplar_is_kept() -> None:
    def part(worker: str, at: float) -> Part:
        one = counter(1)
        one["samples"][0].append([{"trace": worker}, 1, at])
        return Part(worker, 1, [one])

    text, _ = exposition(merged(Totals(), [part("1", 20.0), part("2", 10.0)]), OPENMETRICS)
    assert 'orders_total 2.0 # {trace="1"} 1.0 20.0' in text.decode()


def test_a_name_means_what_it_means_in_the_newest_code() -> None:
    past = Totals()
    past.add([counter(5)], 1)
    now = family("orders", "gauge", "", [["", {}, 3]])
    assert values(merged(past, [Part("", 2, [now])])) == {"orders": 3}


def test_totals_are_the_same_in_another_process() -> None:
    totals = Totals()
    totals.add([counter(5, kind="book"), histogram(("0.5", 1), ("+Inf", 2))], 1)
    totals.add([histogram(("1", 1), ("+Inf", 1))], 2)
    again = Totals.unpacked(totals.pack())
    assert list(again.families()) == list(totals.families())


def test_samples_without_room_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SAMPLES", 3)
    totals = Totals()
    totals.add([counter(1, kind=str(number)) for number in range(5)], 1)
    assert len(values(list(totals.families()))) == 3
    assert totals.left_out == 2
    assert unpack(pack([family("a", "gauge", "", [["", {"n": str(n)}, n] for n in range(4)]), counter(1)])) == (
        [counter(1)],
        4,
    )
    assert unpack(pack([counter(1, n=str(n)) for n in range(5)], max_samples=math.inf)).left_out == 0
    monkeypatch.setattr(metrics, "MAX_UNPACKED", 300)
    assert unpack(pack([counter(1, kind="x" * 300)])) == ([], 1)
    assert unpack(pack([counter(1), counter(1, kind="x" * 300)])) == ([counter(1)], 1)


@pytest.mark.parametrize(
    "text",
    ["?", "x" * 8, pack([{"name": "a", "samples": []}]), pack([family("a", "kind", "", [])]),
     pack([family("a", "gauge", "", [["", {"b": 1}, 2]])]), pack([family("a", "gauge", "", [["", {}, "x"]])]),
     pack([family("a", "gauge", "", [["", {}, float("nan")]])]), pack([family("a", "gauge", "", [["", {}, 10**400]])]),
     pack([family("a", "gauge", "", [["", {}, []]])]), pack([family("a", "gauge", "", [], aggregate="all")])],
)  # fmt: skip
def test_what_another_process_sends_is_checked(text: str) -> None:
    with pytest.raises(ValueError, match="these are no metrics"):
        unpack(text)


# Registries of the app


def test_a_gauge_declares_its_aggregate_by_its_multiprocess_mode_or_at_the_registration() -> None:
    registry = prometheus_client.CollectorRegistry()
    for mode in ("all", "liveall", "sum", "livesum", "max", "livemax", "min", "mostrecent", "livemostrecent"):
        prometheus_client.Gauge(mode, "", registry=registry, multiprocess_mode=mode)
    registries = Registries()
    registries.add(registry, {"liveall": "max"})
    found = {one["name"]: one["aggregate"] for one in registries.families()}
    assert found == {
        "all": "each", "liveall": "max", "sum": "sum", "livesum": "sum", "max": "max", "livemax": "max", "min": "min",
        "mostrecent": "last", "livemostrecent": "last",
    }  # fmt: skip
    with pytest.raises(ValueError, match="the aggregate of x is one of each"):
        registries.add(registry, {"x": "average"})


def test_everything_in_a_registry_is_shown_but_times_of_creation_and_names_like_ours() -> None:
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("jobs", "", ["kind"], registry=registry).labels('a"b\\c\n').inc(2)
    prometheus_client.Gauge("temperature", "", registry=registry).set(float("nan"))
    prometheus_client.Histogram("took", "", registry=registry, buckets=[1]).observe(0.5)
    prometheus_client.Info("build", "", registry=registry).info({"commit": "7f3a"})
    prometheus_client.Enum("phase", "", registry=registry, states=["day", "night"]).state("night")
    prometheus_client.Gauge("flask_ctl_generation", "", registry=registry).set(7)
    registries = Registries()
    registries.add(registry, {})
    registries.add(registry, {})
    families = unpack(registries.collect()).families
    shown = {**values(merged(Totals(), [Part("", 1, families)]))}
    assert str(shown.pop("temperature")) == "nan"
    assert shown == {
        'jobs_total{kind="a\\"b\\\\c\\n"}': 2, 'took_bucket{le="1.0"}': 1, 'took_bucket{le="+Inf"}': 1,
        "took_count": 1, "took_sum": 0.5, 'build_info{commit="7f3a"}': 1, 'phase{phase="day"}': 0,
        'phase{phase="night"}': 1,
    }  # fmt: skip


class Collector:
    """A registry with metrics of its own making."""

    def __init__(self, *metrics: Any) -> None:
        self.metrics = metrics

    def collect(self) -> Any:
        return self.metrics


def made(name: str, labels: Any = None, value: Any = 1, help: Any = "", **more: Any) -> Any:
    metric: Any = Metric(name, help, "gauge")
    metric.documentation = help
    metric.add_sample(name, {} if labels is None else labels, value, **more)
    return metric


@pytest.mark.parametrize(
    "odd",
    [made("odd", {"shard": 1}), made("odd", {1: "shard"}), made("odd", [1]), made("odd", help=None),
     made("odd", value=None), made("odd", value="many"), made("odd", exemplar=Exemplar({}, 1, float("inf"))),
     made("odd", exemplar=Exemplar(dict[Any, Any](trace=1), 1, 2.0))],
)  # fmt: skip
def test_a_malformed_metric_of_the_app_is_left_out_with_a_warning(odd: Any, caplog: pytest.LogCaptureFixture) -> None:
    registries = Registries()
    registries.add(Collector(odd, made("good", exemplar=Exemplar({}, 1, Timestamp(3, 0)))), {})
    for _ in range(2):
        assert [one["name"] for one in unpack(registries.collect()).families] == ["good"]
    assert caplog.text.count("the metric odd is left out") == 1


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(lambda: None, 1)
    pool.open()
    yield pool
    pool.close()


def own_process(pool: Pool, app: Any, past: dict[str, str] | None = None) -> OwnProcess:
    """A process with what its previous image has left."""
    control: Any = None
    process = OwnProcess(pool, History(), control, {"shop": app})
    process.past = {name: Totals.unpacked(text) for name, text in (past or {}).items()}
    return process


def served(*registered: Any) -> Any:
    app: Any = SimpleNamespace(name="shop", registries=Registries(), requests=RequestCounter(lambda *_: []))
    for registry in registered:
        app.registries.add(registry, {})
    return app


def test_processor_time_which_goes_on_over_a_reload_is_counted_once(pool: Pool) -> None:
    left = own_process(pool, served()).export_totals()
    app = served()
    shown = values(own_process(pool, app, left).measure(app).result(TIMEOUT).families)
    assert 0 < shown["flask_ctl_process_cpu_seconds_total"] <= time.process_time()


def test_a_collector_that_hangs_does_not_keep_the_next_image_from_its_start(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    class Hanging(Collector):
        def collect(self) -> Any:
            gate()
            return self.metrics

    jobs = Metric("jobs", "", "counter")
    jobs.add_sample("jobs_total", {}, 3)
    app = served(Hanging(jobs))
    app.registries.collect()
    monkeypatch.setattr("flask_ctl.lifecycle.processes.COLLECT_TIMEOUT", 0.05)
    gate.shut()
    left = own_process(pool, app).export_totals()
    gate.open()
    assert values(list(Totals.unpacked(left["shop"]).families()))["jobs_total"] == 3
    assert "the last metrics of shop can't be collected" in caplog.text


def test_chores_of_ours_wait_behind_hanging_commands_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogLevels, "due", lambda _: True)
    gate, app = Gate(), served(Collector(made("jobs")))
    gate.shut()
    with contextlib.closing(Pool(lambda: None, 8)) as pool:
        commands = [pool.submit(gate) for _ in range(SIZE)]
        process = own_process(pool, app)
        process._control = SimpleNamespace(  # type: ignore[assignment]
            call_soon=lambda function, *args: function(*args), call_later=lambda *_: None
        )
        answers = []
        for _ in range(3):
            answers.append(process.measure(app))
            process.expire_levels()
        assert pool.unfinished == SIZE + 2
        gate.open()
        assert all("jobs" in values(answer.result(TIMEOUT).families) for answer in answers)
        until(lambda: not pool.unfinished, "all have run")
        assert not [command for command in commands if not command.done()]
        assert process.measure(app).result(TIMEOUT).unanswered == []


# The text


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/html", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ('application/openmetrics-text; version="1.0.0"', True),
        ("application/openmetrics-text; version=0.0.1", False),
        ("application/openmetrics-text; version=2.0.0", False),
        (ACCEPT, True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x", False),
        ("text/plain;q=0.2, application/openmetrics-text;q=0.3, */*", True),
        ("application/vnd.google.protobuf;proto=x;q=0.6,application/openmetrics-text;version=1.0.0;q=0.4", True),
    ],
)
def test_the_format_is_the_one_that_the_scraper_prefers(accept: str, openmetrics: bool) -> None:
    assert prefers_openmetrics(accept) is openmetrics


def test_both_parsers_of_prometheus_client_read_what_a_process_counts() -> None:
    requests = RequestCounter(lambda environ, start_response: [])
    requests.measure()
    for method in ("GET", "PUT", "GET"):
        requests({"REQUEST_METHOD": method}, lambda *_: None).close()  # type: ignore[attr-defined]
    families = merged(Totals(), [Part("1", 1, own_families(requests)), Part("2", 1, own_families(requests))])
    text, kind = exposition(families, ACCEPT)
    assert kind == OPENMETRICS
    assert text.endswith(b"# EOF\n")
    by_name = {one.name: one for one in parse_openmetrics(text.decode())}
    took = by_name["flask_ctl_request_duration_seconds"]
    assert [sample.value for sample in took.samples if sample.name.endswith("_count")] == [4, 2]
    assert by_name["flask_ctl_requests"].unit == ""
    assert took.unit == "seconds"
    text, kind = exposition(families)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert {one.name for one in parse_text(text.decode())} == set(by_name)


def test_without_prometheus_client_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.exposition", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-ctl\[metrics\]'"):
        exposition([])


# A server


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Callable[[str, str], Any], str]]:
    """A server in this process: a function that gets a path with a header Accept, and its control socket."""
    app = Flask("shop")
    control = Control(app)
    registry = prometheus_client.CollectorRegistry()
    orders = prometheus_client.Counter("orders", "Orders.", registry=registry)
    control.metrics.register(registry)

    @app.post("/order")
    def order() -> str:
        orders.inc()
        return "done"

    app.add_url_rule("/metrics", "metrics", control.metrics)
    socket = str(tmp_path_factory.mktemp("shop") / "ctl.sock")
    with BackgroundServer(app, socket=socket) as server:
        host, port = server.url.removeprefix("http://").split(":")

        def get(path: str, accept: str = "", method: str = "GET") -> Any:
            connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
            connection.request(method, path, headers={"Accept": accept})
            response = connection.getresponse()
            found = response.status, response.headers["Content-Type"], response.read().decode()
            connection.close()
            return found

        get("/order", method="POST")
        get("/nothing")
        yield get, socket


def test_a_client_gets_what_is_counted_and_what_the_app_has_registered(shop: Any) -> None:
    with ControlClient(shop[1]) as client:
        # The request is counted when the server has closed the response.
        until(
            lambda: values(client.metrics()["families"]).get('flask_ctl_requests_total{method="GET",status="4xx"}'), ""
        )
        shown = values(client.metrics()["families"])
    assert shown['flask_ctl_requests_total{method="POST",status="2xx"}'] == 1
    assert shown['flask_ctl_request_duration_seconds_count{method="POST"}'] == 1
    assert shown["orders_total"] == 1
    assert shown["flask_ctl_generation"] == 1
    assert shown['flask_ctl_state{flask_ctl_state="running"}'] == 1
    assert shown["flask_ctl_process_resident_memory_bytes"] > 1e6


def test_a_view_of_the_app_answers_in_the_format_that_the_scraper_prefers(shop: Any) -> None:
    status, kind, text = shop[0]("/metrics", ACCEPT)
    assert (status, kind) == (200, OPENMETRICS)
    assert "orders_total 1.0" in text.splitlines()
    status, kind, _ = shop[0]("/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")


def test_a_view_that_no_server_under_control_serves_shows_this_process() -> None:
    app = Flask("alone")
    control = Control(app, socket="off")
    app.add_url_rule("/metrics", "metrics", control.metrics)
    text = app.test_client().get("/metrics").text
    assert "flask_ctl_requests_in_flight 1.0" in text.splitlines()


def test_the_command_line_prints_the_text_or_json(shop: Any) -> None:
    assert "orders_total 1.0" in run_cli("metrics", "-s", shop[1]).stdout.splitlines()
    assert run_cli("metrics", "-s", shop[1], "--format", "openmetrics").stdout.endswith("# EOF\n")
    families = json.loads(run_cli("metrics", "-s", shop[1], "--json").stdout)["families"]
    assert ["orders_total", {}, 1] in next(one for one in families if one["name"] == "orders")["samples"]
    wrong = run_cli("metrics", "-s", shop[1], "--listen", "no", "--textfile", "x")
    assert (wrong.returncode, "'no' is no HOST:PORT" in wrong.stderr) == (2, True)


def exporter(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flask_ctl_cli", "metrics", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_scraper_is_answered_over_http_and_told_when_nothing_runs(shop: Any, tmp_path: pathlib.Path) -> None:
    with exporter("-s", shop[1], "--listen", "127.0.0.1:0") as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        port = int(url.split(":")[2].partition("/")[0])

        def get(path: str, **headers: str) -> tuple[int, str, str]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            found = response.status, response.headers["Content-Type"], response.read().decode()
            connection.close()
            return found

        status, kind, text = get("/metrics", Accept=ACCEPT)
        assert (status, kind) == (200, OPENMETRICS)
        assert "orders_total 1.0" in text.splitlines()
        assert get("/metrics?x=y")[:2] == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert get("/")[0] == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0


def test_a_file_is_written_while_the_server_runs_and_removed_at_its_stop(
    serve: Callable[..., Server], tmp_path: pathlib.Path
) -> None:
    server = serve()
    path = tmp_path / "app.prom"
    with exporter("-s", server.socket, "--textfile", str(path), "--every", "1000") as process:
        until(path.exists, "the file")
        assert "flask_ctl_textfile_written_seconds" in path.read_text()
        with server.client() as client:
            client.stop()
        until(lambda: not path.exists(), "the end of the file")
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0
        assert process.stderr is not None
        assert "ended" in process.stderr.read()
    assert list(tmp_path.glob("app.prom*")) == []


def test_a_file_of_another_program_is_not_removed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "app.prom"
    path.write_text("mine")
    file = _TextFile(str(path))
    file.remove()
    assert path.read_text() == "mine"
    file.write(WRITTEN.encode())
    # An exporter that was killed has left it, and the next one may remove it.
    _TextFile(str(path)).remove()
    assert list(tmp_path.iterdir()) == []
    file.write(b"one")
    path.write_text("mine")
    file.remove()
    assert path.read_text() == "mine"


def test_an_exporter_goes_on_after_metrics_that_have_no_text(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []
    monkeypatch.setattr(scraping, "_Complaints", lambda: SimpleNamespace(note=noted.append))
    monkeypatch.setattr(scraping, "_until_signal", lambda: contextlib.suppress(scraping._Ended))
    answers: Any = iter([{"families": [{}]}, {"families": [{**counter(1), "name": None}]}, None])

    class Client(contextlib.nullcontext[Any]):
        def __enter__(self) -> Any:
            return self

        def metrics(self) -> Any:
            if (answer := next(answers)) is None:
                raise scraping._Ended
            return answer

    client: Any = Client
    keep_file(str(tmp_path / "app.prom"), client, 0.01)
    assert [note[:24] for note in noted] == ["the metrics have no text"] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def scraped() -> Iterator[Any]:
    """An exporter whose function `ask` has to be set, and what it has complained of."""
    server: Any = _Server(("127.0.0.1", 0), dict)
    noted: list[str] = []
    server.complaints = SimpleNamespace(note=noted.append)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield SimpleNamespace(server=server, noted=noted)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("families", [[{}], [{**counter(1), "name": None}]])
def test_a_scraper_gets_an_answer_for_metrics_that_have_no_text(scraped: Any, families: Any) -> None:
    scraped.server.ask = lambda: {"families": families}
    assert scrape(scraped.server) == (500, "the metrics have no text\n")


def test_a_scraper_is_not_told_of_sockets(scraped: Any) -> None:
    def ask() -> Any:
        raise ControlError("nothing runs at /run/shop/ctl.sock")

    scraped.server.ask = ask
    assert scrape(scraped.server) == (503, "the server does not answer\n")
    assert scraped.noted == ["nothing runs at /run/shop/ctl.sock"]


def scrape(server: Any) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=TIMEOUT)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    with contextlib.closing(connection):
        return response.status, response.read().decode()


def test_a_client_that_sends_its_request_byte_by_byte_is_left(scraped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraping, "REQUEST_TIMEOUT", 0.2)
    with socket.create_connection(scraped.server.server_address, TIMEOUT) as client:
        client.settimeout(0.01)

        def ended() -> bool:
            try:
                client.send(b"G")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        until(ended, "the end of the connection")


def test_json_needs_no_prometheus_client(shop: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError")
    environ = {"PYTHONPATH": str(tmp_path)}
    done = run_cli("metrics", "-s", shop[1], "--json", env=environ, stdin=subprocess.DEVNULL)
    assert "families" in json.loads(done.stdout)
    done = run_cli("metrics", "-s", shop[1], env=environ, stdin=subprocess.DEVNULL)
    assert "pip install" in done.stderr


def test_a_file_that_can_not_be_written_is_an_error(shop: Any, tmp_path: pathlib.Path) -> None:
    with exporter("-s", shop[1], "--textfile", str(tmp_path / "no" / "x.prom")) as process:
        assert process.wait(TIMEOUT) == 2
        assert process.stderr is not None
        assert "can't write" in process.stderr.read()


def test_nothing_but_a_file_is_replaced(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigurationError, match="no regular file"):
        _TextFile("/dev/null")
    with pytest.raises(ConfigurationError, match="no regular file"):
        _TextFile(str(tmp_path))


def test_a_reload_carries_the_counts_on(serve: Callable[..., Server]) -> None:
    server = serve()
    for _ in range(3):
        server.get("/")
    before = until(lambda: _counted(server) if sum(_counted(server).values()) >= 3 else None, "three requests")
    server.reload()
    assert _counted(server) == before
    server.get("/")
    until(lambda: sum(_counted(server).values()) == sum(before.values()) + 1, "one more")


def _counted(server: Server) -> dict[str, float]:
    with server.client() as client:
        shown = values(client.metrics()["families"])
    names = ("flask_ctl_requests_total", "flask_ctl_request_duration_seconds_count")
    return {name: value for name, value in shown.items() if name.startswith(names[:1])}
