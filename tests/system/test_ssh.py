"""A control socket that ssh forwards: the remote server is asked, and no local process is taken for it."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
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
def forwarded(server: Server, short_path: pathlib.Path, free_port: int) -> Iterator[str]:
    """The path of a local socket that ssh forwards to the server's control socket."""
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
        local = short_path / "forwarded.sock"
        command = ["ssh", "-F", "/dev/null", "-N", "-p", str(free_port), "-i", str(user), "-o", "BatchMode=yes"]
        command += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        with subprocess.Popen([*command, "-L", f"{local}:{server.socket}", "127.0.0.1"]) as client:
            try:
                until(local.exists, "the forwarded socket")
                yield str(local)
            finally:
                client.terminate()
    finally:
        daemon.terminate()
        daemon.wait()
        log.close()


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
