"""Supervisors: which one it is, whether it starts the app again, what then comes, and how it is told not to."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from harness import PYTHON, TIMEOUT, Serve, run_cli
from servers import SERVERS

from flask_ctl import (
    AccessDenied,
    BackgroundServer,
    ConfigurationError,
    Control,
    ControlClient,
    ControlError,
    NotRunning,
    TimedOut,
    render_result,
)
from flask_ctl.client import supervision
from flask_ctl.client.restart import restart
from flask_ctl.client.stopping import with_supervisor
from flask_ctl.client.trust import Trust
from flask_ctl.client.wait import Site
from flask_ctl.system.supervisor import Surroundings, find_supervisor, starts_again

SERVICE = "0::/system.slice/shop.service\n"
USER_SERVICE = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service\n"
SESSION = "0::/user.slice/user-1000.slice/session-3.scope\n"
TERMINAL = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-1.scope\n"
HYBRID = "9:name=systemd:/system.slice/shop.service\n4:memory:/shop\n0::/\n"
DAEMON = "0::/system.slice/supervisor.service\n"
OLD = {"INVOCATION_ID": "0" * 32}
EXEC = {"SYSTEMD_EXEC_PID": "42", "INVOCATION_ID": "0" * 32}
SUPERVISOR = {"SUPERVISOR_ENABLED": "1", "SUPERVISOR_PROCESS_NAME": "shop", "SUPERVISOR_GROUP_NAME": "shop"}
PM2 = {"pm_id": "0", "name": "shop"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "shop-6d4b"}


def seen(environment: dict[str, str] | None = None, *, pid: int = 42, parent: int = 7, **more: Any) -> Surroundings:
    return Surroundings(pid, parent, environment or {}, **more)


UNIT = {"kind": "systemd", "unit": "shop.service"}
FOUND: dict[str, tuple[Surroundings, dict[str, Any] | None]] = {
    "a shell": (seen(names=("bash", "sshd"), cgroup=SESSION), None),
    "systemd": (seen(EXEC, parent=1, cgroup=SERVICE), UNIT),
    "systemd with both kinds of cgroups": (seen(EXEC, parent=1, cgroup=HYBRID), UNIT),
    "systemd by a shell that waits": (seen(EXEC, pid=43, parent=42, cgroup=SERVICE), UNIT),
    "systemd of a user": (seen(EXEC, cgroup=USER_SERVICE), {**UNIT, "user": True}),
    "a child of a service's child": (seen(EXEC, pid=44, parent=43, cgroup=SERVICE), None),
    "a terminal that a service has started": (seen(EXEC, pid=44, parent=43, cgroup=TERMINAL), None),
    "a session of a login": (seen(EXEC, cgroup=SESSION), None),
    "a command of a service that goes on, such as celery": (seen(EXEC, pid=43, parent=42, cgroup=SERVICE), UNIT),
    "Supervisor as a service": (
        seen({**EXEC, **SUPERVISOR}, pid=43, parent=42, names=("supervisord", "systemd"), cgroup=DAEMON),
        {"kind": "supervisor", "process": "shop"},
    ),
    "runit as a service": (
        seen(EXEC, pid=43, parent=42, names=("runsv", "runsvdir"), above="/etc/sv/a", cgroup=DAEMON),
        {"kind": "runit", "service": "/etc/sv/a"},
    ),
    "pm2 as a service": (
        seen({**EXEC, **PM2}, pid=43, parent=42, names=("PM2 v5.4.2: God", "systemd"), cgroup=DAEMON),
        {"kind": "pm2", "process": "shop", "id": "0"},
    ),
    "systemd 247": (seen(OLD, parent=1, names=("systemd", ""), cgroup=SERVICE), UNIT),
    "systemd 247 of a user": (seen(OLD, names=("systemd", "systemd"), cgroup=USER_SERVICE), {**UNIT, "user": True}),
    "a terminal of a service of systemd 247": (seen(OLD, names=("bash", "code-server"), cgroup=SERVICE), None),
    "a session of systemd 247": (seen(OLD, names=("systemd", ""), cgroup=SESSION), None),
    "a unit of systemd 247 without a manager's variables": (seen(names=("systemd", ""), cgroup=SERVICE), None),
    "Python below Supervisor": (seen(SUPERVISOR, names=("python3", "supervisor-ui")), None),
    "Supervisor": (seen(SUPERVISOR, names=("supervisord", "")), {"kind": "supervisor", "process": "shop"}),
    "Supervisor, by a shell": (
        seen({**SUPERVISOR, "SUPERVISOR_GROUP_NAME": "web"}, names=("sh", "supervisord")),
        {"kind": "supervisor", "process": "web:shop"},
    ),
    "a shell below Supervisor": (seen(SUPERVISOR, names=("bash", "code-server")), None),
    "runit": (seen(names=("runsv", "runsvdir"), above="/etc/sv/a"), {"kind": "runit", "service": "/etc/sv/a"}),
    "pm2": (seen(PM2, names=("PM2 v5.4.2: God",)), {"kind": "pm2", "process": "shop", "id": "0"}),
    "pm2 with its policy": (
        seen({**PM2, "autorestart": "false"}, names=("PM2 v5.4.2: God",)),
        {"kind": "pm2", "process": "shop", "id": "0", "restart": "no"},
    ),
    "a shell below pm2": (seen(PM2, names=("bash", "node")), None),
    "Supervisor in a container": (
        seen(SUPERVISOR, names=("supervisord",), parent=1, in_container=True),
        {"kind": "supervisor", "process": "shop"},
    ),
    "process 1 of a container": (seen(pid=1, parent=0, in_container=True), {"kind": "container"}),
    "a child of a container's init": (seen(parent=1, in_container=True), {"kind": "container"}),
    "a command by docker exec": (seen(parent=0, in_container=True), None),
    "process 1 of a pod": (seen(KUBERNETES, pid=1, parent=0), {"kind": "kubernetes", "pod": "shop-6d4b"}),
    "an orphan on a machine": (seen(parent=1), None),
}


@pytest.mark.parametrize(("surroundings", "expected"), FOUND.values(), ids=FOUND)
def test_the_supervisor_is_found_by_what_can_be_seen(
    surroundings: Surroundings, expected: dict[str, Any] | None
) -> None:
    assert find_supervisor(surroundings) == (expected and {"restart": "unknown", **expected})


def test_supervisord_is_known_by_its_command_line_if_python_runs_it() -> None:
    waits = "import sys; print(flush=True); sys.stdin.read()"
    for words in (["supervisord"], ["/usr/bin/supervisord", "-n"], ["supervisord.log"], []):
        with subprocess.Popen([sys.executable, "-c", waits, *words], stdin=-1, stdout=-1) as process:
            assert process.stdout is not None
            process.stdout.readline()
            name = Surroundings.of(os.getpid(), process.pid, {}).names[0]
            process.communicate()
        assert (name == "supervisord") == (words[:1] in (["supervisord"], ["/usr/bin/supervisord"]))


# The client asks the supervisor


@pytest.fixture
def systemctl(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], pathlib.Path]:
    """Put a `systemctl` first on the path that runs this shell script; the file with its arguments.

    It may take its time.
    """
    monkeypatch.setattr(supervision, "ASK_TIMEOUT", TIMEOUT)

    def install(script: str) -> pathlib.Path:
        program, said = tmp_path / "systemctl", tmp_path / "said"
        program.write_text(f'#!/bin/sh\necho "$@" >{said}\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return said

    return install


@pytest.mark.parametrize(
    ("script", "policy"),
    [
        ("echo MainPID=42; echo Restart=on-failure", "on-failure"),
        ("echo MainPID=41; echo Restart=always", "unknown"),
        ("echo MainPID=42", "unknown"),
        ("exit 1", "unknown"),
        ("exec sleep 60", "unknown"),
    ],
)
def test_systemd_is_asked_and_believed_for_its_own_process_only(
    systemctl: Callable[[str], pathlib.Path], script: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = systemctl(script)
    if "sleep" in script:
        monkeypatch.setattr(supervision, "ASK_TIMEOUT", 0.2)
    assert supervision.manager_of({**UNIT, "user": True}, 42).policy() == policy
    if policy != "unknown":
        assert said.read_text() == f"--user show --property={supervision.PROPERTIES} -- shop.service\n"


@pytest.mark.parametrize(
    ("jobs", "job", "again"),
    [
        ("7 shop.service stop running", "stop", False),
        ("7 shop.service restart running", "restart", True),
        ("", "unknown", None),
    ],
    ids=["stop", "restart", "none"],
)
def test_a_job_that_ends_a_unit_rules_over_its_policy(
    systemctl: Callable[[str], pathlib.Path], jobs: str, job: str, again: bool | None
) -> None:
    """As where `ExecStop=` runs `flask-ctl stop`."""
    shown = "echo MainPID=42; echo Restart=always; echo ActiveState=deactivating"
    systemctl(f'case "$*" in *show*) {shown};; *) echo "{jobs}";; esac')
    told = supervision.manager_of(UNIT, 42).described()
    assert told == {**UNIT, "restart": "always", "job": job}
    result = with_supervisor({"outcome": "drained"}, {"supervisor": told}, told=False)
    assert result["starts_again"] is again
    stopped = {**result, "drained": 0, "cut": 0, "elapsed": 0.1, "pid": 42}
    line = {
        "stop": "does not start it again: its stop is under way",
        "restart": "starts it again: its restart is under way",
        "unknown": "may start it again; stop --for-good prevents that",
    }
    assert render_result("stop", stopped).endswith(f"\nsystemd shop.service {line[job]}\n")


def test_sockets_may_start_a_unit_again_whatever_its_policy(systemctl: Callable[[str], pathlib.Path]) -> None:
    systemctl("echo MainPID=42; echo Restart=no; echo TriggeredBy=shop.timer shop.socket")
    told = supervision.manager_of(UNIT, 42).described(30.0)
    assert told == {**UNIT, "restart": "no", "sockets": ["shop.socket"]}
    for fields, again in (({}, None), ({"activated": ["http"]}, True)):
        result = with_supervisor({"outcome": "drained", **fields}, {"supervisor": told}, told=False)
        assert result["starts_again"] is again


@pytest.mark.parametrize(("limits", "share"), [([None, 0.4], 0.1), ([0.8, None], 0.2), ([None, None], 1.0)])
def test_a_supervisor_that_is_slow_takes_no_more_of_a_stop_than_its_share(
    limits: list[float | None], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    class Slow(supervision.Manager):
        def described(self, limit: float | None = None) -> dict[str, Any]:
            assert limit is not None
            given.append(limit)
            return self.supervisor

    client = ControlClient("/nothing")
    monkeypatch.setattr(client, "status", lambda **options: {"supervisor": UNIT})
    monkeypatch.setattr(client, "_manager", lambda status: Slow(UNIT, 42))
    assert client._supervisor_of_stop(limits, for_good=False) == ({"supervisor": UNIT}, None)
    assert len(given) == 1
    assert 0 <= given[0] <= share


@pytest.fixture
def child() -> Iterator[Callable[..., tuple[int, int]]]:
    """Run `cat` as a child of a command; the pids of both."""
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> tuple[int, int]:
            process = stack.enter_context(subprocess.Popen(command, stdin=-1, stdout=-1))
            stack.callback(process.communicate)
            assert process.stdout is not None
            return process.pid, int(process.stdout.readline())

        yield start


@pytest.mark.parametrize(
    ("command", "policy"),
    [
        (["sh", "-c", "sh -c 'echo $$; exec cat'; true"], "always"),
        ([sys.executable, "-c", "import subprocess as s; s.call(['sh', '-c', 'echo $$; exec cat'])"], "unknown"),
    ],
)
def test_of_the_processes_that_systemd_starts_only_a_shell_ends_with_the_app(
    systemctl: Callable[[str], pathlib.Path], child: Callable[..., tuple[int, int]], command: list[str], policy: str
) -> None:
    main, app = child(*command)
    systemctl(f"echo MainPID={main}; echo Restart=always")
    assert supervision.manager_of(UNIT, app).policy() == policy


@pytest.mark.parametrize(("wanted", "policy"), [(b"u", "always"), (b"d", "no"), (b"\0", "no"), (None, "unknown")])
def test_runit_is_read_where_runsv_works_and_never_waited_for(
    short_path: pathlib.Path, child: Callable[..., tuple[int, int]], wanted: bytes | None, policy: str
) -> None:
    """Whatever directory the server names."""
    (short_path / "supervise").mkdir()
    status = short_path / "supervise" / "status"
    if wanted is None:
        os.mkfifo(status)
    else:
        status.write_bytes(b"\0" * 17 + wanted + b"\0" * 2)
    # The name of a process is that of its program's file.
    shutil.copy(shutil.which("dash") or "/bin/sh", short_path / "runsv")
    script = f"cd {short_path}; sh -c 'echo $$; exec cat'; true"
    _, app = child(str(short_path / "runsv"), "-c", script)
    assert supervision.manager_of({"kind": "runit", "service": "/nonexistent"}, app).policy() == policy


@pytest.mark.parametrize("wrong", ["a link", "another user's"])
def test_no_file_is_opened_that_may_not_be_of_runsv(
    short_path: pathlib.Path, child: Callable[..., tuple[int, int]], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's process of that name could lead root to the files of others."""
    (short_path / "supervise").mkdir()
    for name, make in (("status", lambda path: path.write_bytes(b"0" * 17 + b"u00")), ("control", os.mkfifo)):
        path = short_path / "supervise" / name
        make(short_path / f"{name}-of-another" if wrong == "a link" else path)
        if wrong == "a link":
            path.symlink_to(short_path / f"{name}-of-another")
    shutil.copy(shutil.which("dash") or "/bin/sh", short_path / "runsv")
    _, app = child(str(short_path / "runsv"), "-c", f"cd {short_path}; sh -c 'echo $$; exec cat'; true")
    if wrong != "a link":
        monkeypatch.setattr(supervision, "owner_of", lambda pid: os.geteuid() + 1)
    manager = supervision.manager_of({"kind": "runit", "service": "x"}, app)
    assert manager.policy() == "unknown"
    with pytest.raises(ConfigurationError, match="nothing was done"):
        manager.keep_down()


