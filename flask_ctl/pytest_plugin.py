"""The pytest plugin: fixtures that serve an app in a thread, or in a process of its own.

It is loaded in every run of pytest where this package is installed, so it imports nothing else until it is used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testing import AppProcess, LiveApp

SCOPES = ("function", "class", "module", "package", "session")
MARKER = "ctl_allow_exceptions"
GRACE = 5.0
SHOWN = 20_000
"""Characters of the output of a process in a report."""


class State:
    """What the fixtures of one run share: the running servers and processes, and the current test."""

    def __init__(self) -> None:
        self.test = ""
        self.live: dict[LiveApp, dict[str, Any]] = {}
        """The running servers, with their options."""
        self.processes: dict[AppProcess, str] = {}
        """With the tests that have started them."""
        self.apps: dict[int, pytest.FixtureDef[Any]] = {}
        """By the id of an app: the definition of the fixture `app` that holds it."""


STATE = pytest.StashKey[State]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and settings."""
    parser.getgroup("flask-ctl").addoption(
        "--ctl-grace",
        type=float,
        metavar="SECONDS",
        help=f"Time that requests to live_app may take after the end of their test (default: ctl_grace, or {GRACE:g}).",
    )
    parser.addini("ctl_grace", "Seconds that requests to live_app may take after the end of their test.", default=None)
    parser.addini(
        "ctl_scope", "Scope of live_app, app_process and base_url: function, class, module, package or session."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the settings, and add the fixture `base_url` where no other plugin has it."""
    config.stash[STATE] = State()
    config.addinivalue_line("markers", f"{MARKER}: exceptions of views do not fail a test that uses live_app.")
    scope = config.getini("ctl_scope")
    if scope and scope not in SCOPES:
        raise pytest.UsageError(f"ctl_scope is one of {', '.join(SCOPES)}, not {scope!r}")


def _scope(fixture_name: str, config: pytest.Config) -> Any:
    return config.getini("ctl_scope") or "function"


@pytest.fixture(scope="session")
def live_app_options() -> dict[str, Any]:
    """Options of `live_app`, such as ``{"ssl_context": "adhoc"}``: override this fixture."""
    return {}


@pytest.fixture(scope=_scope)
def live_app(request: pytest.FixtureRequest, app: Any, live_app_options: dict[str, Any]) -> LiveApp:
    """The app of the fixture `app`, served by a thread at a free port: a `flask_ctl.testing.LiveApp`.

    The server runs as long as the fixture `app` lives: over several tests, if its scope is wider than the function.
    """
    from .testing import LiveApp

    state = request.config.stash[STATE]
    for live, options in state.live.items():
        if live.app is app:
            if options != live_app_options:
                pytest.fail(f"live_app runs already, with other live_app_options: {options}", pytrace=False)
            _start_again(live)
            return live
    live = LiveApp(app, **{"grace": _grace(request.config), **live_app_options})
    live.begin_test(state.test)
    live.start()
    state.live[live] = live_app_options

    def end() -> None:
        del state.live[live]
        failure: BaseException | None = None
        try:
            failure = _failure_of(live, state.test, request.node)
        finally:
            try:
                live.stop(0 if failure is not None else None)
            finally:
                if failure is not None:
                    raise failure

    # Before the app's own teardown, which may take away what requests still use.
    state.apps.get(id(app), request).addfinalizer(end)
    return live


if importlib.util.find_spec("pytest_base_url") is None:
    # Where it is installed, the name is its own.

    @pytest.fixture(scope=_scope)
    def base_url(live_app: LiveApp) -> str:
        """The URL of `live_app`."""
        return live_app.url


@pytest.fixture(scope=_scope)
def app_process(request: pytest.FixtureRequest) -> Iterator[Callable[..., AppProcess]]:
    """Starts processes that serve an app, with the arguments of `flask_ctl.testing.AppProcess`.

    Each is ready when the call returns, and is stopped at the end: the exit code has to be 0, and no request cut.
    """
    from .testing import AppProcess

    state = request.config.stash[STATE]
    started: list[AppProcess] = []

    def start(*arguments: Any, **options: Any) -> AppProcess:
        __tracebackhide__ = True
        process = AppProcess(*arguments, **options)
        state.processes[process] = state.test
        process.start()
        started.append(process)
        return process

    yield start
    failures = []
    for process in reversed(started):
        try:
            process.stop()
        except AssertionError as error:
            failures.append(error)
        finally:
            process.kill()
    __tracebackhide__ = True
    if failures:
        raise failures[0]


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: Any) -> Iterator[None]:
    """Note which fixture holds an app, because the server of the app ends before the fixture does."""
    outcome: Any = yield
    if fixturedef.argname == "app" and outcome.excinfo is None:
        request.config.stash[STATE].apps[id(outcome.get_result())] = fixturedef


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any], request: Any) -> None:
    """Forget the app."""
    if fixturedef.argname == "app":
        state = request.config.stash[STATE]
        state.apps = {key: definition for key, definition in state.apps.items() if definition is not fixturedef}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Requests belong to this test from now on."""
    state = item.config.stash[STATE]
    state.test = item.nodeid
    # The reports of earlier tests have shown those that have ended.
    state.processes = {process: test for process, test in state.processes.items() if process.is_running}
    for live in state.live:
        live.begin_test(item.nodeid)
        # The fixture itself is not asked again, if its scope is wider than the function.
        if "live_app" in getattr(item, "fixturenames", ()):
            _start_again(live)


@pytest.hookimpl(hookwrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail the test for its requests; the innermost wrapper, so that its caplog has their log records."""
    outcome: Any = yield
    _judge(item, outcome)


@pytest.hookimpl(hookwrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail the test for what its fixtures have asked for at their end."""
    outcome: Any = yield
    _judge(item, outcome)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show what processes have written, if the test fails."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        report.sections += [
            (f"Output of {' '.join(process.command)}", process.output) for process in item.config.stash[STATE].processes
        ]


def _start_again(live: LiveApp) -> None:
    """Serve again, at the same port, where an earlier test has stopped the server."""
    if not live.is_running:
        live.restart()


def _judge(item: pytest.Item, outcome: Any) -> None:
    """Fail the test for what went wrong in its requests; if it fails already, say so in the report."""
    error = None if outcome.excinfo is None else outcome.excinfo[1]
    if isinstance(error, (KeyboardInterrupt, pytest.exit.Exception)):
        return
    for live in item.config.stash[STATE].live:
        failure = _failure_of(live, item.nodeid, item)
        if failure is None:
            continue
        if isinstance(failure, AssertionError):
            # Its message has the stacks; that of the plugin says nothing.
            failure = pytest.fail.Exception(str(failure), pytrace=False)
        if error is None:
            outcome.force_exception(failure)
            error = failure
        else:
            import traceback

            text = "".join(traceback.format_exception(type(failure), failure, failure.__traceback__))
            item.add_report_section("call", "live_app", text)


def _failure_of(live: LiveApp, test: str, node: Any) -> BaseException | None:
    failure = live.failure(test)
    allowed = node.get_closest_marker(MARKER) is not None
    return None if allowed and not isinstance(failure, AssertionError) else failure


def _grace(config: pytest.Config) -> float:
    given = config.getoption("--ctl-grace")
    if given is not None:
        return float(given)
    try:
        return float(config.getini("ctl_grace") or GRACE)
    except ValueError:
        raise pytest.UsageError(f"ctl_grace is a number of seconds, not {config.getini('ctl_grace')!r}") from None
