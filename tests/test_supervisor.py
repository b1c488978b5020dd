"""An app under the real Supervisor, which starts it again whenever it ends."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from harness import APPS, TIMEOUT, Pending, Serve, Server, run_cli, until

from flask_ctl import ConfigurationError, ControlError
from flask_ctl.client.supervision import manager_of

CONFIGURATION = """
[supervisord]
logfile={directory}/log
pidfile={directory}/pid
[unix_http_server]
file={directory}/sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{directory}/sock
[program:other]
command=sleep infinity
startsecs=0
[program:shop]
command={python} sample.py
directory={apps}
autorestart=true
startsecs=0
"""


@pytest.fixture
def supervisorctl(short_path: pathlib.Path) -> Callable[..., str]:
    """Run `supervisorctl` with these arguments; what it says."""
    configuration = short_path / "supervisord.conf"
    configuration.write_text(CONFIGURATION.format(directory=short_path, python=sys.executable, apps=APPS))

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(configuration), *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT).stdout

    return run


@pytest.fixture
def server(serve: Serve, short_path: pathlib.Path, supervisorctl: Callable[..., str]) -> Iterator[Server]:
    """The app, once it serves; `pid` is that of supervisord."""
    configuration = str(short_path / "supervisord.conf")
    server = serve(command=[sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "-c", configuration])
    yield server
    server.process.terminate()
    assert server.wait() == 0


def test_a_stop_says_that_it_may_come_back_and_for_good_it_stays_down(
    server: Server, supervisorctl: Callable[..., str]
) -> None:
    before = server.status()
    assert (before["supervisor"]["kind"], before["supervisor"]["process"]) == ("supervisor", "shop")
    with pytest.raises(ConfigurationError, match=r"runs pid \d+ under that name"):
        manager_of({**before["supervisor"], "process": "other"}, before["pid"]).keep_down()
    with pytest.raises(ControlError, match="BAD_NAME"):
        manager_of({**before["supervisor"], "process": "missing"}, before["pid"]).keep_down()
    done = run_cli("stop", "--socket", server.socket)
    assert done.returncode == 0
    assert "supervisor shop may start it again; stop --for-good prevents that" in done.stdout
    after = server.ready().status()
    assert after["pid"] != before["pid"]

    held = server.begin("/hold/a")
    stop = Pending.call(lambda: run_cli("stop", "--for-good", "--json", "--socket", server.socket))
    until(lambda: server.status()["state"] == "stopping", "the drain")
    server.release("a")
    assert held.result() == (200, b"held a")
    done = stop.result()
    told = json.loads(done.stdout)
    assert (done.returncode, told["pid"], told["drained"], told["proof"]) == (0, after["pid"], 1, "process")
    assert (told["for_good"], told["starts_again"]) == (True, False)
    assert "STOPPED" in supervisorctl("status", "shop")
    assert run_cli("status", "--socket", server.socket).returncode == 3
