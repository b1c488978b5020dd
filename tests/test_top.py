"""The live view: what it shows in 80 and in 40 columns, and what its keys do."""

from __future__ import annotations

import asyncio
import html
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from flask import Flask
from harness import TIMEOUT, Pending, add_hold, get, run_cli
from textual.pilot import Pilot

from flask_ctl import BackgroundServer, Control, ControlClient
from flask_ctl_cli.top.app import THEMES, Top, theme_of_terminal
from flask_ctl_cli.top.samples import Buckets, Watched

INF = float("inf")
CHARACTER = 12.2
"""Width of a character in a screenshot."""


# Samples


def families(*counts: float, bounds: Sequence[str] = ("0.1", "1.0", "+Inf")) -> list[dict[str, Any]]:
    name = "flask_ctl_request_duration_seconds"
    samples = [[f"{name}_bucket", {"method": "GET", "le": bound}, count] for bound, count in zip(bounds, counts)]
    return [{"name": name, "samples": [*samples, [f"{name}_count", {}, 9]]}, {"name": "x", "samples": []}]


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        ((10, 10, 10), 0.5, 0.05),
        ((10, 10, 10), 1.0, 0.1),
        ((5, 10, 10), 0.75, 0.55),
        ((0, 10, 10), 0.5, 0.55),
        ((0, 0, 4), 0.5, 1.0),
        ((0, 0, 0), 0.5, None),
        ((), 0.5, None),
    ],
)
def test_a_quantile_is_in_its_bucket(counts: tuple[float, ...], share: float, seconds: float | None) -> None:
    found = Buckets.of(families(*counts)).quantile(share)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("before", "now", "since"),
    [
        ((1, 2, 3), (2, 4, 6), (1, 2, 3)),
        ((1, 2, 3), (1, 2, 3), (0, 0, 0)),
        ((5, 5, 5), (1, 2, 3), (1, 2, 3)),
        ((), (1, 2, 3), (1, 2, 3)),
    ],
    ids=["more", "none", "counted anew", "the first"],
)
def test_durations_since_the_sample_before(before: Any, now: Any, since: Any) -> None:
    assert Buckets.of(families(*now)).since(Buckets.of(families(*before))).counts == since


def test_durations_of_all_methods_are_one() -> None:
    both = [*families(1, 2, 3), *families(10, 20, 30)]
    assert Buckets.of(both) == Buckets((0.1, 1.0, INF), (11, 22, 33))


