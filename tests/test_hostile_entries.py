"""What an entry of the registry says, and what an instance answers, costs its own row and none of the others."""

from __future__ import annotations

import os
import pathlib
import resource
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from flask_ctl import AccessDenied, live_instances
from flask_ctl.client.instances import MAX_PATH, MAX_SHOWN, NO_APP, LiveInstance, _Candidate, _own_deadline
from flask_ctl.client.trust import Trust
from flask_ctl.system.addresses import parse_address
from flask_ctl.transports.registration import Registration
from flask_ctl.transports.registry import Claims, RegisteredApp

Register = Callable[..., str]
"""Makes an entry of this process with those apps; returns its path."""


@pytest.fixture
def runtime() -> pathlib.Path:
    directory = pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "flask-ctl")
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def register(runtime: pathlib.Path) -> Iterator[Register]:
    held: list[Registration] = []

    def register(*apps: RegisteredApp, cwd: str = "/srv", directory: pathlib.Path = runtime) -> str:
        held.append(Registration(str(directory / f"{len(held)}.instance")))
        held[-1].renew(Claims(list(apps), cwd, "werkzeug"))
        return str(held[-1].path)

    yield register
    for registration in held:
        registration.close()


@pytest.fixture
def silent(runtime: pathlib.Path) -> Iterator[str]:
    """A default socket at which nothing is answered."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime / "shop-01234567.sock"))
        listener.listen(128)
        yield listener.getsockname()


@pytest.mark.parametrize(
    "hostile",
    [
        {"sockets": ["\ud800"]},
        {"sockets": ["/tmp/\0"]},
        {"sockets": ["/tmp/a.sock"], "root_path": "/srv\ud800"},
        {"sockets": ["/tmp/a.sock"], "root_path": "/srv\0"},
        {"sockets": []},
    ],
)
def test_an_entry_that_can_not_be_read_is_a_row_of_its_own(
    register: Register, silent: str, hostile: dict[str, object]
) -> None:
    broken = register(RegisteredApp("broken", **hostile))  # type: ignore[arg-type]
    register(RegisteredApp("shop", "/srv", [silent]))
    rows = {one.entry: one for one in live_instances(0.1)}
    assert len(rows) == 2
    assert rows[broken].problem == NO_APP
    told = rows[broken].as_dict()
    assert (told["pid"], told["socket"], told["sockets"]) == (os.getpid(), None, [])
    assert broken in rows[broken].describe()
    live_instances(0.1, directory="/srv")


@pytest.mark.parametrize("place", ["/srv\0", "/srv\ud800", "srv", "", None, 3, ["/srv"]])
def test_what_is_no_path_is_no_directory_of_an_instance(place: object) -> None:
    """And a relative path is none, which would be that of the client."""
    instance = LiveInstance("/run/a.sock", {"cwd": place, "root_path": place})
    assert instance.places == set()
    assert not instance.belongs_to(os.getcwd())


def test_an_answer_is_shown_with_its_length_bounded() -> None:
    long = 60_000 * "x"
    status = {
        "app": long,
        "state": long,
        "server": {"name": long},
        "cwd": "/" + long,
        "uptime": [long],
        "generation": long,
    }
    told = LiveInstance("/run/a.sock", status, problem=long).as_dict()
    assert [len(told[key]) for key in ("name", "state", "server")] == 3 * [MAX_SHOWN]
    assert len(told["cwd"]) == MAX_PATH
    assert (told["age"], told["generation"]) == (None, None)


def test_more_instances_than_there_are_descriptors_cost_their_own_rows(register: Register, silent: str) -> None:
    for number in range(2):
        register(*(RegisteredApp(f"shop{number}-{app}", "/srv", [silent]) for app in range(40)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(soft) if number not in used]
    # A limit may be lower than numbers that are in use.
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[20], hard))
    try:
        rows = live_instances(0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(rows) == 80
    problems = {row.problem for row in rows}
    assert problems == {"does not answer", f"{silent}: Too many open files"}


def test_in_several_rounds_all_are_asked(register: Register, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_ctl.client.instances.MAX_CONNECTIONS", 2)
    register(*(RegisteredApp(f"shop{app}", "/srv", [silent]) for app in range(5)))
    assert [row.problem for row in live_instances(0.1)] == 5 * ["does not answer"]


def test_one_that_is_waited_for_leaves_the_others_their_time() -> None:
    now = time.monotonic()
    assert _own_deadline(_Candidate(["/run/a.sock"]), now + 4000, 4) < now + 1500
    assert _own_deadline(_Candidate(["/run/a.sock"]), now + 4000, 1) > now + 3500
    assert _own_deadline(_Candidate(["ipc:///run/a.zmq"]), now + 4000, 4) == now + 4000


def test_an_instance_is_listed_once_however_its_directory_is_spelled(
    register: Register, silent: str, short_path: pathlib.Path
) -> None:
    link = short_path / "link"
    link.symlink_to(os.path.dirname(silent))
    register(RegisteredApp("shop", "/srv", [str(link / os.path.basename(silent))]))
    assert [row.name for row in live_instances(0.1)] == ["shop"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_entry_of_another_user_hides_none_of_mine(register: Register, silent: str) -> None:
    place = pathlib.Path(os.environ["TMPDIR"], "flask-ctl-54321")
    place.mkdir(mode=0o700)
    path = register(RegisteredApp("theirs", "/srv", [silent]), directory=place)
    for name in (place, path):
        os.chown(name, 54321, 54321)
    found = [(row.owner, row.socket) for row in live_instances(0.1, everyone=True) if row.owner in (0, 54321)]
    assert sorted(found) == [(0, silent), (54321, silent)]


def test_an_address_of_tcp_that_an_entry_names_is_not_asked(register: Register) -> None:
    register(RegisteredApp("shop", "/srv", ["tcp://192.0.2.1:5555"]))
    [row] = live_instances(0.1)
    assert row.problem == "tcp://192.0.2.1:5555 is not asked; if you trust it: --socket tcp://192.0.2.1:5555"
    with row.client(timeout=0.1) as client, pytest.raises(AccessDenied, match="not asked"):
        client.ping()


@pytest.mark.parametrize(
    ("trust", "host", "asked"),
    [
        (Trust(), "192.0.2.1", True),
        (Trust(entry="/x.instance"), "192.0.2.1", False),
        (Trust(entry="/x.instance"), "example.org", False),
        (Trust(entry="/x.instance"), "*", False),
        (Trust(entry="/x.instance"), "127.0.0.1", True),
        (Trust(entry="/x.instance"), "::1", True),
        (Trust(entry="/x.instance"), "localhost", True),
        (Trust(os.geteuid(), entry="/x.instance"), "127.0.0.1", True),
        (Trust(os.geteuid() + 1, entry="/x.instance"), "127.0.0.1", False),
    ],
)
def test_which_addresses_of_tcp_are_trusted(trust: Trust, host: str, asked: bool) -> None:
    address = parse_address(f"tcp://[{host}]:5555" if ":" in host else f"tcp://{host}:5555")
    if asked:
        trust.check_registered(address)
    else:
        with pytest.raises(AccessDenied, match="not asked"):
            trust.check_registered(address)
