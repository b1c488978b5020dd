"""Debian's Prometheus scrapes an app that has no route for it, and promtool reads its text."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from harness import TIMEOUT, Serve, run_cli, until

CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: shop
    static_configs: [{{targets: ["127.0.0.1:{target}"]}}]
"""


class Prometheus:
    """A server with a data base of its own, which scrapes one target."""

    def __init__(self, directory: pathlib.Path, target: int, port: int) -> None:
        self.port = port
        config = directory / "prometheus.yml"
        config.write_text(CONFIG.format(target=target))
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
             f"--web.listen-address=127.0.0.1:{self.port}", "--enable-feature=exemplar-storage"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, path: str, **params: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(params)}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                return json.load(response)["data"]
        except OSError:
            return None

    def value(self, expression: str) -> float | None:
        """The value of an expression with one result."""
        data = self.ask("query", query=expression)
        return float(data["result"][0]["value"][1]) if data and data["result"] else None

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(TIMEOUT)


@pytest.fixture
def prometheus(serve: Serve, tmp_path: pathlib.Path, free_port: int) -> Iterator[tuple[Any, Prometheus]]:
    server = serve()
    command = [sys.executable, "-m", "flask_ctl_cli", "metrics", "-s", server.socket, "--listen", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as exporter:
        assert exporter.stderr is not None
        # serving http://127.0.0.1:PORT/metrics
        found = Prometheus(tmp_path, int(exporter.stderr.readline().split(":")[2].partition("/")[0]), free_port)
        yield server, found
        found.end()
        exporter.terminate()
        assert exporter.wait(TIMEOUT) == 0


def test_prometheus_scrapes_what_clients_have_asked_and_sees_the_end(prometheus: tuple[Any, Prometheus]) -> None:
    server, scraper = prometheus
    for _ in range(7):
        server.get("/")
    until(lambda: scraper.value("sum(flask_ctl_requests_total)") == 7, "seven requests")
    assert scraper.value('flask_ctl_request_duration_seconds_bucket{le="+Inf"}') == 7
    assert scraper.value("flask_ctl_generation") == 1
    assert scraper.value('up{job="shop"}') == 1
    (target,) = scraper.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    server.reload()
    server.get("/")
    until(lambda: scraper.value("sum(flask_ctl_requests_total)") == 8, "eight requests, over a reload")
    assert scraper.value('flask_ctl_reloads_total{outcome="done"}') == 1
    with server.client() as client:
        client.stop()
    until(lambda: scraper.value('up{job="shop"}') == 0, "the end of the server")


def test_promtool_finds_nothing_wrong_with_the_text(serve: Serve) -> None:
    server = serve()
    server.get("/")
    text = run_cli("metrics", "-s", server.socket).stdout
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