def test_without_systemctl_the_policy_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert supervision.manager_of(UNIT, 42).policy() == "unknown"


@pytest.mark.parametrize(
    ("policy", "stopped", "killed", "died"),
    [
        ("always", True, True, True),
        ("on-success", True, False, None),
        ("on-failure", False, True, None),
        ("on-abort", False, True, None),
        ("on-watchdog", False, False, None),
        ("no", False, False, False),
        ("unknown", None, None, None),
    ],
)
def test_by_its_policy_and_the_end_of_the_app_a_supervisor_starts_it_again(
    policy: str, stopped: bool | None, killed: bool | None, died: bool | None
) -> None:
    """How a server has died is not known to a client."""
    for outcome, starts in (("drained", stopped), ("forced", stopped), ("killed", killed), ("died", died)):
        assert starts_again({**UNIT, "restart": policy}, outcome) is starts
    assert starts_again(None, "died") is False


# The client tells the supervisor to keep the server down


SHOW = (
    'case "$*" in *show*) echo MainPID=42; echo Restart=always; echo TriggeredBy=shop.timer shop.socket; exit;; esac\n'
)


def test_systemd_is_told_to_stop_the_unit_and_the_sockets_that_would_start_it_again(
    systemctl: Callable[[str], pathlib.Path],
) -> None:
    said = systemctl(SHOW)
    supervision.manager_of(UNIT, 42).keep_down()
    assert said.read_text() == "stop --no-block --no-ask-password -- shop.service shop.socket\n"


