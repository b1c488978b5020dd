"""The files of the examples for containers, supervisors, logrotate and nginx: linted, and run by the real program."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest
import yaml
from documents import ROOT
from harness import TIMEOUT, Pending, Serve, Server, get, run_cli, until
from ports import free_ports

EXAMPLES = ROOT / "examples"
BINARIES = pathlib.Path(sys.executable).parent
INSIDE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def adapted(text: str, directory: pathlib.Path, ports: list[int]) -> str:
    """The text of a file for an app in `directory`, with a socket there."""
    places = {
        "/srv/shop/.venv/bin": BINARIES,
        "/srv/shop/current": directory,
        "/srv/shop/ctl.sock": directory / "c.sock",
    }
    for place, replacement in places.items():
        text = text.replace(place, str(replacement))
    for number, port in enumerate(ports):
        text = text.replace(str(8000 + number), str(port))
    return text


@pytest.fixture
def directory(short_path: pathlib.Path) -> pathlib.Path:
    """With the app `shop`, which is that of the containers."""
    (short_path / "shop.py").write_text((EXAMPLES / "containers" / "shop.py").read_text())
    return short_path


# Containers


@pytest.mark.parametrize(
    "command",
    [
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
        ["kubernetes-validate", "--strict", "kubernetes.yaml"],
    ],
    ids=["compose", "Kubernetes"],
)
def test_a_manifest_is_what_its_schema_permits(command: list[str]) -> None:
    program, *arguments = command
    done = subprocess.run([BINARIES / program, *arguments], cwd=EXAMPLES / "containers", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def instruction(name: str) -> str:
    """What follows a word in the Dockerfile."""
    text = (EXAMPLES / "containers" / "Dockerfile").read_text()
    return next(line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(name))


def test_the_image_runs_as_its_dockerfile_and_the_manifests_say(
    serve: Serve, directory: pathlib.Path, free_port: int
) -> None:
    """Its commands, in a PID namespace; the image itself is built where there is a Docker."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        subprocess.run(["docker", "build", EXAMPLES / "containers"], check=True)
    pod = next(yaml.safe_load_all((EXAMPLES / "containers" / "kubernetes.yaml").read_text()))["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    env = {"PATH": f"{BINARIES}:{os.environ['PATH']}"}
    command = json.loads(adapted(instruction("ENTRYPOINT"), directory, [free_port]))
    server = serve(command=[*INSIDE, *command], cwd=directory, env=env)
    init = psutil.Process(server.pid).children()[0]

    def inside(*command: str) -> int:
        enter = ["nsenter", "-t", str(init.pid), "-p", "-m", "--", *command]
        environ = {**os.environ, **env, "FLASK_CTL_SOCKET": server.socket}
        return subprocess.run(enter, env=environ, timeout=TIMEOUT).returncode

    address = ("127.0.0.1", free_port)
    health = container["readinessProbe"]["httpGet"]["path"]
    assert get(address, health)[0] == 200
    assert inside(*json.loads(instruction("HEALTHCHECK").partition("CMD")[2])) == 0
    assert inside(*container["livenessProbe"]["exec"]["command"]) == 0
    drained = Pending.call(lambda: inside(*container["lifecycle"]["preStop"]["exec"]["command"]))
    until(lambda: get(address, health)[0] == 503 and drained.done, "failed probes")
    assert drained.result() == 0
    assert get(address, "/") == (200, b"served")
    init.send_signal(signal.Signals[instruction("STOPSIGNAL")])
    assert server.wait() == 0


# Supervisors

SUPERVISORD = """
[supervisord]
logfile={directory}/log
pidfile={directory}/pid
[unix_http_server]
file={directory}/sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""


@pytest.fixture(params=["supervisor/shop.conf", "runit/shop/run"])
def supervised(
    request: pytest.FixtureRequest, serve: Serve, directory: pathlib.Path, free_port: int
) -> Iterator[Server]:
    text = adapted((EXAMPLES / request.param).read_text(), directory, [free_port])
    service = directory / "service"
    service.mkdir()
    if "runit" in request.param:
        (service / "run").write_text(text)
        (service / "run").chmod(0o755)
        command = ["runsv", str(service)]
    else:
        (service / "conf").write_text(SUPERVISORD.format(directory=directory) + text)
        command = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "-c", str(service / "conf")]
    server = serve(command=command, socket=directory / "c.sock")
    yield server
    server.process.terminate()
    server.wait()


def test_a_supervisor_starts_it_again_until_it_is_stopped_for_good(supervised: Server) -> None:
    before = supervised.status()["pid"]
    assert run_cli("stop", "--socket", supervised.socket).returncode == 0
    assert supervised.ready().status()["pid"] != before
    assert run_cli("stop", "--for-good", "--socket", supervised.socket).returncode == 0
    assert run_cli("status", "--socket", supervised.socket).returncode == 3


# Beside the app


def test_logrotate_moves_a_log_that_the_app_opens_anew(serve: Serve, directory: pathlib.Path) -> None:
    app = (directory / "shop.py").read_text()
    logs = directory / "logs"
    logs.mkdir()
    (directory / "shop.py").write_text(f"import logging\nlogging.basicConfig(filename='{logs}/shop.log')\n{app}")
    command = [str(BINARIES / "flask-ctl"), "run", "--app", "shop", "--port", "0"]
    server = serve(command=command, cwd=directory, socket=directory / "c.sock")
    (logs / "shop.log").write_text("old\n")
    text = adapted((EXAMPLES / "logrotate" / "shop").read_text(), directory, []).replace("/var/log/shop", str(logs))
    (directory / "rotate").write_text(text)
    done = subprocess.run(
        ["logrotate", "--force", "--state", directory / "state", directory / "rotate"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (logs / "shop.log.1").read_text() == "old\n"
    opened = {file.path for file in psutil.Process(server.pid).open_files()}
    assert str(logs / "shop.log") in opened
    assert str(logs / "shop.log.1") not in opened


NGINX = "daemon off; pid {0}/pid; error_log stderr; events {{}} http {{ access_log off; include {0}/shop.conf; }}"


def test_behind_nginx_nothing_is_lost_while_each_server_is_stopped_and_started_again(
    serve: Serve, directory: pathlib.Path
) -> None:
    *ports, front = free_ports(3)
    text = adapted((EXAMPLES / "nginx" / "shop.conf").read_text(), directory, ports)
    (directory / "shop.conf").write_text(text.replace("8080", f"127.0.0.1:{front}"))
    (directory / "nginx.conf").write_text(NGINX.format(directory))

    def start(port: int) -> Server:
        return serve(command=[str(BINARIES / "flask-ctl"), "run", "--app", "shop", "--port", str(port)], cwd=directory)

    servers = {port: start(port) for port in ports}
    nginx = subprocess.Popen(["nginx", "-c", directory / "nginx.conf", "-p", directory])
    answers: list[tuple[int, bytes]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(get(("127.0.0.1", front), "/"))

    def answers_again() -> bool:
        try:
            return get(("127.0.0.1", front), "/")[0] == 200
        except OSError:
            return False

    until(answers_again, "nginx")
    clients = [Pending.call(ask) for _ in range(2)]
    try:
        for port in ports:
            assert run_cli("stop", "--socket", servers[port].socket).returncode == 0
            servers[port] = start(port)
            count = len(answers)
            until(lambda: len(answers) > count + 10, "further answers")  # noqa: B023
    finally:
        over.set()
        for client in clients:
            client.result()
        nginx.terminate()
        nginx.wait(TIMEOUT)
    assert set(answers) == {(200, b"served")}
