"""`Control`: the extension's manners, its commands and its settings."""

from __future__ import annotations

import enum
import gc
import pathlib
import types
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from flask import Flask, current_app, request
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from flask_ctl import BackgroundServer, CommandError, ConfigurationError, Control, ControlClient, NotRunning
from flask_ctl.extension import registry as registry_module
from flask_ctl.lifecycle.instance import Instance
from flask_ctl.servers.base import WSGIApp
from flask_ctl.servers.middleware import Environ, StartResponse


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


Ask = Callable[..., Any]
"""Calls a command by its name and parameters."""


@pytest.fixture
def app() -> Flask:
    return Flask("demo")


@pytest.fixture
def ask(app: Flask, short_path: pathlib.Path) -> Ask:
    """Call a command of the app, as another process would."""

    def ask(name: str, /, **params: Any) -> Any:
        with BackgroundServer(app, socket=short_path / "x.sock"), ControlClient(short_path / "x.sock") as client:
            return client.call(name, **params)

    return ask


def test_a_second_control_is_refused_with_advice(app: Flask) -> None:
    Control(app)
    with pytest.raises(RuntimeError, match="remove the second"):
        Control(app)


def test_settings_of_the_app_are_kept_and_the_others_get_defaults(app: Flask) -> None:
    app.config["CTL_GRACE"] = 5
    Control(app)
    assert app.config["CTL_GRACE"] == 5
    assert app.config["CTL_SIGNALS"] is True
    assert app.config["CTL_REQUIRED"] is False


def test_an_app_is_not_kept_alive_by_its_control() -> None:
    control, app = Control(), Flask("short-lived")
    control.init_app(app)
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None
    assert control


def test_an_app_that_was_served_is_not_kept_alive(short_path: pathlib.Path) -> None:
    control, app = Control(), Flask("short-lived")
    control.init_app(app)
    with BackgroundServer(app, socket=short_path / "x.sock"):
        pass
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None


def test_one_control_serves_many_apps() -> None:
    control = Control()
    apps = [Flask("one"), Flask("two")]
    for app in apps:
        control.init_app(app)
    with pytest.raises(ConfigurationError, match="has 2 apps"):
        control.run()


@pytest.mark.parametrize(
    ("environment", "argument", "config", "expected"),
    [
        ("/e.sock", "/a.sock", "/c.sock", ["/e.sock"]),
        ("", "/a.sock", "/c.sock", ["/a.sock"]),
        ("", None, "/c.sock", ["/c.sock"]),
        ("", None, "unix:/c.sock", ["/c.sock"]),
        ("", None, ["/c.sock", "/d.sock"], ["/c.sock", "/d.sock"]),
        ('["/e.sock", "/f.sock"]', None, "/c.sock", ["/e.sock", "/f.sock"]),
        ("off", "/a.sock", "/c.sock", []),
        ("", "off", "/c.sock", []),
        ("", None, "off", []),
    ],
)
def test_the_environment_comes_before_the_argument_before_the_config(
    app: Flask,
    monkeypatch: pytest.MonkeyPatch,
    environment: str,
    argument: str | None,
    config: Any,
    expected: list[str],
) -> None:
    monkeypatch.setenv("FLASK_CTL_SOCKET", environment)
    app.config["CTL_SOCKET"] = config
    control = Control(app, socket=argument)
    assert control.sockets() == expected