@pytest.mark.parametrize(
    ("unit", "script", "error", "message"),
    [
        (UNIT, SHOW + "echo Interactive authentication required. >&2; exit 1", AccessDenied, "authentication required"),
        (UNIT, SHOW + "echo Access denied >&2; exit 4", AccessDenied, "Access denied"),
        (UNIT, SHOW + "echo Unit is masked. >&2; exit 1", ControlError, "Unit is masked"),
        (UNIT, "echo MainPID=41", ConfigurationError, "another main process, pid 41"),
        (UNIT, "exit 1", ConfigurationError, "run: systemctl stop shop.service"),
    ],
    ids=["polkit", "the bus", "systemd", "another process", "silence"],
)
def test_what_keeps_systemd_from_stopping_it_is_told_with_what_helps(
    systemctl: Callable[[str], pathlib.Path],
    unit: dict[str, Any],
    script: str,
    error: type[ControlError],
    message: str,
) -> None:
    systemctl(script)
    with pytest.raises(error, match=message) as told:
        supervision.manager_of(unit, 42).keep_down()
    assert type(told.value) is error
    assert told.value.message.startswith("nothing was done: ")


@pytest.mark.parametrize("unit", ["*.service", "shop.service ssh.service", "ssh", "shop.service\n", "[s]hop.service"])
def test_a_name_that_is_not_one_of_a_service_is_never_given_to_systemctl(
    systemctl: Callable[[str], pathlib.Path], unit: str
) -> None:
    said = systemctl(SHOW)
    manager = supervision.manager_of({**UNIT, "unit": unit}, 42)
    assert manager.policy() == "unknown"
    with pytest.raises(ConfigurationError, match=r"(?s)^nothing was done: .* is not the name of a service"):
        manager.keep_down()
    assert not said.exists()


@pytest.mark.parametrize(
    ("wrapper", "owner", "is_stopped"), [("sh", 1000, True), ("sh", 0, False), ("sudo", 0, True), ("cron", 1000, False)]
)
def test_a_wrapper_that_systemd_has_started_is_stopped_only_if_it_is_of_the_same_user(
    systemctl: Callable[[str], pathlib.Path],
    wrapper: str,
    owner: int,
    is_stopped: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for programs that change the user."""
    monkeypatch.setattr(supervision, "parent_of", lambda pid: 42)
    monkeypatch.setattr(supervision, "program_name", lambda pid: wrapper)
    monkeypatch.setattr(supervision, "owner_of", {42: owner, 43: 1000}.get)
    said = systemctl(SHOW)
    manager = supervision.manager_of(UNIT, 43)
    if is_stopped:
        manager.keep_down()
    else:
        with pytest.raises(ConfigurationError, match="has another main process, pid 42"):
            manager.keep_down()
    assert said.read_text().startswith("stop") is is_stopped


def test_a_unit_of_another_user_is_not_looked_for_in_the_own_systemd(
    systemctl: Callable[[str], pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = systemctl(SHOW)
    monkeypatch.setattr(supervision, "owner_of", lambda pid: os.geteuid() + 1)
    with pytest.raises(AccessDenied, match=r"run as that user: systemctl --user stop shop\.service"):
        supervision.manager_of({**UNIT, "user": True}, 42).keep_down()
    assert not said.exists()


@pytest.mark.parametrize(
    ("supervisor", "instead"),
    [
        ({"kind": "container"}, "docker stop"),
        ({"kind": "kubernetes", "pod": "shop-6d4b"}, "kubectl scale"),
        ({"kind": "pm2", "process": "shop", "id": "3"}, "pm2 stop 3"),
        ({"kind": "one of a later version"}, "stop it there"),
        ({"kind": "supervisor", "process": "shop"}, "supervisorctl stop shop"),
        ({"kind": "runit", "service": "/etc/sv/shop"}, "not runsv"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_a_supervisor_that_can_not_be_told_is_named_with_what_helps(supervisor: dict[str, Any], instead: str) -> None:
    with pytest.raises(ConfigurationError, match=instead):
        supervision.manager_of(supervisor, os.getpid()).keep_down()


def test_a_supervisor_on_another_machine_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server there has named it, over TCP."""
    client = ControlClient("tcp://127.0.0.1:1")
    monkeypatch.setattr(client, "status", lambda **options: {"pid": 7, "parent": None, "supervisor": UNIT})
    with pytest.raises(ConfigurationError, match=r"nothing was done: .* only on the server's machine"):
        client.stop(for_good=True)


def test_the_reloader_is_told_nothing() -> None:
    supervision.manager_of({"kind": "reloader", "restart": "no"}, os.getpid()).keep_down()


@pytest.mark.parametrize("listed", [True, False])
def test_pm2_is_told_to_stop_the_process_that_it_lists_whatever_number_the_server_names(
    short_path: pathlib.Path, child: Callable[..., tuple[int, int]], listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"echo $$ >{short_path}/pm2.pid; sh -c 'echo $$; exec cat'; true"
    title = f"PM2 v7.0.4: God Daemon ({short_path})"
    _, app = child("bash", "-c", 'exec -a "$0" sh -c "$1"', title, script)
    processes = [{"pid": 1, "pm_id": 4}, *([{"pid": app, "pm_id": 3}] if listed else [])]
    program, said = short_path / "pm2", short_path / "said"
    program.write_text(f"#!/bin/sh\necho $PM2_HOME $@ >>{said}\necho '{json.dumps(processes)}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{short_path}:{os.environ['PATH']}")
    manager = supervision.manager_of({"kind": "pm2", "process": "shop", "id": "all"}, app)
    if listed:
        manager.keep_down()
    else:
        with pytest.raises(ConfigurationError, match=f"does not list pid {app}"):
            manager.keep_down()
    asked = f"{short_path} jlist\n"
    assert said.read_text() == (f"{asked}{short_path} stop 3\n" if listed else asked)


RUNSV = """
cd {directory}; exec 3<>supervise/control 4<&0
sh -c 'echo $$; exec cat' <&4 &
[ "$(head -c 1 <&3)" = o ] && printf 00000000000000000d00 >supervise/new && mv supervise/new supervise/status
wait
"""


def test_runit_is_told_to_run_it_only_once(short_path: pathlib.Path, child: Callable[..., tuple[int, int]]) -> None:
    """By the order `o` of runsv(8), which it has taken when the status says so."""
    (short_path / "supervise").mkdir()
    os.mkfifo(short_path / "supervise" / "control")
    (short_path / "supervise" / "status").write_bytes(b"0" * 17 + b"u00")
    shutil.copy(shutil.which("dash") or "/bin/sh", short_path / "runsv")
    script = RUNSV.format(directory=short_path)
    _, app = child(str(short_path / "runsv"), "-c", script)
    manager = supervision.manager_of({"kind": "runit", "service": "/nonexistent"}, app)
    assert manager.policy() == "always"
    manager.keep_down()
    assert manager.policy() == "no"


# The order of things


def test_nothing_is_stopped_that_nothing_would_start_again() -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("nothing may be done")

    site = Site(never, never, never, never, Trust())
    for supervisor in (None, {"kind": "reloader", "restart": "no"}, {**UNIT, "restart": "on-failure"}):
        before = {"pid": 7, "supervisor": supervisor, "server": {"activated": ["http"]}}
        with pytest.raises(ConfigurationError, match=r"was not stopped: .* use reload"):
            restart(site, lambda before=before: before, never, 30.0, never)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({"restart": "no"}, "would not start it again (restart policy: no)"),
        ({"restart": "always", "job": "stop"}, "would not start it again: its stop is under way"),
        ({"restart": "no", "activated": ["http"]}, "only at the next connection to its sockets: http"),
    ],
    ids=["policy", "job", "sockets"],
)
def test_a_restart_that_is_refused_says_why(known: dict[str, Any], why: str) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("nothing may be done")

    site = Site(never, never, never, never, Trust())
    before = {"pid": 7, "supervisor": {**UNIT, **known}, "server": known}
    with pytest.raises(ConfigurationError, match=re.escape(why)):
        restart(site, lambda: before, never, 30.0, never)


def test_a_control_socket_of_systemds_starts_the_next_one_whatever_the_policy() -> None:
    def status(seconds: float) -> Any:
        return {**before, "pid": 8}

    before = {
        "pid": 7,
        "started_at": "2026-01-01T00:00:00Z",
        "state": "running",
        "generation": 1,
        "requests": {"in_flight": 0},
        "supervisor": {**UNIT, "restart": "no"},
        "server": {"activated": ["control", "http"]},
    }
    site = Site(status, lambda: None, status, lambda: None, Trust())
    result = restart(site, lambda: before, lambda seconds: {"outcome": "drained"}, 30.0, None)
    assert (result["pid"], result["stopped"]) == (8, {"outcome": "drained"})


@pytest.mark.parametrize(("kill_after", "timeout"), [(300.0, 60.0), (60.0, 60.0), (0.0, 0.0)])
def test_a_restart_takes_longer_than_the_time_after_which_it_kills(kill_after: float, timeout: float) -> None:
    with pytest.raises(ConfigurationError, match="give a longer time-out"):
        ControlClient("/nothing").restart(kill_after=kill_after, timeout=timeout)
    done = run_cli("restart", "--kill-after", str(kill_after), "--timeout", str(timeout), "-s", "/nothing")
    assert done.returncode == 2


@pytest.mark.parametrize(("after", "error"), [(NotRunning("no"), NotRunning), (TimedOut("silent"), TimedOut)])
def test_what_was_stopped_is_told_if_nothing_comes(after: Exception, error: type[Exception]) -> None:
    def status(seconds: float) -> Any:
        raise after

    site = Site(status, lambda: None, status, lambda: None, Trust())
    before = {
        "pid": 7,
        "started_at": "2026-01-01T00:00:00Z",
        "supervisor": {**UNIT, "restart": "always"},
        "server": {},
    }
    with pytest.raises(error, match="pid 7 was stopped, but") as told:
        restart(site, lambda: before, lambda seconds: {"outcome": "drained"}, 0.1, None)
    assert told.value.data["stopped"] == {"outcome": "drained"}  # type: ignore[attr-defined]


def test_an_embedded_server_has_no_supervisor(monkeypatch: pytest.MonkeyPatch, short_path: pathlib.Path) -> None:
    """Its stop leaves the process running."""
    monkeypatch.setattr("flask_ctl.system.supervisor.find_supervisor", lambda surroundings: UNIT)
    app = Flask("embedded")
    Control(app)
    path = str(short_path / "x.sock")
    with BackgroundServer(app, socket=path), ControlClient(path) as client:
        assert client.status()["supervisor"] is None
        with pytest.raises(ConfigurationError, match="was not stopped"):
            client.restart()
        assert client.status()["state"] == "running"


# Real servers

LOOP = """
import os, subprocess, sys
# As supervisord does, by whose name in the command line it is known.
os.environ.update(SUPERVISOR_ENABLED="1", SUPERVISOR_PROCESS_NAME="shop", SUPERVISOR_GROUP_NAME="shop")
for _ in range(int(sys.argv[2])):
    subprocess.call(sys.argv[3:])
"""


def again(times: int, *command: str) -> list[str]:
    """A supervisor that runs a command so many times."""
    return [sys.executable, "-c", LOOP, "supervisord", str(times), *command]


def test_another_instance_serves_when_it_returns_or_it_says_what_was_stopped(serve: Serve) -> None:
    server = serve(command=again(2, *PYTHON, "sample.py"))
    before = server.status()
    assert before["supervisor"] == {"kind": "supervisor", "process": "shop", "restart": "unknown"}
    assert "supervisor  supervisor shop; it may be started again after a stop\n" in render_result("status", before)
    held = server.begin("/hold/a")
    done = run_cli("restart", "--grace", "0", "-s", server.socket)
    # A loss, though another instance serves.
    assert done.returncode == 6
    assert done.stderr == "whether supervisor shop starts it again after a stop is not known; stopping it\n"
    after = server.status()
    assert after["pid"] != before["pid"]
    stopped, started = done.stdout.splitlines()
    assert stopped.startswith(f"pid {before['pid']} stopped: 0 requests finished, 1 CUT")
    assert started.startswith(f"pid {after['pid']}, started by supervisor shop, is ready after")
    with pytest.raises(OSError, match=r".*"):
        held.result()

    done = run_cli("restart", "--timeout", "4", "-s", server.socket)
    assert done.returncode == 3
    assert f"pid {after['pid']} was stopped, but supervisor shop has not started another" in done.stderr
    assert run_cli("restart", "-s", server.socket).returncode == 3


@pytest.mark.parametrize("mode", ["app.run", "app.run debug"])
def test_without_a_supervisor_it_refuses_and_nothing_happens(serve: Serve, mode: str) -> None:
    server = serve(mode)
    before = server.status()
    done = run_cli("restart", "-s", server.socket)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"pid {before['pid']} was not stopped" in done.stderr
    assert "use reload" in done.stderr
    assert server.status()["pid"] == before["pid"]
    assert before["supervisor"] == ({"kind": "reloader", "restart": "no"} if "debug" in mode else None)


@pytest.mark.full
def test_a_server_with_workers_is_restarted_by_its_masters_supervisor(
    start: Serve, short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was selected by its name: the next instance is another one of that name."""
    monkeypatch.setenv("XDG_STATE_HOME", str(short_path))
    row = SERVERS["gunicorn sync, 1 worker"]
    server = start(dataclasses.replace(row, command=again(3, *row.command)))
    first = server.status()
    rolled = run_cli("restart", "--name", "sample", "--rolling")
    assert rolled.returncode == 0, rolled
    before = server.status()
    assert before["pid"] != first["pid"]
    assert before["supervisor"]["kind"] == "supervisor"
    done = run_cli("restart", "--json", "-s", server.socket)
    told = json.loads(done.stdout)
    assert (done.returncode, told["stopped"]["pid"], told["stopped"]["outcome"]) == (0, before["pid"], "drained")
    after = server.status()
    assert (told["pid"], told["started_at"]) == (after["pid"], after["started_at"])
    assert after["pid"] != before["pid"]
