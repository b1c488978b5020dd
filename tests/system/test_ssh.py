"""A control socket that ssh forwards: the remote server is asked, and no local process is taken for it."""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import Serve, Server, run_cli, until

SSHD = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin") or "sshd"


def keygen(path: pathlib.Path) -> pathlib.Path:
    """A new key pair; the path of its private half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture
def server(serve: Serve) -> Server:
    """The server at the far end."""
    return serve("app.run")


@pytest.fixture
def ssh(short_path: pathlib.Path, free_port: int) -> Iterator[list[str]]:
    """An sshd on this machine, and the command that connects to it, but for the host."""
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    host, user = keygen(short_path / "host"), keygen(short_path / "user")
    options = {
        "HostKey": host, "AuthorizedKeysFile": f"{user}.pub", "ListenAddress": f"127.0.0.1:{free_port}",
        "PidFile": "none", "StrictModes": "no", "UsePAM": "no", "PermitRootLogin": "prohibit-password",
    }  # fmt: skip
    daemon = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", "/dev/null", *(f"-o{name}={value}" for name, value in options.items())],
        stderr=subprocess.PIPE,
    )
    log = daemon.stderr
    assert log is not None
    try:
        until(lambda: b"listening on" in log.readline(), "sshd listens")
        command = ["ssh", "-F", "/dev/null", "-p", str(free_port), "-i", str(user), "-o", "BatchMode=yes"]
        command += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        yield command
    finally:
        daemon.terminate()
        daemon.wait()
        log.close()


@pytest.fixture
def forwarded(server: Server, ssh: list[str], short_path: pathlib.Path) -> Iterator[str]:
    """The path of a local socket that ssh forwards to the server's control socket."""
    local = short_path / "forwarded.sock"
    with subprocess.Popen([*ssh, "-N", "-L", f"{local}:{server.socket}", "127.0.0.1"]) as client:
        try:
            until(local.exists, "the forwarded socket")
            yield str(local)
        finally:
            client.terminate()


def test_status_is_that_of_the_remote_server(server: Server, forwarded: str) -> None:
    done = run_cli("call", "--socket", forwarded, "ping")
    assert done.returncode == 0, done.stderr
    assert f'"pid": {server.status()["pid"]}' in run_cli("status", "--json", "--socket", forwarded).stdout


def test_a_stop_that_would_kill_is_refused_before_it_is_sent_because_the_listener_is_ssh(
    server: Server, forwarded: str
) -> None:
    done = run_cli("stop", "--socket", forwarded, "--kill-after", "5")
    assert done.returncode == 2, done.stdout
    assert "it is not killed; run it where the server runs" in done.stderr
    assert server.status()["state"] == "running"


def test_a_stop_drains_the_remote_server(server: Server, forwarded: str) -> None:
    done = run_cli("stop", "--socket", forwarded)
    assert server.wait() == 0
    assert done.returncode == 0, done.stderr


def test_commands_and_rollouts_run_there_over_one_connection(
    serve: Serve, ssh: list[str], short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_CTL_SSH", shlex.join(ssh))
    monkeypatch.setenv("FLASK_CTL_REMOTE", str(pathlib.Path(sys.executable).parent / "flask-ctl"))
    monkeypatch.setenv("XDG_STATE_HOME", str(short_path / "state"))
    servers = [serve("app.run"), serve("app.run")]
    words = [word for server in servers for word in ("--socket", server.socket)]
    told = json.loads(run_cli("--on", "127.0.0.1,localhost", "--json", *words, "status").stdout)
    assert [one["result"]["pid"] for one in told] == 2 * [server.pid for server in servers]

    done = run_cli("--on", "127.0.0.1", *words, "reload", "--rolling", timeout=60)
    assert done.returncode == 0, done
    assert [server.status()["generation"] for server in servers] == [2, 2]
    assert run_cli("--on", "127.0.0.1", "--socket", servers[0].socket, "stop").returncode == 0
    assert servers[0].wait() == 0
    shared = list((short_path / "run" / "flask-ctl-ssh").iterdir())
    assert len(shared) == 2, "a connection to each of the two names"

    broken = shlex.join([*ssh, "-o", "ControlPath=none", "-o", "ProxyCommand=/bin/false"])
    refused = run_cli("--on", "127.0.0.1", "--json", "status", env={"FLASK_CTL_SSH": broken})
    assert refused.returncode == 1
    assert json.loads(refused.stdout)[0]["error"]["message"].startswith("unreachable, nothing was done")
    for path in shared:
        subprocess.run([*ssh, "-o", f"ControlPath={path}", "-O", "exit", "x"], check=True, capture_output=True)
