"""The release directory: a reload loads the code from where the release is now, or says that it would not."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from fakes import Scene
from flask import Flask
from harness import APPS, Done, Serve, Server, first_quick, raw, read_all, run_cli
from manyworkers import all_there
from servers import FINDS_ITSELF, SCRIPTS

from flask_ctl import ConfigurationError, Control, ReloadFailed
from flask_ctl.extension.control import state_of
from flask_ctl.protocol.typed import from_json
from flask_ctl.system.addresses import default_path
from flask_ctl.system.directory import MAX_ENTRIES, Origin, StartDirectory, directory_given, links_to
from flask_ctl.system.program import Program, variables_in
from flask_ctl.workers.messages import Hello


class Site:
    """Releases in directories of their own, and a link that leads to the first of them."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.top = directory
        self.releases = directory / "releases"
        self.current = directory / "current"
        for name in ("1", "2"):
            self.release(name)
        self.switch("1")

    def release(self, name: str) -> pathlib.Path:
        path = self.releases / name
        path.mkdir(parents=True)
        code = (APPS / "sample.py").read_text()
        (path / "sample.py").write_text(code.replace('VERSION = "old"', f"VERSION = {name!r}"))
        return path

    def switch(self, name: str, link: pathlib.Path | None = None) -> None:
        """As a deployment does it: at no time there is no link."""
        link = link or self.current
        new = link.with_name("new link")
        new.symlink_to(self.releases / name)
        new.rename(link)


@pytest.fixture
def site(short_path: pathlib.Path) -> Site:
    return Site(pathlib.Path(os.path.realpath(short_path)) / "site")


@pytest.fixture
def here(site: Site, monkeypatch: pytest.MonkeyPatch) -> str:
    """This process works in the first release, where the link has led it."""
    monkeypatch.chdir(site.current)
    return str(site.releases / "1")


# What is known at the start


def test_the_shells_name_is_followed(site: Site, here: str) -> None:
    assert Origin(str(site.current)).for_program() == StartDirectory(str(site.current), here)


@pytest.mark.parametrize("pwd", [None, "", ".", "/", "/no/such/place"])
def test_a_name_that_leads_elsewhere_is_none(here: str, site: Site, pwd: str | None) -> None:
    start = Origin(pwd).for_program()
    assert (start.path, start.real) == (here, here)
    assert start.links == [[str(site.current), ""]]


def test_a_shell_that_knows_the_resolved_name_only_is_no_help(here: str, site: Site) -> None:
    assert Origin(here).for_program() == Origin(None).for_program()


def test_a_directory_that_is_given_comes_before_the_shells_name(site: Site, here: str) -> None:
    given = str(site.top / "other")
    assert Origin(str(site.current)).for_program(given) == StartDirectory(given, here)


def test_links_beside_and_above_the_directory_are_found(site: Site) -> None:
    (site.releases / "latest").symlink_to("1")
    (site.top / "twice").symlink_to("current")
    (site.releases / "other").symlink_to("2")
    (site.releases / "loop").symlink_to("loop")
    (site.releases / "dangling").symlink_to("3")
    (site.releases / "up").symlink_to("..")
    (site.top / "file").symlink_to(site.releases / "1" / "sample.py")
    found = sorted(links_to(str(site.releases / "1")))
    assert found == [[str(path), ""] for path in (site.current, site.releases / "latest", site.top / "twice")]


def test_a_link_to_the_parent_is_found_with_the_rest_of_the_way(site: Site) -> None:
    assert links_to(str(site.releases / "1" / "src")) == []
    (site.top / "live").symlink_to("releases")
    assert [str(site.top / "live"), "1"] in links_to(str(site.releases / "1"))


def test_a_huge_directory_is_not_read_to_its_end(site: Site) -> None:
    for number in range(MAX_ENTRIES):
        (site.releases / f"n{number}").touch()
    assert links_to(str(site.releases / "1")) == []


@pytest.mark.parametrize("directory", ["/", "/no", "/no/such/place"])
def test_where_there_is_no_link_none_is_found(directory: str) -> None:
    assert links_to(directory) == []


