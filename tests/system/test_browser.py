"""A browser that clicks through an app on `live_app`."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator

import flask
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from flask_ctl import render_profile
from flask_ctl.testing import LiveApp

EXAMPLE = pathlib.Path(__file__).parent.parent.parent / "examples" / "factory"


@pytest.fixture
def app(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[flask.Flask]:
    """The shop of the examples, with an empty database."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setenv("SHOP_DATABASE", str(tmp_path / "shop.db"))
    import shop

    yield shop.create_app()
    for name in ("shop", "shop.orders"):
        sys.modules.pop(name)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """Errors on the console and requests that failed; one that is left fails the test."""
    errors: list[str] = []
    yield errors
    assert not errors


@pytest.fixture
def page(browser: Browser, errors: list[str]) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(f"{request.method} {request.url} failed"))
        yield page


def test_what_is_ordered_in_a_browser_is_in_the_list(live_app: LiveApp, page: Page) -> None:
    page.goto(live_app.url_for("orders.show"))
    for item in ("pen", "ink"):
        page.get_by_label("Item").fill(item)
        page.get_by_role("button", name="Order").click()
        expect(page.get_by_role("listitem").last).to_have_text(item)
    expect(page.get_by_role("listitem")).to_have_text(["pen", "ink"])
    asked = [(request.method, request.status) for request in live_app.requests]
    assert asked == [("GET", 200), ("POST", 201), ("GET", 200), ("POST", 201), ("GET", 200)]


def test_errors_on_the_console_and_failed_requests_are_noticed(
    live_app: LiveApp, page: Page, errors: list[str]
) -> None:
    page.goto(live_app.url_for("orders.show"))
    page.evaluate("console.error('no ink')")
    page.evaluate("fetch('http://127.0.0.1:1/').catch(() => null)")
    page.evaluate("setTimeout(() => { throw new Error('no pen') })")
    expect(page).to_have_title("Orders")
    assert "no ink" in errors
    assert "GET http://127.0.0.1:1/ failed" in errors
    assert "no pen" in errors
    errors.clear()


def test_a_flame_graph_is_zoomed_and_searched(page: Page, errors: list[str], tmp_path: pathlib.Path) -> None:
    names = ["pay", "charge", "ship"]
    stacks = [("GET /pay", [0, 1], 3.0), ("GET /ship", [2], 1.0)]
    profile = {
        "processes": [{"elapsed": 4.0}],
        "frames": [{"function": name, "file": "/srv/shop/app.py", "line": 3} for name in names],
        "stacks": [{"route": route, "thread": None, "frames": frames, "seconds": s} for route, frames, s in stacks],
    }
    graph = tmp_path / "graph.svg"
    graph.write_text(render_profile(profile, "svg"))
    page.goto(graph.as_uri())

    def width(name: str) -> float:
        box = page.locator("g.f", has_text=f"{name} (").bounding_box()
        return 0.0 if box is None else box["width"]

    whole = width("charge")
    assert whole == pytest.approx(3 * width("ship"), rel=0.05)
    page.locator("g.f", has_text="charge (").click()
    assert width("charge") == pytest.approx(whole * 4 / 3, rel=0.05)
    expect(page.locator("g.f", has_text="ship (")).to_be_hidden()
    page.keyboard.press("Escape")
    assert width("charge") == pytest.approx(whole, rel=0.05)
    page.once("dialog", lambda dialog: dialog.accept("ship"))
    page.locator("#search").click()
    expect(page.locator("#told")).to_have_text('2 frames with "ship": 25.0% of the time')
