"""`doctor`: what commonly breaks, each made to be so, and found."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import Program, Serve, raw, read_all, run_cli, until
from servers import SERVERS

from flask_ctl import machine_findings, render_result, version_findings
from flask_ctl.client import doctor
from flask_ctl.inspection.checkup import directory_findings, process_findings, socket_findings
from flask_ctl.servers import attributes
from flask_ctl.system.directory import StartDirectory
from flask_ctl.system.mounts import Mount, mount_of, mounts, private_temporary

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def problems(findings: list[dict[str, Any]]) -> list[str]:
    return [f"{each['check']}: {each['message']}" for each in findings if each["severity"] == "problem"]


# This machine


@pytest.fixture
def home(short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The default directory of sockets."""
    monkeypatch.setenv("TMPDIR", str(short_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("FLASK_CTL_SOCKET", raising=False)
    return short_path / f"flask-ctl-{os.geteuid()}"


def listening(path: pathlib.Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_nothing_is_wrong_where_nothing_has_been_started(home: pathlib.Path) -> None:
    assert machine_findings() == []
    home.mkdir(mode=0o700)
    with listening(home / "app-01234567.sock"):
        assert machine_findings() == []


def runtime_directory_is_gone(home: pathlib.Path) -> None:
    os.environ["XDG_RUNTIME_DIR"] = str(home / "gone")


def directory_is_loose(home: pathlib.Path) -> None:
    home.mkdir()
    home.chmod(0o755)


def directory_is_a_file(home: pathlib.Path) -> None:
    home.touch()


def directory_is_too_deep(home: pathlib.Path) -> None:
    deep = home.parent / ("x" * 100)
    deep.mkdir()
    os.environ["TMPDIR"] = str(deep)


def lock_is_a_directory(home: pathlib.Path) -> None:
    home.mkdir(mode=0o700)
    (home / "app-01234567.sock.lock").mkdir()


BREAKAGES: dict[Callable[[pathlib.Path], None], str] = {
    runtime_directory_is_gone: "runtime directory: XDG_RUNTIME_DIR is",
    directory_is_loose: "has mode 0755, so that others get in",
    directory_is_a_file: "is no directory",
    directory_is_too_deep: "is too long: the path of a socket has at most 107 bytes",
    lock_is_a_directory: "is no file of this user's",
}


@pytest.mark.parametrize("breaks", BREAKAGES, ids=lambda breaks: breaks.__name__)
def test_what_is_broken_on_this_machine_is_found_with_its_remedy(
    home: pathlib.Path, breaks: Callable[[pathlib.Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    breaks(home)
    found = machine_findings()
    (message,) = problems(found)
    assert BREAKAGES[breaks] in message
    assert all(each["remedy"] for each in found)


def test_a_stale_socket_is_a_note(home: pathlib.Path) -> None:
    home.mkdir(mode=0o700)
    listening(home / "app-01234567.sock").close()
    (found,) = machine_findings()
    assert (found["check"], found["severity"]) == ("sockets", "note")
    assert found["remedy"].endswith(f"rm {home}/app-01234567.sock")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/nowhere/app.sock", "address: /nowhere is no directory"),
        (f"/tmp/{'x' * 120}", "125 bytes; a socket's path has at most 107"),
        ("/etc/passwd", "address: /etc/passwd is no socket"),
        ("http://x", "address: http://x: http is no transport"),
    ],
)
def test_an_address_that_can_not_be_used_is_found(home: pathlib.Path, address: str, message: str) -> None:
    (found,) = problems(machine_findings([address]))
    assert message in found


FULL = types.SimpleNamespace(f_blocks=100, f_bfree=0, f_bavail=0, f_files=0, f_favail=0)
NO_INODES = types.SimpleNamespace(f_blocks=100, f_bfree=9, f_bavail=9, f_files=50, f_favail=0)
ROOM = types.SimpleNamespace(f_blocks=0, f_bfree=0, f_bavail=0, f_files=0, f_favail=0)


@pytest.mark.parametrize(
    ("kind", "free", "message"),
    [
        ("nfs4", ROOM, "is on nfs4, where locks and sockets are not those of this machine"),
        ("tmpfs", FULL, "is full"),
        ("tmpfs", NO_INODES, "is full"),
        ("tmpfs", ROOM, None),
    ],
)
def test_a_file_system_on_which_sockets_do_not_work_is_found(
    monkeypatch: pytest.MonkeyPatch, kind: str, free: Any, message: str | None
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: free)
    found = list(doctor._file_system("/run/x", [Mount("/", "ext4", "/"), Mount("/run", kind, "/")]))
    assert [message in finding.message for finding in found if message] == [True] * bool(message)


@pytest.mark.parametrize("link", ["", "far", "/far", "../far"])
def test_nothing_is_touched_on_a_file_system_of_another_machine(
    home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    """Which would hold `doctor` up for ever if it is dead."""
    far = home.parent / "far"
    far.mkdir()
    monkeypatch.setattr(doctor, "mounts", lambda: [Mount("/", "ext4", "/"), Mount(str(far), "nfs4", "/")])
    place = far
    if link:
        place = home.parent / "x" / "link"
        place.parent.mkdir()
        place.symlink_to({"far": "../far", "/far": str(far), "../far": "../x/../far"}[link])
    touched: list[str] = []
    for function in (os.stat, os.lstat, os.readlink, os.listdir, os.statvfs, os.access):

        def watched(path: Any, *more: Any, function: Any = function, **options: Any) -> Any:
            beyond = str(place) + "/" * (function.__name__ == "readlink")
            if isinstance(path, str) and path.startswith((str(far), beyond)):
                touched.append(path)
            return function(path, *more, **options)

        monkeypatch.setattr(os, function.__name__, watched)
    (message,) = problems(machine_findings([str(place / "app.sock")]))
    assert "is on nfs4" in message
    monkeypatch.setenv("TMPDIR", str(place))
    (message,) = problems(machine_findings())
    assert "is on nfs4" in message
    assert touched == []


def test_a_remedy_can_be_pasted_and_a_name_is_no_command_for_the_terminal(home: pathlib.Path) -> None:
    home.mkdir(mode=0o700)
    listening(home / "a; reboot\x1b[2J.sock").close()
    (found,) = machine_findings()
    assert found["remedy"].endswith(f"rm {shlex.quote(f'{home}/a; reboot' + chr(27) + '[2J.sock')}")
    assert "a; reboot\\x1b[2J" in render_result("doctor", {"findings": [found], "unanswered": []})


def test_the_given_address_is_looked_at_first(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MAX_SOCKETS", 1)
    home.mkdir(mode=0o700)
    for name in ("other-01234567.sock", "given.sock"):
        listening(home / name).close()
    found = machine_findings([str(home / "given.sock")])
    assert "given.sock" in found[0]["message"]
    assert any("only 1 were looked at" in each["message"] for each in found)


MOUNTS = [Mount("/", "ext4", "/"), Mount("/tmp", "ext4", "/"), Mount("/tmp", "tmpfs", "/systemd-private-1-x/tmp")]


@pytest.mark.parametrize(
    ("path", "point", "type"), [("/tmp/x", "/tmp", "tmpfs"), ("/tmpx", "/", "ext4"), ("/", "/", "ext4")]
)
def test_the_last_mount_at_the_longest_point_has_a_path(path: str, point: str, type: str) -> None:
    mount = mount_of(path, MOUNTS)
    assert mount is not None
    assert (mount.point, mount.type) == (point, type)


def test_a_local_mount_below_one_of_another_machine_is_local() -> None:
    """A machine without disks has its root directory from another one."""
    mount = mount_of("/run/x", [Mount("/", "nfs4", "/"), Mount("/run", "tmpfs", "/")])
    assert mount == Mount("/run", "tmpfs", "/")


def test_the_mounts_of_this_process_are_read() -> None:
    root = mount_of("/", mounts())
    assert root is not None
    assert root.point == "/"


def test_a_socket_in_a_private_tmp_is_found_by_its_server() -> None:
    assert private_temporary(MOUNTS) == ["/tmp"]
    (found,) = socket_findings(["/tmp/app.sock", "/run/app.sock"], MOUNTS)
    assert found.message.startswith("/tmp/app.sock is in a private /tmp of its own")


@only_root
@pytest.mark.parametrize(
    ("words", "severity"), [(["--mount"], "problem"), (["--mount", "--pid", "--fork", "--kill-child"], "note")]
)
def test_a_socket_in_the_tmp_of_another_process_is_found_by_the_client(
    home: pathlib.Path, words: list[str], severity: str
) -> None:
    """A container has one of its own by intent."""
    hide = (
        "import os, socket, sys\n"
        "place, directory = sys.argv[1:]\n"
        "os.makedirs(directory)\n"
        "sock = socket.socket(socket.AF_UNIX); sock.bind(directory + '/app-01234567.sock'); sock.listen()\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    mount = f'mount -t tmpfs none "{home.parent}" && exec "$@"'
    command = ["unshare", *words, "sh", "-c", mount, "sh", sys.executable, "-c", hide, str(home.parent), str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hidden:
        assert hidden.stdout is not None
        assert hidden.stdout.readline() == b"ready\n"
        (found,) = machine_findings()
        message = f"{home}/app-01234567.sock is in a {home.parent} of its own, that of process "
        assert (found["severity"], message in found["message"]) == (severity, True)
        if severity == "problem":
            assert f"{message}{hidden.pid} " in found["message"]
        assert hidden.stdin is not None
        hidden.stdin.close()


def test_another_version_of_the_server_is_found() -> None:
    (message,) = problems(version_findings("0.0.1"))
    assert "the server runs flask-ctl 0.0.1" in message


# A serving process


@pytest.fixture
def ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_ignored_sigint_is_found(ignored: None) -> None:
    assert ["SIGINT is ignored" in found.message for found in process_findings()] == [True]


def test_process_1_without_a_handler_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_findings() == []
    monkeypatch.setattr(os, "getpid", lambda: 1)
    (found,) = process_findings()
    assert "it is process 1, and has no handler of SIGTERM" in found.message


def test_an_attribute_that_a_server_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "_reasons", {})
    attributes.lost_without("flask", {attributes.RELOAD: {Program: "edit spoil"}})
    (found,) = process_findings()
    assert found.severity == "problem"
    assert found.message.endswith("has no attribute Program.spoil: its apps can't be reloaded")


def test_a_symlink_that_a_reload_does_not_follow_is_a_note_and_one_that_was_switched_a_problem(
    tmp_path: pathlib.Path,
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    link.symlink_to("first")
    first = str(tmp_path / "first")
    directory = StartDirectory(first, first, [[str(link), ""], [str(tmp_path / "gone"), ""]])
    (found,) = directory_findings(directory)
    assert (found.severity, f"--directory {link}" in found.remedy) == ("note", True)
    link.unlink()
    link.symlink_to("second")
    (found,) = directory_findings(directory)
    assert (found.severity, f"{link} leads to {tmp_path}/second by now" in found.message) == ("problem", True)


# Real servers


def test_the_command_line_says_what_is_wrong_with_a_server_and_exits_with_1(serve: Serve, home: pathlib.Path) -> None:
    server = serve(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    done = run_cli("doctor", "-s", server.socket)
    assert done.returncode == 1
    assert done.stdout.startswith("problem: SIGINT is ignored")
    assert f" (pid {server.pid})\n    stop it by flask-ctl stop or SIGTERM" in done.stdout
    with raw(server.socket) as sock:
        sock.sendall(b"doctor\n")
        assert read_all(sock).decode() == done.stdout
    server.suspend()
    silent = run_cli("doctor", "--timeout", "0.3", "--json", "-s", server.socket)
    assert silent.returncode == 1
    assert "did not answer" in problems(json.loads(silent.stdout)["findings"])[0]


def test_with_nothing_running_only_the_machine_is_looked_at(home: pathlib.Path) -> None:
    done = run_cli("doctor", cwd=home.parent)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nothing is wrong")
    assert "only this machine was looked at" in done.stdout
    home.mkdir()
    home.chmod(0o777)
    assert run_cli("doctor", cwd=home.parent).returncode == 1


def test_a_server_that_could_not_be_asked_is_no_healthy_one(home: pathlib.Path) -> None:
    home.mkdir(mode=0o700)
    listening(home / "app-01234567.sock").close()
    done = run_cli("doctor", "--owner", "nosuchuser", "--socket", "tcp://127.0.0.1:1", cwd=home.parent)
    assert (done.returncode, "nosuchuser" in done.stdout) == (1, True)
    assert "nothing is wrong" not in done.stdout


def test_preload_and_the_control_socket_of_gunicorn_are_notes(start: Serve, home: pathlib.Path) -> None:
    row = SERVERS["gunicorn sync, 1 worker"]
    command = [word for word in row.command if word != "--no-control-socket"]
    own = ["--control-socket", str(home.parent / "own.ctl")]
    server = start(dataclasses.replace(row, command=command), "--preload", *own)
    done = until(lambda: run_cli("doctor", "--json", "-s", server.socket), "an answer")
    found = json.loads(done.stdout)["findings"]
    assert (done.returncode, [each["check"] for each in found]) == (0, ["reload", "server"])
    assert {each["severity"] for each in found} == {"note"}
    assert "--preload has loaded the code in the master" in found[0]["message"]
