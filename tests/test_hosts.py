"""Commands on other hosts: what each has answered, and what an end of ssh means. With a real sshd in tests/system."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest
from harness import TIMEOUT, Done, Serve, Server, run_cli, until

from flask_ctl import ConfigurationError
from flask_ctl_cli.remote.command import without_hosts
from flask_ctl_cli.remote.ssh import Host, parse_hosts

FLASK_CTL = [sys.executable, "-m", "flask_ctl_cli"]
SSH = pathlib.Path(__file__).parent / "bin" / "ssh"


@pytest.fixture(autouse=True)
def _hosts(monkeypatch: pytest.MonkeyPatch, short_path: pathlib.Path) -> None:
    monkeypatch.setenv("FLASK_CTL_SSH", str(SSH))
    monkeypatch.setenv("FLASK_CTL_REMOTE", str(pathlib.Path(sys.executable).parent / "flask-ctl"))
    monkeypatch.setenv("XDG_STATE_HOME", str(short_path / "state"))


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve("app.run")


def on(hosts: str, *words: str, code: int = 0) -> Done:
    done = run_cli("--on", hosts, *words, cwd="/")
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def answers(hosts: str, *words: str, code: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(on(hosts, "--json", *words, code=code).stdout)
    return found


def test_hosts_are_named_by_words_or_by_a_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASK_CTL_REMOTE")
    assert parse_hosts("web1,deploy@web2,web1") == [Host("web1", "flask-ctl"), Host("deploy@web2", "flask-ctl")]
    monkeypatch.setenv("FLASK_CTL_REMOTE", "/opt/flask-ctl")
    file = tmp_path / "hosts"
    file.write_text("# the shop\nweb1\n\nweb2 /srv/bin/flask-ctl  # moved\n")
    assert parse_hosts(f"@{file}") == [Host("web1", "/opt/flask-ctl"), Host("web2", "/srv/bin/flask-ctl")]


@pytest.mark.parametrize("hosts", ["", ",", "@/nowhere", "-oProxyCommand=x", "web1,-x", "web\x1b1"])
def test_what_names_no_host_is_refused(hosts: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_hosts(hosts)
    assert run_cli("--on", hosts, "ping").returncode == 2


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--on", "web1", "--json"], ["--json"]),
        (["--json", "--on=web1", "--timeout", "5"], ["--json", "--timeout", "5"]),
        (["--on", "--on"], []),
        ([], []),
    ],
)
def test_the_other_host_gets_the_same_words_but_the_hosts(words: list[str], left: list[str]) -> None:
    assert without_hosts(words) == left


def test_the_answers_are_shown_in_the_order_of_the_hosts_and_the_gravest_exit_code_is_that_of_all(
    server: Server, tmp_path: pathlib.Path
) -> None:
    words = ["--socket", server.socket]
    two = answers("web2,web1", *words, "status")
    assert [(one["host"], one["exit"], one["result"]["pid"]) for one in two] == [
        ("web2", 0, server.pid),
        ("web1", 0, server.pid),
    ]
    assert [line.split()[0] for line in on("web1,web2", *words, "ping").stdout.splitlines()] == ["web1", "web2"]
    assert on("web1", "ping", "--socket", server.socket, "--quiet").stdout == ""

    [down, up] = answers("down,web1", *words, "status", code=1)
    assert (down["host"], down["exit"], up["exit"]) == ("down", 1, 0)
    assert down["error"]["message"].startswith("unreachable, nothing was done: ssh: connect to host down")
    file = tmp_path / "hosts"
    file.write_text("bare /nowhere/flask-ctl\n")
    [bare] = answers(f"@{file}", *words, "status", code=1)
    assert "can't be executed there" in bare["error"]["message"]
    [lost] = answers("lost", *words, "status", code=1)
    assert lost["error"]["message"].startswith("the outcome is unknown: Connection to lost closed")
    assert "down" in on("down", *words, "status", code=1).stdout

    # What the program there says is what is said here.
    [gone] = answers("web1", "--socket", "/nowhere.sock", "status", code=3)
    assert gone["error"]["message"].startswith("nothing is running")
    many = answers("web1,web2", *words, "--socket", "/nowhere.sock", "status", code=3)
    assert [(one["host"], one["name"], one["exit"]) for one in many] == [
        ("web1", "sample", 0), ("web1", None, 3), ("web2", "sample", 0), ("web2", None, 3),
    ]  # fmt: skip
    listed = on("web1,web2", "ls", "--name", "sample").stdout
    assert listed.count(server.socket) == 2
    assert on("web1", *words, "call", "greet", "name=Ann", code=0).stdout


@pytest.mark.parametrize("words", [["run"], ["shell"], ["keygen"], ["rollout", "status"], ["help"]])
def test_what_is_for_this_machine_is_not_sent(words: list[str]) -> None:
    assert "for this machine" in on("down", *words, code=2).stderr


def test_a_stream_of_a_host_is_shown_until_ctrl_c_which_ends_the_program_there(server: Server) -> None:
    command = [*FLASK_CTL, "--on", "web1", "--socket", server.socket, "logs", "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stream:
        shown = stream.stdout
        assert shown is not None
        until(lambda: server.get("/") and select.select([shown.fileno()], [], [], 0)[0], "a line")
        assert shown.readline().startswith("web1  ")
        assert followers(server)
        stream.send_signal(signal.SIGINT)
        assert stream.wait(TIMEOUT) == 0
    until(lambda: not followers(server), "the program there ends")


def test_a_stream_ends_with_the_exit_code_of_the_program_there(server: Server, tmp_path: pathlib.Path) -> None:
    """The gravest of all hosts; what it says of an error is one line."""
    words = ["--socket", server.socket, "logs", "-fn", "20"]
    text, documents = tmp_path / "text", tmp_path / "documents"
    streams = []
    for output, form in ((text, []), (documents, ["--json"])):
        with output.open("w") as file:
            streams.append(subprocess.Popen([*FLASK_CTL, *form, "--on", "web1,web2", *words], stdout=file))

    def shown() -> str:
        return text.read_text() + documents.read_text()

    heads = ("web1  ", "web2  ", '"host": "web1"', '"host": "web2"')
    until(lambda: server.get("/") and all(head in shown() for head in heads), shown)
    with server.client() as client:
        client.stop()
    assert [stream.wait(TIMEOUT) for stream in streams] == [3, 3]
    assert {"web1  — the server has ended —", "web2  — the server has ended —"} <= set(text.read_text().splitlines())
    ends = [json.loads(line) for line in documents.read_text().splitlines()]
    assert {end["host"] for end in ends if end.get("end") == "the server has ended"} == {"web1", "web2"}

    [told] = [json.loads(line) for line in on("web1", "--json", *words, code=3).stdout.splitlines()]
    assert (told["host"], told["exit"], "nothing is running" in told["error"]["message"]) == ("web1", 3, True)
    assert on("web1", "--quiet", *words, code=3).stderr.startswith("Error: web1: nothing is running")
    [down] = [json.loads(line) for line in on("down", "--json", *words, code=1).stdout.splitlines()]
    assert down["error"]["message"].startswith("unreachable, nothing was done: ssh: connect to host down")


def test_a_stream_of_a_host_without_flask_ctl_says_so(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("bare /nowhere/flask-ctl\n")
    assert "can't be executed there" in on(f"@{file}", "logs", "--follow", code=1).stderr


def test_an_exit_code_that_flask_ctl_does_not_have_counts_as_1(tmp_path: pathlib.Path) -> None:
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -KILL $$\n")
    killed.chmod(0o755)
    file = tmp_path / "hosts"
    file.write_text(f"web1 {killed}\n")
    assert "exit code 137" in on(f"@{file}", "logs", "--follow", code=1).stderr
    assert "outcome is unknown" in on(f"@{file}", "reload", code=1).stdout


def test_a_stream_that_can_not_be_written_ends(server: Server) -> None:
    """Also for the other hosts, which have nothing to say."""
    command = [
        sys.executable,
        "-m",
        "flask_ctl_cli",
        "--on",
        "web1,web2",
        "--socket",
        server.socket,
        "logs",
        "--follow",
    ]
    with open("/dev/full", "w") as full:
        full_disk = subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True)
    reader, writer = os.pipe()
    os.close(reader)
    broken = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    for stream in (full_disk, broken):
        until(lambda stream=stream: server.get("/") and stream.poll() is not None, "its end")  # type: ignore[misc]
        assert stream.returncode == 1
    errors = [stream.communicate()[1] for stream in (full_disk, broken)]
    assert errors == ["Error: the result can't be written to stdout: No space left on device\n", ""]
    until(lambda: not followers(server), "the programs there end")


def test_a_watched_status_of_a_host_is_the_status(server: Server) -> None:
    command = [
        sys.executable,
        "-m",
        "flask_ctl_cli",
        "--on",
        "web1",
        "--socket",
        server.socket,
        "status",
        "--watch=0.1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stream:
        assert stream.stdout is not None
        assert f"running, pid {server.pid}" in stream.stdout.readline()
        stream.send_signal(signal.SIGINT)
        assert stream.wait(TIMEOUT) == 0


def followers(server: Server) -> list[int]:
    """The processes that follow the logs of this server, as another host would have them."""
    shown = [(process.pid, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [pid for pid, words in shown if server.socket in words and "--follow" in words and "--on" not in words]


@pytest.mark.full
def test_a_rollout_goes_over_hosts(serve: Serve, short_path: pathlib.Path) -> None:
    """`down` is not reached; the instances here are those of web1."""
    servers = [serve("app.run"), serve("app.run")]
    words = [word for server in servers for word in ("--socket", server.socket)]
    document: Any = answers("web1,down", *words, "reload", "--rolling", "--batch", "2", code=1)
    assert [(one["host"], one["outcome"]) for one in document["targets"]] == [
        ("web1", "done"), ("web1", "done"), ("down", "unreachable"),
    ]  # fmt: skip
    assert [server.status()["generation"] for server in servers] == [2, 2]
    assert "web1/sample" in run_cli("rollout", "status").stdout
    answers("web1", *words, "stop", "--rolling", "--mode", "fast", "--batch", "100%")
    assert [server.wait() for server in servers] == [0, 0]