@pytest.mark.parametrize(
    ("value", "theme"), [("15;0", "dark"), ("0;15", "light"), ("0;default;7", "light"), ("", "dark"), (None, "dark")]
)
def test_the_theme_is_that_of_the_terminal(value: str | None, theme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLORFGBG", raising=False)
    if value is not None:
        monkeypatch.setenv("COLORFGBG", value)
    assert theme_of_terminal() == theme


# The view

Scene = Callable[["View"], Awaitable[None]]


class View:
    """The view on a terminal of a size, by Textual's pilot."""

    def __init__(self, app: Top, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    @property
    def lines(self) -> list[str]:
        """What is on the screen."""
        svg = self.app.export_screenshot()
        pieces = re.findall(r'<text [^>]*x="([\d.]+)"[^>]*clip-path="[^"]*line-(\d+)[^>]*>([^<]*)</text>', svg)
        rows: dict[int, str] = {}
        for x, row, text in pieces:
            before = rows.get(int(row), "").ljust(round(float(x) / CHARACTER))
            rows[int(row)] = before + html.unescape(text).replace("\xa0", " ")
        return [rows[row].rstrip() for row in sorted(rows)]

    async def until(self, *texts: str, gone: str | None = None) -> str:
        """The screen as soon as it has these texts."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            shown = "\n".join(self.lines)
            if all(text in shown for text in texts) and (gone is None or gone not in shown):
                return shown
            assert time.monotonic() < deadline, f"{texts} not on the screen:\n{shown}"
            # Each look draws a picture.
            await self.pilot.pause(0.1)


def look(watched: Sequence[Watched], scene: Scene, size: tuple[int, int] = (80, 24), theme: str = "dark") -> None:
    async def run() -> None:
        app = Top(lambda: watched, theme=theme, interval=0.2)
        async with app.run_test(size=size, notifications=True) as pilot:
            await scene(View(app, pilot))

    asyncio.run(run())


class Shop:
    """A server in this process, with a request in flight and a log record."""

    def __init__(self, socket: str) -> None:
        app = Flask("shop")
        self.control = Control(app)
        self.gate = threading.Event()
        self.entered = add_hold(app, self.gate)

        @app.get("/")
        def index() -> str:
            app.logger.warning("the first page\nis asked for")
            return "hello"

        self.socket = socket
        self.server = BackgroundServer(app, socket=socket).__enter__()
        host, port = self.server.url.removeprefix("http://").split(":")
        self.address = host, int(port)
        get(self.address, "/")
        self.pending = Pending(self.address, "/hold")
        assert self.entered.wait(TIMEOUT)

    def watched(self) -> Watched:
        return Watched(lambda: ControlClient(self.socket))

    def end(self) -> None:
        self.gate.set()
        try:
            self.pending.result()
        finally:
            self.server.__exit__(None, None, None)


@pytest.fixture
def shop(short_path: Any) -> Iterator[Shop]:
    shop = Shop(str(short_path / "ctl.sock"))
    yield shop
    shop.end()


@pytest.mark.parametrize(("size", "theme"), [((80, 24), "dark"), ((40, 24), "light")], ids=["80 columns", "40 columns"])
def test_state_rates_requests_and_records_are_shown(shop: Shop, size: tuple[int, int], theme: str) -> None:
    async def scene(view: View) -> None:
        shown = await view.until(
            "shop  running  generation 1", "GET /hold", "WARNING shop: the first page", "requests/s"
        )
        assert "p50 –, p95 –" in shown
        assert "is asked for" not in shown
        await view.until("q Quit")
        assert max(map(len, view.lines)) <= size[0]
        threading.Thread(target=get, args=(shop.address, "/")).start()
        await view.until("p95 ", gone="p95 –")

    look([shop.watched()], scene, size, theme)


def test_keys_show_stacks_and_records_and_another_theme(shop: Shop) -> None:
    """The records of other tests in this process come before."""
    for number in range(50):
        logging.getLogger("other").error("record %d", number)
    get(shop.address, "/")

    async def scene(view: View) -> None:
        await view.until("GET /hold")
        await view.pilot.press("s")
        await view.until("stacks", "GET /hold,", "Close")
        await view.pilot.press("escape")
        await view.until("Slowest requests in flight")
        await view.pilot.press("l")
        await view.until("logs", "is asked for")
        await view.pilot.press("escape", "d")
        assert view.app.theme == THEMES["light"]

    look([shop.watched()], scene)


def test_a_stop_and_a_reload_are_asked_about_first(shop: Shop) -> None:
    async def scene(view: View) -> None:
        await view.until("GET /hold")
        for key, question, answer in (("r", "Reload shop, pid", "n"), ("x", "Stop shop, pid", "escape")):
            await view.pilot.press(key)
            await view.until(question, "y: yes")
            await view.pilot.press(answer)
            await view.until("GET /hold", gone="y: yes")
        assert shop.control.state == "running"
        await view.pilot.press("r")
        await view.until("Reload shop, pid")
        await view.pilot.press("y")
        # It runs in a thread of a bigger program.
        await view.until("reload failed", "can't reload")
        await view.pilot.press("x")
        await view.until("Stop shop, pid")
        await view.pilot.press("y")
        await view.until("shop  stopping")
        shop.gate.set()
        await view.until("the server stopped")
        await view.until("nothing is running")

    look([shop.watched()], scene, (80, 30))


def test_several_instances_are_a_table_of_which_one_is_chosen(shop: Shop, short_path: Any) -> None:
    gone = Watched(lambda: ControlClient(str(short_path / "none.sock")), "other")

    async def scene(view: View) -> None:
        shown = await view.until("name", "other  ?", "shop   running", "req/s", "in flight", "GET /hold")
        assert "nothing is running" not in shown
        await view.pilot.press("down")
        await view.until("nothing is running")
        await view.pilot.press("up")
        await view.until("GET /hold")
        await view.pilot.resize_terminal(40, 24)
        shown = await view.until("p95")
        assert max(map(len, view.lines)) <= 40

    look([shop.watched(), gone], scene)


def test_without_a_terminal_the_command_names_others() -> None:
    done = run_cli("top", "-s", "/nowhere.sock")
    assert done.returncode == 2
    assert "top is for a terminal" in done.stderr