# What is checked at a reload


def test_a_link_that_was_not_switched_is_in_nobodys_way(site: Site, here: str) -> None:
    Origin(None).for_program().check()


def test_a_link_that_leads_elsewhere_is_named_with_the_remedy(site: Site, here: str) -> None:
    start = Origin(None).for_program()
    site.switch("2")
    with pytest.raises(ReloadFailed) as caught:
        start.check()
    target = str(site.releases / "2")
    assert caught.value.message == (
        f"the code would be loaded from {here} again, but {site.current} leads to {target} by now: stop it, and start"
        f" it with FLASK_CTL_DIRECTORY={site.current}, or by flask-ctl run --directory {site.current}"
    )
    assert caught.value.data == {
        "traceback": "",
        "directory": here,
        "link": str(site.current),
        "target": target,
    }


def test_a_link_that_leads_nowhere_leads_elsewhere(site: Site, here: str) -> None:
    start = Origin(None).for_program()
    site.switch("3")
    with pytest.raises(ReloadFailed, match="releases/3 by now"):
        start.check()


def test_a_link_that_is_gone_leads_nowhere(site: Site, here: str) -> None:
    start = Origin(None).for_program()
    site.current.unlink()
    start.check()


def test_a_link_to_the_parent_is_followed_to_the_directory(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (site.top / name / "src").mkdir(parents=True)
    live = site.top / "live"
    live.symlink_to("a")
    monkeypatch.chdir(live / "src")
    start = Origin(None).for_program()
    start.check()
    site.switch("../b", live)
    with pytest.raises(ReloadFailed, match=f"FLASK_CTL_DIRECTORY={live}/src"):
        start.check()


def test_a_server_that_follows_its_own_name_of_the_directory_may_reload(site: Site, here: str) -> None:
    start = Origin(None).for_server(str(site.current), remedy="--chdir {link}")
    site.switch("2")
    start.check()
    assert start.real == here


def test_a_server_that_does_not_follow_the_given_name_may_not(site: Site, here: str) -> None:
    for given, pwd in ((str(site.current), None), (None, str(site.current)), (None, None)):
        start = Origin(pwd).for_server(here, given, remedy="--chdir {link}")
        start.check()
        site.switch("2")
        with pytest.raises(ReloadFailed, match=f"by now: --chdir {site.current}"):
            start.check()
        site.switch("1")


def test_what_the_hub_hears_of_it_is_the_same(site: Site, here: str) -> None:
    start = Origin(None).for_program()
    assert from_json(StartDirectory, json.loads(json.dumps(asdict(start)))) == start
    assert Hello.__dataclass_fields__["directory"].default is None, "a worker of an older version tells none"


# Settings


def test_the_environment_comes_before_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert directory_given(None) is None
    assert directory_given("/srv/shop") == "/srv/shop"
    assert directory_given(pathlib.Path("/srv/shop")) == "/srv/shop"
    monkeypatch.setenv("FLASK_CTL_DIRECTORY", "/srv/other")
    assert directory_given("/srv/shop") == "/srv/other"


@pytest.mark.parametrize("setting", ["current", "../current", 3, ["/srv"]])
def test_a_relative_path_is_refused_because_it_leads_elsewhere_from_there(setting: Any) -> None:
    with pytest.raises(ConfigurationError, match="absolute"):
        directory_given(setting)


def test_the_app_hands_its_setting_on() -> None:
    app = Flask("shop")
    Control(app)
    assert state_of(app).served_app().directory is None
    app.config["CTL_DIRECTORY"] = "/srv/shop"
    assert state_of(app).served_app().directory == "/srv/shop"
    app.config["CTL_DIRECTORY"] = "shop"
    with pytest.raises(ConfigurationError):
        state_of(app).served_app()


def test_the_next_image_finds_the_directory_where_a_shell_would_name_it(site: Site) -> None:
    program = Program()
    assert program.environment_for_preflight().get("PWD") == program.environment.get("PWD")
    program.start_in(str(site.current))
    assert program.directory == str(site.current)
    assert program.environment_for_preflight()["PWD"] == str(site.current)


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        (b"A=1\0B=x=y\0C=\0", {"A": "1", "B": "x=y", "C": ""}),
        (b"A=\xff\0", {"A": "\udcff"}),
        (b"", None),
        (b"\0\0\0\0", None),
        (b"      \0", None),
        (b"      ", None),
        (b"orker [shop]\0\0\0\0", None),
        (b"orker [shop=a]\0\0\0\0", None),
        (b"orker [shop]\0=1\0B=2\0", None),
        (b"orker\0B=2\0", None),
        (b"=1\0B=2\0", None),
        (b"A=1\0B", None),
    ],
)
def test_an_environment_over_which_a_title_has_been_written_is_unknown(
    text: bytes, variables: dict[str, str] | None
) -> None:
    assert variables_in(text) == variables


# An instance


@pytest.fixture
def scene(short_path: pathlib.Path) -> Iterator[Scene]:
    scene = Scene(short_path)
    yield scene
    scene.close()


@pytest.mark.parametrize("preflight", [True, False])
def test_a_refused_release_leaves_the_old_code_serving(scene: Scene, site: Site, here: str, preflight: bool) -> None:
    scene.program.start_directory = Origin(None).for_program()
    site.switch("2")
    with pytest.raises(ReloadFailed, match="by now"):
        scene.reload(preflight=preflight).result(30)
    assert scene.server.serves
    assert not scene.program.preflight.reached.is_set(), "the old release needs no preflight"
    status = scene.status()
    assert status["state"] == "running"
    assert status["directory"] == here
    assert not status["last_reload"]["ok"]


# Real processes


def version(server: Server) -> str:
    return server.get("/version")[1].decode()


SAMPLE = [sys.executable, "sample.py"]


@pytest.mark.parametrize(
    ("env", "follows"),
    [
        ("pwd", True),
        ("nothing", False),
        pytest.param("physical pwd", False, marks=pytest.mark.full),
        pytest.param("FLASK_CTL_DIRECTORY", True, marks=pytest.mark.full),
    ],
)
def test_a_program_follows_the_name_that_it_knows_and_refuses_without_one(
    serve: Serve, site: Site, env: str, follows: bool
) -> None:
    command = list(SAMPLE)
    variables = {"PWD": ""}
    if env == "pwd":
        variables["PWD"] = str(site.current)
    elif env == "physical pwd":
        command = ["sh", "-c", 'unset PWD; cd .; exec "$0" sample.py', sys.executable]
    elif env == "FLASK_CTL_DIRECTORY":
        variables["FLASK_CTL_DIRECTORY"] = str(site.current)
    server = serve(command=command, cwd=site.current, env=variables)
    assert server.status()["directory"] == str(site.releases / "1")
    assert server.reload()["directory"] == str(site.releases / "1")
    site.switch("2")
    done = run_cli("reload", "--socket", server.socket)
    now = "2" if follows else "1"
    if follows:
        assert (done.returncode, done.stderr) == (0, "")
        assert f"serves generation 3 from {site.releases / '2'}, after" in done.stdout
    else:
        assert (done.returncode, done.stdout) == (7, "")
        assert f"{site.current} leads to {site.releases / '2'} by now" in done.stderr
        assert "FLASK_CTL_DIRECTORY=" in done.stderr
        assert "The old code still serves." in done.stderr
    assert version(server) == now
    assert server.status()["directory"] == str(site.releases / now)
    text = run_cli("status", "--socket", server.socket).stdout
    assert f"directory  {site.releases / now}\n" in text


@pytest.mark.full
def test_a_client_at_the_default_socket_of_the_old_release_is_answered(serve: Serve, site: Site) -> None:
    """The name of the default socket is made of the directory of the code."""
    variables = {"PWD": str(site.current), "FLASK_CTL_SOCKET": ""}
    server = serve(command=SAMPLE, cwd=site.current, env=variables, ready=False)
    server.socket = default_path("sample", str(site.releases / "1"))
    server.ready()
    site.switch("2")
    with raw(server.socket) as sock:
        sock.sendall(b"reload\n")
        assert f"serves generation 2 from {site.releases / '2'}".encode() in read_all(sock)
    server.socket = default_path("sample", str(site.releases / "2"))
    site.switch("1")
    done = run_cli("reload", cwd=site.top)
    assert done.returncode == 0, done.stderr
    assert "serves generation 3" in done.stdout
    server.socket = default_path("sample", str(site.releases / "1"))
    assert server.status()["generation"] == 3


def test_run_goes_to_its_directory_and_there_again(serve: Serve, site: Site) -> None:
    run = [sys.executable, "-m", "flask_ctl_cli", "run", "--directory", str(site.current), "--app", "sample"]
    server = serve(command=[*run, "--port", "0"], cwd="/", env={"PWD": "/", "FLASK_CTL_DIRECTORY": "/"})
    assert version(server) == "1"
    site.switch("2")
    assert server.reload()["directory"] == str(site.releases / "2")
    assert version(server) == "2"
    site.switch("1")
    assert server.reload()["directory"] == str(site.releases / "1")
    assert version(server) == "1"


@pytest.mark.parametrize(("place", "why"), [("current", "absolute"), ("/no/such/place", "No such file")])
def test_run_refuses_a_directory_that_it_cant_go_to(site: Site, place: str, why: str) -> None:
    done = run_cli("run", "--directory", place, "--app", "sample", cwd=site.top)
    assert done.returncode == 2
    assert why in done.stderr


GUNICORN = [sys.executable, "-m", "gunicorn", "--no-control-socket", "-w", "1", "-b", "127.0.0.1:0", "sample:app"]
UWSGI = [
    str(SCRIPTS / "uwsgi"),
    "--master",
    "--need-app",
    "--http-socket",
    "127.0.0.1:{port}",
    "--module",
    "sample:app",
]
GRANIAN = [str(SCRIPTS / "granian"), "--interface", "wsgi", "--port", "{port}", "sample:app"]


@pytest.fixture
def start(no_hubs_left: None, serve: Serve, site: Site, free_port: int) -> Serve:
    """Start a server in the current release, as systemd does or as a shell does."""

    def start(*command: str, pwd: pathlib.Path | str = "", cwd: pathlib.Path | str | None = None) -> Server:
        words = [word.replace("{port}", str(free_port)) for word in command]
        return all_there(serve(command=words, cwd=cwd or site.current, env={**FINDS_ITSELF, "PWD": str(pwd)}), 1)

    return start


def reload_after_switch(server: Server, site: Site) -> Done:
    """What the command line says to a reload when the release has been switched."""
    assert server.status()["directory"] == str(site.releases / "1")
    site.switch("2")
    return run_cli("reload", "--socket", server.socket)


@pytest.mark.parametrize(
    ("command", "pwd", "remedy"),
    [
        (GUNICORN, False, "--chdir {current}"),
        pytest.param(UWSGI, False, "--chdir {current}", marks=pytest.mark.full),
        pytest.param(UWSGI, True, "--chdir {current}", marks=pytest.mark.full),
        pytest.param(GRANIAN, True, "granian follows only a --working-dir", marks=pytest.mark.full),
    ],
    ids=["gunicorn without PWD", "uwsgi without PWD", "uwsgi with PWD", "granian with PWD"],
)
def test_a_server_that_would_load_the_old_release_again_is_not_asked_to(
    start: Serve, site: Site, command: list[str], pwd: bool, remedy: str
) -> None:
    server = start(*command, pwd=site.current if pwd else "")
    done = reload_after_switch(server, site)
    assert (done.returncode, done.stdout) == (7, "")
    assert f"{site.current} leads to {site.releases / '2'} by now" in done.stderr
    assert remedy.format(current=site.current) in done.stderr
    assert version(server) == "1"
    status = server.status()
    assert (status["generation"], status["directory"]) == (1, str(site.releases / "1"))
    assert not status["last_reload"]["ok"]


@pytest.mark.full
def test_gunicorn_refuses_when_our_setting_names_a_directory_that_it_does_not_follow(
    start: Serve, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_CTL_DIRECTORY", str(site.current))
    done = reload_after_switch(start(*GUNICORN, cwd=site.releases / "1"), site)
    assert done.returncode == 7
    assert f"--chdir {site.current}" in done.stderr


@pytest.mark.parametrize("how", first_quick(["--chdir", "PWD", "--chdir, config"]))
def test_gunicorn_goes_to_its_own_name_of_the_directory(start: Serve, site: Site, how: str) -> None:
    if how == "PWD":
        server = start(*GUNICORN, pwd=site.current)
    else:
        # A relative path of the configuration is meant from where gunicorn was started.
        (site.top / "conf.py").write_text("graceful_timeout = 20\n")
        config = ["--config", "conf.py"] if "config" in how else []
        server = start(*GUNICORN, "--chdir", str(site.current), *config, cwd=site.top)
    done = reload_after_switch(server, site)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"serves generation 2 from {site.releases / '2'}, after" in done.stdout
    assert version(server) == "2"
    assert server.status()["directory"] == str(site.releases / "2")


@pytest.mark.full
def test_uwsgi_goes_to_its_own_name_of_the_directory(start: Serve, site: Site) -> None:
    server = start(*UWSGI, "--chdir", str(site.current), cwd=site.top)
    assert reload_after_switch(server, site).returncode == 0
    assert version(server) == "2"
    assert server.status()["directory"] == str(site.releases / "2")


@pytest.mark.full
def test_granian_goes_to_a_working_directory_that_it_was_not_started_in(start: Serve, site: Site) -> None:
    server = start(*GRANIAN, "--working-dir", str(site.current), "--respawn-interval", "2", cwd=site.top)
    assert reload_after_switch(server, site).returncode == 0
    assert version(server) == "2"
    assert server.status()["directory"] == str(site.releases / "2")


@pytest.mark.full
@pytest.mark.parametrize("name", first_quick(["gunicorn", "uwsgi"]))
def test_run_tells_the_servers_own_program_where_to_go(start: Serve, site: Site, name: str) -> None:
    run = [sys.executable, "-m", "flask_ctl_cli", "run", "--directory", str(site.current), "--app", "sample"]
    server = start(*run, "--server", name, "--port", "{port}", cwd="/")
    assert reload_after_switch(server, site).returncode == 0
    assert version(server) == "2"


CHILD = """
import subprocess, sys
@app.get("/directories")
def directories():
    code = "import os; print(os.environ.get('FLASK_CTL_DIRECTORY'), os.environ['PWD'])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
"""


@pytest.mark.parametrize("name", first_quick(["gunicorn", "werkzeug", "uwsgi", "granian"]))
@pytest.mark.parametrize("variable", first_quick(["/srv/other", ""]))
def test_the_directory_of_run_is_not_that_of_another_program_that_the_app_starts(
    start: Serve, serve: Serve, site: Site, free_port: int, name: str, variable: str
) -> None:
    with (site.releases / "1" / "sample.py").open("a") as file:
        file.write(CHILD)
    run = [sys.executable, "-m", "flask_ctl_cli", "run", "--directory", str(site.current), "--app", "sample"]
    command = [*run, "--server", name, "--port", str(free_port)]
    env = {**FINDS_ITSELF, "PWD": "/", **({"FLASK_CTL_DIRECTORY": variable} if variable else {})}
    server = serve(command=command, cwd="/", env=env)
    if name != "werkzeug":
        all_there(server, 1)
    assert server.get("/directories") == (200, f"None {site.current}\n".encode())
    with server.client() as client:
        (setting,) = [one for one in client.describe()["settings"] if one["name"] == "CTL_DIRECTORY"]
    assert setting["value"] == str(site.current)
    assert server.reload()["directory"] == str(site.releases / "1")
    assert server.get("/directories") == (200, f"None {site.current}\n".encode())
