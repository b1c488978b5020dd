"""What a server is made of, and its routes: where settings come from, that secrets are masked, what is near a limit."""

from __future__ import annotations

import datetime
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from harness import Program, Serve, Server, run_cli
from manyworkers import workers
from servers import SERVERS

from flask_ctl import CommandError, Control, render_result
from flask_ctl.extension.description import MAX_ITEMS, described_routes, described_settings
from flask_ctl.inspection import description
from flask_ctl.inspection.description import described_process
from flask_ctl.lifecycle.app import ServedApp
from flask_ctl.lifecycle.describe import _limits, once
from flask_ctl.system.limits import Limit, cgroup_limit, process_limits
from flask_ctl.system.mounts import Mount
from flask_ctl_cli.terminal import coloured


def settings_of(app: Flask) -> dict[str, tuple[Any, str]]:
    return {one["name"]: (one["value"], one["origin"]) for one in described_settings(app.extensions["ctl"])}


class Odd:
    """Is neither asked whether it is equal to something, nor printed."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise AssertionError("printed")


SHOWN: dict[str, tuple[str, Any, Any]] = {
    "a number": ("PAGE", 20, 20),
    "a number that JSON does not know": ("RATE", float("inf"), "inf"),
    "a secret by its name": ("SECRET_KEY", "hunter2", "***"),
    "a secret of our own": ("CTL_FLEET_PASSWORD", "hunter2", "***"),
    "a URL of our own": ("CTL_FLEET", "nats://shop:hunter2@nats:4222", "nats://***@nats:4222"),
    "a number by its name": ("API_PIN", 1234, "***"),
    "whether there is a secret": ("API_TOKEN", None, None),
    "an empty secret": ("API_TOKEN", "", ""),
    "a list of secrets": ("SECRET_KEY_FALLBACKS", ["hunter2"], "***"),
    "a secret by its form": ("DATABASE_URL", "postgresql://shop:hunter2@db/shop", "postgresql://***@db/shop"),
    "a secret in a dict": ("MAIL", {"PASSWORD": "hunter2", "HOST": "mail"}, {"PASSWORD": "***", "HOST": "mail"}),
    "a secret in a pair": ("HEADERS", [("api_key", "hunter2"), ("page", "2")], [["api_key", "***"], ["page", "2"]]),
    "a secret in a list": ("URLS", ("https://a:hunter2@b/",), ["https://***@b/"]),
    "a secret by a well-known prefix": ("STRIPE", "sk_live_51Habcdefghunter2", "sk_live_***"),
    "a login": ("MAIL", ("bob", "hunter2"), ["bob", "***"]),
    "a command line": (
        "DUMP",
        ["mysql", "--password", "hunter2", "-u", "bob"],
        ["mysql", "--password", "***", "-u", "bob"],
    ),
    "Flask's own, whatever its name": ("SESSION_COOKIE_PATH", "/shop", "/shop"),
    "a duration": ("PERMANENT_SESSION_LIFETIME", datetime.timedelta(hours=2), "2:00:00"),
    "a path": ("UPLOADS", pathlib.PurePosixPath, "<builtins.type>"),
    "an object": ("ODD", Odd(), "<test_describe.Odd>"),
    "an object in a list": ("ODD", [Odd()], ["<test_describe.Odd>"]),
    "bytes": ("SALT", b"hunter2", "<builtins.bytes>"),
    "a long list": ("LONG", [1] * (MAX_ITEMS + 1), [*[1] * MAX_ITEMS, "…"]),
    "nested too deep": ("DEEP", [[[[1]]]], [[["<builtins.list>"]]]),
}


@pytest.mark.parametrize(("name", "value", "shown"), SHOWN.values(), ids=SHOWN)
def test_a_setting_is_shown_without_secrets_and_without_code_of_the_app(name: str, value: Any, shown: Any) -> None:
    app = Flask("shop")
    Control(app, socket="off")
    app.config[name] = value
    assert settings_of(app)[name] == (shown, "config")
    json.dumps(described_settings(app.extensions["ctl"]))


def test_a_setting_tells_where_its_value_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"CTL_GRACE": "12", "DB__HOST": "db1", "PAGE": "20", "CTL_MAX_QUEUE": "7"}.items():
        monkeypatch.setenv(f"FLASK_{name}", text)
    app = Flask("shop")
    app.config.from_prefixed_env()
    app.config.update(PAGE=30, SESSION_COOKIE_SECURE=True)
    Control(app, socket="/tmp/shop.sock")
    # Nobody has read it for the app.
    app.config["CTL_MAX_QUEUE"] = 64
    found = settings_of(app)
    assert found["CTL_GRACE"] == (12, "environment")
    assert found["DB"] == ({"HOST": "db1"}, "environment")
    assert found["PAGE"] == (30, "config")
    assert found["SESSION_COOKIE_SECURE"] == (True, "config")
    assert found["CTL_MAX_QUEUE"] == (64, "default")
    assert found["DEBUG"] == (False, "default")
    assert found["CTL_SOCKET"] == (["/tmp/shop.sock"], "argument")
    monkeypatch.setenv("FLASK_CTL_SOCKET", "/tmp/other.sock")
    monkeypatch.setenv("FLASK_CTL_DIRECTORY", "/srv/shop/current")
    found = settings_of(app)
    assert found["CTL_SOCKET"] == (["/tmp/other.sock"], "environment")
    assert found["CTL_DIRECTORY"] == ("/srv/shop/current", "environment")


def test_routes_are_sorted_and_have_rule_methods_endpoint_and_host() -> None:
    app = Flask("shop", static_folder=None, host_matching=False)
    app.add_url_rule("/pay/<int:id>", "pay", methods=["POST"])
    app.add_url_rule("/", "index", subdomain="api")
    assert described_routes(app) == [
        {"rule": "/", "methods": ["GET", "HEAD", "OPTIONS"], "endpoint": "index", "host": "api"},
        {"rule": "/pay/<int:id>", "methods": ["OPTIONS", "POST"], "endpoint": "pay", "host": None},
    ]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        # Those of Python 3.10, 3.11, and 3.13 without options.
        ({"optimize": 0, "hash_randomization": 1, "dev_mode": False}, []),
        ({"optimize": 0, "hash_randomization": 1, "dev_mode": False, "int_max_str_digits": -1}, []),
        ({"optimize": 0, "hash_randomization": 1, "dev_mode": False, "int_max_str_digits": 4300, "gil": 1}, []),
        (
            {"optimize": 2, "dev_mode": True, "int_max_str_digits": 640},
            ["dev_mode", "int_max_str_digits=640", "optimize=2"],
        ),
    ],
)
def test_only_flags_that_somebody_has_set_are_told(
    flags: dict[str, int], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = SimpleNamespace(flags=SimpleNamespace(**flags), _xoptions={}, warnoptions=[])
    monkeypatch.setattr(description, "sys", interpreter)
    assert list(description._flags()) == told


# Limits


def test_the_limits_of_this_process_are_told() -> None:
    found = {(one.limit, one.of): one for one in process_limits()}
    descriptors, threads = found["descriptors", "process"], found["threads", "process"]
    assert 3 <= (descriptors.used or 0) <= (descriptors.allowed or 0)
    assert (threads.used or 0) >= 1


def write(directory: pathlib.Path, **files: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(f"{content}\n")


def test_of_nested_cgroups_the_limit_of_which_most_is_used_counts(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "shop", memory__current=500, memory__max=1000, memory__stat="anon 1\ninactive_file 100")
    write(tmp_path / "shop" / "web", memory__current=300, memory__max="max", memory__stat="anon 1")
    place = str(tmp_path)
    found = cgroup_limit("memory", "memory", [Mount(place, "cgroup2", "/")], "0::/shop/web\n")
    assert found == Limit("memory", f"cgroup {place}/shop", 400, 1000)
    write(tmp_path / "shop" / "web", memory__current=300, memory__max=310, memory__stat="anon 1")
    found = cgroup_limit("memory", "memory", [Mount(place, "cgroup2", "/")], "0::/shop/web\n")
    assert found == Limit("memory", f"cgroup {place}/shop/web", 300, 310)
    assert cgroup_limit("threads", "pids", [Mount(place, "cgroup2", "/")], "0::/shop/web\n") is None


def test_cgroups_of_version_1_are_known_too_and_those_of_containers(tmp_path: pathlib.Path) -> None:
    """A container sees its own group at the mount point, under the path that the host knows."""
    stat = "inactive_file 1\ntotal_inactive_file 200"
    memory, pids = tmp_path / "memory", tmp_path / "pids"
    write(memory, memory__usage_in_bytes=900, memory__limit_in_bytes=1000, memory__stat=stat)
    write(pids, pids__current=9, pids__max=10)
    groups = "5:pids:/docker/1f\n4:cpu,memory:/docker/1f\n0::/\n"
    among = [Mount(str(memory), "cgroup", "/docker/1f"), Mount(str(pids), "cgroup", "/docker")]
    assert cgroup_limit("memory", "memory", among, groups) == Limit("memory", f"cgroup {memory}", 700, 1000)
    write(memory, memory__limit_in_bytes=9223372036854771712)
    assert cgroup_limit("memory", "memory", among, groups) is None
    write(pids / "1f", pids__current=3, pids__max=4)
    assert cgroup_limit("threads", "pids", among, groups) == Limit("threads", f"cgroup {pids}", 9, 10)


# Of several processes


def test_what_is_the_same_in_all_processes_is_told_once() -> None:
    one = {"worker": 1, "settings": [{"name": "A", "value": 1}, {"name": "B", "value": 1}]}
    two = {"worker": 2, "settings": [{"name": "A", "value": 1}, {"name": "B", "value": 2}]}
    assert once([one, two], "settings") == [
        {"name": "A", "value": 1},
        {"name": "B", "value": 1, "workers": [1]},
        {"name": "B", "value": 2, "workers": [2]},
    ]


def test_a_limit_that_processes_share_is_told_once() -> None:
    def limits(pid: int, used: int) -> dict[str, Any]:
        rows = [Limit("memory", "cgroup /a", used, 10), Limit("descriptors", "process", used, 10)]
        return {"worker": pid, "limits": [row._asdict() for row in rows]}

    assert _limits([limits(1, 5), limits(2, 7), limits(3, 6)]) == [
        *(
            {"limit": "descriptors", "of": "process", "used": n, "allowed": 10, "worker": pid}
            for pid, n in enumerate((5, 7, 6), 1)
        ),
        {"limit": "memory", "of": "cgroup /a", "used": 7, "allowed": 10},
    ]


@pytest.mark.parametrize(("used", "end"), [(84, "84 of 100 (84%)"), (85, "85 of 100 (85%) HIGH")])
def test_what_is_nearly_used_up_is_marked(used: int, end: str, served: ServedApp) -> None:
    [line] = [line for line in described(served, used).splitlines() if line.startswith("descriptors")]
    assert line.endswith(f"pid 7: {end}")


@pytest.fixture
def served() -> Iterator[ServedApp]:
    app = Flask("shop")
    Control(app, socket="off")
    yield app.extensions["ctl"].served_app()
    del app


def described(served: ServedApp, used: int) -> str:
    """The text of a description of this process, with so many descriptors."""
    [told] = described_process(served)
    limits = [{"limit": "descriptors", "of": "process", "used": used, "allowed": 100, "worker": 7}]
    directory = {"path": "/srv/current", "loaded": "/srv/1", "now": "/srv/2"}
    return render_result(
        "describe",
        {
            "app": "shop",
            "pid": 7,
            "directory": directory,
            "commit": None,
            "programs": [told["program"]],
            "settings": told["settings"],
            "left_out": told["left_out"],
            "limits": limits,
            "processes": [{"worker": 7, "memory": told["memory"], "gc": told["gc"]}],
            "unanswered": [],
        },
    )


def test_what_is_nearly_used_up_is_red_on_a_terminal(served: ServedApp) -> None:
    line = next(line for line in coloured(described(served, 85)).splitlines() if line.startswith("descriptors"))
    assert line.endswith("85 of 100 \x1b[31m\x1b[1m(85%) HIGH\x1b[0m")


def test_the_text_tells_of_a_directory_whose_link_has_been_switched(served: ServedApp) -> None:
    lines = described(served, 1).splitlines()
    assert "directory    /srv/current, loaded from /srv/1, leads to /srv/2 now" in lines
    assert f"python       {'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}" in lines
    assert re.search(r"^CTL_GRACE +default +30\.0$", "\n".join(lines), re.MULTILINE)


# Real servers


def test_a_server_describes_itself_and_its_routes(shared: Server) -> None:
    with shared.client() as client:
        told, routes = client.describe(), client.routes()
        with pytest.raises(CommandError, match="worker: no worker has the pid 1; there "):
            client.describe(worker=1)
    status = shared.status()
    assert (told["unanswered"], told["left_out"], told["pid"]) == ([], 0, status["pid"])
    assert told["directory"] == {"path": status["cwd"], "loaded": status["directory"], "now": status["directory"]}
    [ran] = told["programs"]
    assert (ran["executable"], "workers" in ran) == (sys.executable, False)
    assert ran["command"].endswith("sample.py")
    port = f":{shared.address[1]}"
    [listener] = [row for row in told["limits"] if row["limit"] == "backlog" and row["of"].endswith(port)]
    assert listener["allowed"] > 0
    rule = {"rule": "/hold/<name>", "methods": ["GET", "HEAD", "OPTIONS"], "endpoint": "hold", "host": None}
    assert rule in routes["routes"]
    shown = run_cli("routes", "-s", shared.socket).stdout
    assert re.search(r"^/hold/<name> +GET +hold$", shown, re.MULTILINE)
    shown = run_cli("describe", "-s", shared.socket).stdout
    assert re.search(rf"^descriptors +pid {status['pid']}: \d+ of \d+ \(\d+%\)$", shown, re.MULTILINE)
    assert run_cli("describe", "--worker", "1", "-s", shared.socket).returncode == 1


def test_what_is_not_the_same_in_every_worker_is_told_with_its_pids(start: Serve, program: Program) -> None:
    program.edit("first", 'app.config.update(SECRET_KEY="hunter2", PID=os.getpid())')
    server = start(SERVERS["gunicorn gthread"], env={"FLASK_CTL_GRACE": "12"})
    pids = workers(server)
    with server.client() as client:
        told = client.describe()
        [own] = client.describe(worker=pids[0])["processes"]
    settings = [(one["name"], one["value"], one["origin"], one.get("workers")) for one in told["settings"]]
    assert ("CTL_GRACE", 12, "environment", None) in settings
    assert ("SECRET_KEY", "***", "config", None) in settings
    assert sorted(one[1:] for one in settings if one[0] == "PID") == [(pid, "config", [pid]) for pid in sorted(pids)]
    assert {one["worker"] for one in told["processes"]} == set(pids)
    assert {row["worker"] for row in told["limits"] if row["limit"] == "descriptors"} == set(pids)
    assert len([row for row in told["limits"] if row["limit"] == "backlog"]) == 1
    assert own["worker"] == pids[0]
    text = run_cli("describe", "-s", server.socket).stdout
    assert f"(pid {pids[1]})" in text
    assert "hunter2" not in text
    assert run_cli("routes", "-s", server.socket).stdout.count("/hold/<name>") == 1
