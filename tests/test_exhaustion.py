"""A program that has used up all descriptors, or has lost its packages, can still be controlled."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import resource
import shutil

import pytest
from harness import TIMEOUT, Program, Serve, Server, until

from flask_ctl import CommandError

EATING = """
import os, sys
held = []

@control.command
def eat() -> int:
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return len(held)

@control.command
def free() -> None:
    while held:
        os.close(held.pop())

@control.command
def modules() -> list:
    return sorted(sys.modules)
"""
LIMIT = 128


@pytest.fixture
def hungry(serve: Serve, program: Program) -> Server:
    """A server that has no descriptor left."""
    program.edit("old", EATING)
    server = serve(cwd=program.directory)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    assert server.call("eat") > LIMIT // 2
    server.call("eat")
    return server


def test_without_descriptors_a_server_answers_one_client_after_the_other(hungry: Server) -> None:
    for _ in range(20):
        assert hungry.status()["state"] == "running"
        assert hungry.call("greet", name="x")
    hungry.get("/boom")
    with hungry.client() as client:
        assert [entry["type"] for entry in client.exceptions()["exceptions"]] == ["RuntimeError"]
        stacks = client.stacks(all=True)["stacks"]
        [used] = [row for row in client.describe()["limits"] if row["limit"] == "descriptors"]
        assert client.profile(0.1)["processes"]
    assert used["allowed"] == LIMIT
    assert LIMIT * 3 / 4 < used["used"] <= LIMIT
    assert "app.run(**options)" in {frame["source"] for stack in stacks for frame in stack["frames"]}
    assert hungry.status()["process"]["fds"] <= LIMIT


def test_without_descriptors_requests_in_flight_are_told(serve: Serve, program: Program) -> None:
    program.edit("old", EATING)
    server = serve(cwd=program.directory)
    held = server.begin("/hold/a")
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    server.call("eat")
    server.call("eat")
    with server.client() as client:
        [request] = client.requests()["requests"]
        assert (request["route"], request["path"]) == ("/hold/<name>", "/hold/a")
        client.call("release", name="a")
    assert held.result() == (200, b"held a")


def test_without_descriptors_a_server_answers_over_tcp_too(serve: Serve, program: Program, free_port: int) -> None:
    program.edit("old", EATING)
    server = serve(cwd=program.directory, socket=f"tcp://127.0.0.1:{free_port}", env={"FLASK_CTL_TCP_OPERATE": "true"})
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    with server.client() as kept:
        kept.call("eat")
        assert kept.call("eat") > LIMIT // 2
    with server.client(timeout=TIMEOUT) as client:
        assert client.status()["state"] == "running"
        assert client.stop()["outcome"] == "drained"
    assert server.wait() == 0


def test_without_descriptors_a_server_can_be_stopped(hungry: Server) -> None:
    with hungry.client() as client:
        assert client.stop()["outcome"] == "drained"
    assert hungry.wait() == 0


def test_without_descriptors_a_reload_is_done_or_refused_and_the_server_goes_on(
    hungry: Server, program: Program
) -> None:
    program.edit("new", EATING)
    # Refused by an error of the server's; one of another kind, or no answer, is a failure of the test.
    with contextlib.suppress(CommandError):
        assert hungry.reload()["generation"] == 2
    until(lambda: hungry.status()["state"] == "running", "it serves")
    if hungry.status()["generation"] == 1:
        hungry.call("free")
        assert hungry.reload()["generation"] == 2
    with hungry.client() as client:
        assert client.stop()["outcome"] == "drained"
    assert hungry.wait() == 0


def test_what_control_needs_is_not_imported_when_it_is_asked_for_first(serve: Serve, program: Program) -> None:
    program.edit("old", EATING)
    server = serve(cwd=program.directory, ready=False)
    until(lambda: os.path.exists(server.socket), "it listens")
    before = set(until(lambda: server.call("modules"), "an answer"))
    server.status()
    server.call("commands")
    after = set(server.call("modules"))
    assert {name for name in after - before if not name.startswith("encodings")} == set()


def test_a_server_whose_packages_are_deleted_answers_and_ends(
    serve: Serve, program: Program, tmp_path: pathlib.Path
) -> None:
    program.edit("old", EATING)
    packages = tmp_path / "packages"
    for name in ("psutil", "flask_ctl"):
        source = importlib.import_module(name).__file__
        assert source is not None
        shutil.copytree(pathlib.Path(source).parent, packages / name)
    server = serve(cwd=program.directory, env={"PYTHONPATH": str(packages)})
    server.get("/version")
    shutil.rmtree(packages)
    assert server.status()["process"]["rss"] > 0
    with server.client() as client:
        assert client.stop()["outcome"] == "drained"
    assert server.wait() == 0