def test_the_default_socket_depends_on_name_and_root_path(
    app: Flask, short_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = Flask("demo", root_path=str(tmp_path))
    one, two = Control(app).sockets()[0], Control(other).sockets()[0]
    assert one != two
    assert one.startswith(str(short_path / "run" / "flask-ctl" / "demo-"))


def test_an_app_listens_at_every_address_of_a_list(app: Flask, short_path: pathlib.Path) -> None:
    paths = [short_path / "a.sock", short_path / "b.sock"]
    with BackgroundServer(app, socket=paths):
        for path in paths:
            with ControlClient(path) as client:
                assert client.status()["app"] == "demo"


def test_stop_without_a_server_says_so(app: Flask) -> None:
    with pytest.raises(NotRunning):
        Control(app).stop()


class BeginningAgent:
    """Of a worker whose hooks and commands are called while it begins."""

    state = "starting"
    ready = ended = False

    def __init__(self, app: Flask, seen: list[tuple[str | None, bool]]) -> None:
        self.app = app
        self.seen = seen

    def begin(self) -> None:
        control = self.app.extensions["ctl"].control
        self.seen.append((control.state, control.ready))
        raise ConfigurationError("there is no hub")


def test_an_app_knows_what_serves_it_before_its_hooks_run(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    control, seen = Control(app), list[tuple[str | None, bool]]()
    monkeypatch.setattr(registry_module, "_agent_class", lambda: lambda worker, apps: BeginningAgent(app, seen))
    worker: Any = types.SimpleNamespace(name="a server")
    registry_module.registry.register_worker(worker, app.wsgi_app)
    assert seen == [("starting", False)]
    assert (control.state, control.ready) == (None, True)


def test_an_app_knows_its_server_before_its_commands_run(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    control, seen = Control(app), list[tuple[str | None, bool]]()

    def open(instance: Instance) -> None:
        seen.append((control.state, control.ready))
        instance.close()
        raise ConfigurationError("there is no directory")

    monkeypatch.setattr(Instance, "open", open)
    with pytest.raises(ConfigurationError, match="no directory"):
        BackgroundServer(app).start()
    assert seen == [("starting", False)]
    assert (control.state, control.ready) == (None, True)


def test_a_command_runs_in_an_app_context(app: Flask, ask: Ask) -> None:
    control = Control(app)

    @control.command
    def name() -> str:
        return current_app.name

    assert ask("name") == "demo"


def test_an_async_command_is_awaited(app: Flask, ask: Ask) -> None:
    control = Control(app)

    @control.command
    async def later(word: str) -> str:
        return word

    assert ask("later", word="now") == "now"


def test_results_are_encoded_by_the_apps_json_provider(app: Flask, ask: Ask) -> None:
    control = Control(app)

    @control.command
    def identity() -> uuid.UUID:
        return uuid.UUID(int=1)

    assert ask("identity") == str(uuid.UUID(int=1))


def test_a_command_can_have_another_name(app: Flask, ask: Ask) -> None:
    control = Control(app)

    @control.command(name="other", role="observe")
    def function() -> int:
        return 1

    assert ask("other") == 1
    assert ask("commands")["other"]["role"] == "observe"
    assert function() == 1


def test_every_kind_of_parameter_reaches_the_function_as_what_it_is(app: Flask, ask: Ask) -> None:
    control = Control(app)

    @control.command
    def show(
        colour: Colour,
        size: Literal["s", "m"],
        tags: list[int],
        ratio: float,
        flag: bool = False,
        note: str | None = None,
    ) -> str:
        return repr((colour, size, tags, ratio, flag, note))

    result = ask("show", colour="red", size="s", tags=[1, 2], ratio=1, flag=True)
    assert result == repr((Colour.RED, "s", [1, 2], 1.0, True, None))


@pytest.mark.parametrize("name", ["stop", "status", "reload", "run", "metrics"])
def test_reserved_names_are_refused_at_registration(app: Flask, name: str) -> None:
    control = Control(app)
    with pytest.raises(ValueError, match="reserved"):
        control.command(name=name)(lambda: None)


def test_a_parameter_of_an_unknown_type_is_refused_at_registration(app: Flask) -> None:
    control = Control(app)
    with pytest.raises(TypeError, match="can't be a parameter"):

        @control.command
        def bad(value: dict[str, int]) -> None: ...


def test_a_command_that_is_named_twice_is_refused(app: Flask) -> None:
    control = Control(app)
    control.command(name="twice")(lambda: None)
    with pytest.raises(ValueError, match="already"):
        control.command(name="twice")(lambda: None)


def test_a_command_that_exits_ends_neither_its_thread_nor_the_server(app: Flask, short_path: pathlib.Path) -> None:
    control = Control(app)

    @control.command
    def leave() -> None:
        raise SystemExit(3)

    with BackgroundServer(app, socket=short_path / "x.sock"), ControlClient(short_path / "x.sock") as client:
        for _ in range(5):
            with pytest.raises(CommandError, match="SystemExit"):
                client.call("leave")
        assert client.ping()["pong"]


@pytest.fixture
def _without_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_without_collections")
@pytest.mark.parametrize("how", ["Control(app)", "init_app", "with commands"])
def test_an_app_goes_with_its_last_reference(how: str) -> None:
    """As Flask's own test_app_freed_on_zero_refcount has it."""
    app = Flask("counted")
    control = Control()
    if how == "Control(app)":
        Control(app)
    else:
        control.init_app(app)
    if how == "with commands":
        control.command(name="one")(lambda: 1)
        control.on_stop(lambda: None)
    freed = weakref.ref(app)
    del app
    assert freed() is None


def test_an_app_that_only_middleware_holds_lives_on() -> None:
    def make() -> WSGIApp:
        app = Flask("counted")
        app.add_url_rule("/", view_func=lambda: "hello")
        Control(app)
        return app.wsgi_app

    middleware = ProxyFix(make())
    gc.collect()
    assert Client(middleware).get("/").text == "hello"


@pytest.mark.parametrize("when", ["before", "after"])
def test_requests_are_counted_whenever_middleware_is_added(when: str) -> None:
    app = Flask("counted")
    if when == "before":
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    Control(app)
    if when == "after":
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    app.test_client().get("/")
    assert app.extensions["ctl"].requests.totals() == (1, 0)


def test_the_class_of_an_app_is_named_as_before() -> None:
    class Own(Flask):
        def wsgi_app(self, environ: Environ, start_response: StartResponse) -> Any:
            environ["own"] = True
            return super().wsgi_app(environ, start_response)

    app = Own("counted")
    app.add_url_rule("/", view_func=lambda: str(request.environ["own"]))
    Control(app)
    assert isinstance(app, Own)
    assert type(app).__qualname__ == Own.__qualname__
    assert app.test_client().get("/").text == "True"
    assert app.extensions["ctl"].requests.totals() == (1, 0)
