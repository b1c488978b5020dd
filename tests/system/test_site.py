"""The documentation as a site, in a real browser without a window."""

from __future__ import annotations

import functools
import http.server
import json
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

PROBE = """<!doctype html><body><pre id=found></pre><script>
const pages = %s, found = {};
async function look(page) {
  const frame = document.createElement("iframe");
  frame.style.width = "400px"; frame.style.height = "800px";
  frame.src = "/" + page;
  document.body.append(frame);
  await new Promise((done) => (frame.onload = done));
  const { body, documentElement } = frame.contentDocument;
  const colours = {};
  for (const theme of ["light", "dark"]) {
    body.dataset.theme = theme;
    const style = frame.contentWindow.getComputedStyle(body);
    colours[theme] = [style.backgroundColor, style.color];
  }
  found[page] = { width: documentElement.scrollWidth, ...colours };
  frame.remove();
}
(async () => {
  for (const page of pages) await look(page);
  document.getElementById("found").textContent = JSON.stringify(found);
})();
</script>"""
"""A page that opens others in a frame of 400 pixels, and writes down their width and their colours."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing about each request."""


class Site:
    """The built pages behind a server, and a browser that looks at them."""

    def __init__(self, directory: pathlib.Path, port: int) -> None:
        self.directory = directory
        self._url = f"http://127.0.0.1:{port}"

    @property
    def pages(self) -> list[str]:
        return sorted(str(page.relative_to(self.directory)) for page in self.directory.rglob("*.html"))

    def look_at(self, page: str) -> tuple[str, list[str]]:
        """The page after its scripts have run, and the messages on the console."""
        done = subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
                "--enable-logging=stderr", "--dump-dom", f"{self._url}/{page}",
            ],
            capture_output=True, text=True, timeout=100, check=True,
        )  # fmt: skip
        return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site of `make docs`, built anew."""
    directory = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", str(ROOT / "docs"), str(directory)], check=True)
    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Site(directory, server.server_address[1])
        server.shutdown()
        thread.join()


def test_the_search_finds_a_setting(site: Site) -> None:
    page, _ = site.look_at("search.html?q=CTL_PREFLIGHT_TIMEOUT")
    assert 'href="reference/settings.html' in page


def test_the_search_finds_the_error_that_people_paste(site: Site) -> None:
    page, _ = site.look_at("search.html?q=Not+running+with+the+Werkzeug+Server")
    assert 'href="migrate.html' in page


@pytest.mark.parametrize("page", ["index.html", "search.html?q=stop", "reference/lifecycle.html", "howto/roles.html"])
def test_a_page_says_nothing_on_the_console(site: Site, page: str) -> None:
    assert site.look_at(page)[1] == []


def test_every_page_is_readable_at_400_pixels_in_light_and_dark(site: Site) -> None:
    (site.directory / "probe.html").write_text(
        PROBE % json.dumps([page for page in site.pages if page != "probe.html"])
    )
    page, _ = site.look_at("probe.html")
    found = json.loads(re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)[0])
    assert len(found) > 30
    assert {name: seen["width"] for name, seen in found.items() if seen["width"] > 400} == {}
    for name, seen in found.items():
        assert brightness(seen["light"][0]) > 200 > 100 > brightness(seen["light"][1]), name
        assert brightness(seen["dark"][0]) < 60 < 150 < brightness(seen["dark"][1]), name


def brightness(colour: str) -> float:
    """From 0 to 255, of a computed ``rgb(…)``."""
    red, green, blue = map(float, re.findall(r"[\d.]+", colour)[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue
