"""Who may do what behind a hub, what the audit log tells of it, and where: as the app's settings say, and only so."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest
from harness import Pending, Program, Serve, Server, Site, as_user, first_quick, raw, read_all, run_cli, until
from manyworkers import all_there
from servers import SERVERS

from flask_ctl import AccessDenied, ReloadFailed

NOBODY = 65534
ONE = SERVERS["gunicorn sync, 1 worker"]

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

AUDIT_TO = """
import logging
logging.getLogger("flask_ctl.audit").addHandler(logging.FileHandler({path!r}))
logging.getLogger("flask_ctl.audit").setLevel("INFO")
"""


@pytest.fixture
def log(program: Program, short_path: pathlib.Path) -> pathlib.Path:
    """The file to which the program's own logging writes the audit log."""
    path = short_path / "audit.log"
    program.edit("first", AUDIT_TO.format(path=str(path)))
    return path


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def as_nobody(server: Server, line: str) -> str:
    """What another user is answered to a plain command."""

    def ask() -> bytes:
        with raw(server.socket) as sock:
            sock.sendall(f"{line}\n".encode())
            return read_all(sock)

    return as_user(NOBODY, NOBODY, (), ask).decode()


@pytest.mark.parametrize(
    ("kind", "site"),
    [
        ("sync", "tcp with CURVE"),
        pytest.param("sync", "unix", marks=pytest.mark.full),
        pytest.param("sync", "ipc", marks=pytest.mark.full),
        pytest.param("gevent", "tcp with CURVE", marks=pytest.mark.full),
    ],
    indirect=["site"],
)
def test_every_kind_of_address_works(start: Serve, program: Program, site: Site, kind: str) -> None:
    server = start(SERVERS[f"gunicorn {kind}"], socket=site)
    assert server.status()["control"]["sockets"] == [site.socket]
    assert [answer["result"] for answer in server.call("greet", name="x")] == [{"greeting": "hello x"}] * 2
    program.edit("new")
    assert server.reload()["generation"] == 2
    assert server.get("/version") == (200, b"new")
    held = server.begin("/hold/a") if kind == "sync" else None
    with server.client() as client:
        assert client.stop("fast" if held else "graceful")["outcome"] == ("forced" if held else "drained")
    if held is not None:
        with pytest.raises(OSError):  # noqa: PT011
            held.result()
    assert server.wait() == 0


@pytest.mark.full
@pytest.mark.parametrize("site", ["tcp with CURVE"], indirect=True)
def test_keys_may_be_relative_to_the_directory_of_the_app(start: Serve, program: Program, site: Site) -> None:
    paths = {name: os.path.relpath(site.env[name], program.directory) for name in site.env if "CURVE" in name}
    assert start(ONE, socket=site, env=paths).call("look")


def test_a_socket_may_be_relative_to_the_directory_of_the_app(serve: Serve, program: Program) -> None:
    server = serve(command=ONE.command, cwd=program.directory, ready=False, socket="here.sock")
    server.socket = str(program.directory / "here.sock")
    assert server.ready().status()["control"]["sockets"] == [server.socket]


@only_root
def test_another_user_may_do_what_the_policy_says(start: Serve, short_path: pathlib.Path) -> None:
    os.chmod(short_path, 0o755)
    server = start(ONE, env={"FLASK_CTL_ALLOW": '{"observe": ["uid:65534"]}'})
    assert mode_of(server.socket) == 0o666
    assert "pong" in as_nobody(server, "ping")
    assert "may observe this server but not operate it" in as_nobody(server, "stop")
    assert "old" in as_nobody(server, "look")
    assert "may observe this server but not operate it" in as_nobody(server, "greet name=x")
    assert server.status()["state"] == "running"


def following_as_nobody(server: Server) -> Pending:
    """What another user is sent who follows events, and is following now."""
    began, begun = os.pipe()

    def follow() -> bytes:
        with raw(server.socket) as sock:
            sock.sendall(b"events follow=true\n")
            first = sock.recv(1)
            os.write(begun, first)
            return first + read_all(sock)

    follower = Pending.call(lambda: as_user(NOBODY, NOBODY, (), follow))
    assert os.read(began, 1)
    os.close(began)
    os.close(begun)
    return follower


def test_a_reload_changes_who_may_do_what_and_then_where_it_listens(
    start: Serve, program: Program, short_path: pathlib.Path
) -> None:
    os.chmod(short_path, 0o755)
    allow = "app.config['CTL_ALLOW'] = {'observe': %s}"
    program.edit("first", allow % ["uid:65534"])
    server = start(ONE)
    old, new = server.socket, str(short_path / "new.sock")
    server.get("/boom")
    assert mode_of(old) == 0o666
    follower = following_as_nobody(server) if os.geteuid() == 0 else None
    program.edit("second", allow % [])
    assert server.reload()["generation"] == 2
    assert follower is None or b"permission denied: the app's new code" in follower.result()
    assert mode_of(old) == 0o600
    assert os.geteuid() != 0 or "pong" not in as_nobody(server, "ping")
    program.edit("third", allow % ["uid:65534"])
    assert server.reload()["generation"] == 3
    assert mode_of(old) == 0o666
    assert os.geteuid() != 0 or "pong" in as_nobody(server, "ping")
    program.edit("fourth", f"os.environ['FLASK_CTL_SOCKET'] = {new!r}")
    assert server.reload()["generation"] == 4
    server.socket = new
    status = all_there(server.ready(), 1).status()
    assert (status["generation"], status["requests"]["errors"]) == (4, 1)
    assert not os.path.exists(old)


def test_limits_are_the_apps_and_a_refused_peer_is_in_the_audit_log(
    start: Serve, log: pathlib.Path, free_port: int
) -> None:
    """Over plain TCP nobody is known, so nobody may operate."""
    server = start(ONE, socket=f"tcp://127.0.0.1:{free_port}", env={"FLASK_CTL_MAX_REFUSALS": "1"})
    with server.client() as client:
        assert client.ping()
        with pytest.raises(AccessDenied, match="plain TCP"):
            client.call("greet", name="x")
        with pytest.raises(AccessDenied, match="too often"):
            client.stop()
    until(lambda: "refused" in log.read_text(), "the record")
    [line] = log.read_text().splitlines()
    assert line.startswith('greet(name="x") by ')


def test_the_audit_log_is_where_the_app_has_put_it(start: Serve, log: pathlib.Path) -> None:
    server = start(ONE)
    server.call("greet", name="x")
    server.call("look")
    server.reload()
    assert run_cli("stop", "-s", server.socket).returncode == 0
    assert server.wait() == 0
    greeted, reloaded, stopped = log.read_text().splitlines()
    assert greeted.startswith('greet(name="x") by uid ')
    assert reloaded.startswith("reload(")
    assert stopped.startswith("stop(")
    assert all("done in" in line for line in (greeted, reloaded, stopped))


def test_what_no_worker_can_write_is_on_standard_error(start: Serve, log: pathlib.Path) -> None:
    server = start(ONE)
    with server.client() as client:
        client.stop("immediate")
    assert server.wait() == 0
    until(lambda: "stop(mode=" in server.output + log.read_text(), "the record")


FAULTY = {
    "a faulty policy": ("app.config['CTL_ALLOW'] = {'observe': ['anybody']}", "names nobody"),
    "a faulty limit": ("app.config['CTL_MAX_QUEUE'] = 0", "CTL_MAX_QUEUE has to be"),
    "an insecure socket": ("app.config['CTL_ALLOW'] = {'observe': ['uid:12345']}", "a directory that all can write to"),
}


@pytest.mark.full
def test_a_reload_to_settings_that_would_not_start_is_refused(
    start: Serve, program: Program, short_path: pathlib.Path
) -> None:
    (short_path / "d").mkdir()
    os.chmod(short_path / "d", 0o1777)
    server = start(ONE, socket=short_path / "d" / "x")
    for code, message in FAULTY.values():
        program.edit("second", code)
        with pytest.raises(ReloadFailed) as caught:
            server.reload()
        assert message in caught.value.data["traceback"]
    assert server.get("/version") == (200, b"old")


@pytest.mark.parametrize("what", first_quick(FAULTY))
def test_with_such_settings_it_does_not_start(
    serve: Serve, program: Program, short_path: pathlib.Path, what: str
) -> None:
    code, message = FAULTY[what]
    (short_path / "d").mkdir()
    os.chmod(short_path / "d", 0o1777)
    program.edit("first", code)
    server = serve(command=ONE.command, cwd=program.directory, ready=False, socket=short_path / "d" / "x")
    assert server.wait() != 0
    assert message in server.output


def test_an_address_on_the_network_without_curve_is_no_start(serve: Serve, program: Program, free_port: int) -> None:
    server = serve(command=ONE.command, cwd=program.directory, ready=False, socket=f"tcp://0.0.0.0:{free_port}")
    assert server.wait() != 0
    assert "can be reached from the network" in server.output
