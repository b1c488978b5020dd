"""The pytest plugin: what authors of tests with a live server complain of elsewhere, a sentence each."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

# Its native half takes no second import, which a run in this process would be for those to come.
from cryptography import x509  # noqa: F401
from cryptography.hazmat.primitives import hashes  # noqa: F401
from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: F401

CONFTEST = """
import contextlib, http.client, logging, sqlite3, threading, time, urllib.error, urllib.request
import flask, pytest

gate, hanging = threading.Event(), threading.Event()

def create_app():
    app = flask.Flask("shop")

    @app.get("/")
    def index():
        logging.getLogger("shop").warning("index was asked for")
        return "hello"

    @app.get("/broken")
    def broken():
        raise LookupError("no such article")

    @app.get("/slow")
    def slow():
        time.sleep(0.1)
        return "at last"

    @app.get("/hang")
    def hang():
        hanging.set()
        gate.wait()
        return "released"

    @app.get("/streamed")
    def streamed():
        def pieces():
            yield "one"
            raise LookupError("in the middle")
        return pieces()

    return app

@pytest.fixture(scope="SCOPE")
def app():
    return create_app()

def ask(url, timeout=20):
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            raise

def begin(live_app, path):
    # Goes on when the server has got the request.
    def ask_in_thread():
        with contextlib.suppress(OSError, http.client.HTTPException):
            ask(live_app + path)
    before = len(live_app.requests)
    threading.Thread(target=ask_in_thread, daemon=True).start()
    while len(live_app.requests) == before:
        time.sleep(0.001)
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs tests in this process with the app above, whose fixture has the scope that is given."""
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)

    def run(tests: str, *arguments: str, scope: str = "function", more: str = "") -> pytest.RunResult:
        pytester.makeconftest(CONFTEST.replace("SCOPE", scope) + textwrap.dedent(more))
        pytester.makepyfile("import pytest, threading, time\nfrom conftest import *\n" + textwrap.dedent(tests))
        options = ("-p", "no:flask", "-p", "no:cacheprovider", "-W", "error")
        return pytester.runpytest_inprocess(*options, *arguments)

    yield run
    sys.modules.pop("conftest", None)


def test_the_app_is_served_at_a_free_port_as_soon_as_the_fixture_returns(run: Run) -> None:
    result = run(
        """
        def test(live_app):
            assert ask(live_app.url) == "hello"
            assert ask(live_app + "/") == ask(str(live_app))
            assert live_app.url == f"http://{live_app.host}:{live_app.port}"
            assert live_app.app.name == "shop"
        """
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(("scope", "servers"), [("function", 2), ("module", 1), ("session", 1)])
def test_the_server_lives_as_long_as_the_app(run: Run, scope: str, servers: int) -> None:
    """Session scope is wanted for speed, function scope for isolation."""
    result = run(
        f"""
        seen = set()

        def test_one(live_app):
            seen.add(live_app)
            assert ask(live_app.url) == "hello"

        def test_two(live_app):
            seen.add(live_app)
            assert ask(live_app.url) == "hello"

        def test_number():
            assert len(seen) == {servers}
        """,
        scope=scope,
    )
    result.assert_outcomes(passed=3)


def test_a_fixture_of_session_scope_can_use_it_if_the_setting_says_so(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nctl_scope = session\n")
    result = run(
        """
        @pytest.fixture(scope="session")
        def base_url(live_app):
            return live_app.url

        @pytest.fixture(scope="session")
        def page(base_url):
            return base_url

        def test(page, live_app):
            assert ask(page) == "hello" and page == live_app.url
        """,
        scope="session",
    )
    result.assert_outcomes(passed=1)


def test_the_server_has_ended_before_the_app_fixture_takes_its_database_away(run: Run) -> None:
    """Else requests that are still running collide with the flush."""
    result = run(
        """
        def test(live_app):
            begin(live_app, "/slow")
        """,
        more="""
        database = []

        @pytest.fixture
        def app():
            app = create_app()
            database.append("open")
            app.after_request(lambda response: database.append("used") or response)
            yield app
            database.append("closed")

        def pytest_sessionfinish():
            assert database == ["open", "used", "closed"]
        """,
    )
    result.assert_outcomes(passed=1)
    assert result.ret == 0


def test_an_exception_of_a_view_fails_the_test_that_asked_with_the_traceback_of_the_view(run: Run) -> None:
    result = run(
        """
        def test_that_asks(live_app):
            with pytest.raises(Exception, match="500"):
                ask(live_app + "/broken")

        def test_that_comes_next(live_app):
            assert ask(live_app.url) == "hello"
        """,
        scope="session",
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(['*raise LookupError("no such article")*', "E*LookupError: no such article"])
    assert "FAILED" in result.stdout.str()
    assert "ERROR at" not in result.stdout.str()


def test_an_exception_in_the_middle_of_an_answer_fails_the_test_too(run: Run) -> None:
    result = run(
        """
        def test(live_app):
            with pytest.raises(Exception):
                ask(live_app + "/streamed")
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*LookupError: in the middle"])


def test_a_marker_allows_exceptions(run: Run) -> None:
    result = run(
        """
        @pytest.mark.ctl_allow_exceptions
        def test(live_app):
            with pytest.raises(Exception, match="500"):
                ask(live_app + "/broken")
            assert live_app.requests[0].status == 500
        """,
        "--strict-markers",
    )
    result.assert_outcomes(passed=1)


def test_the_tests_own_failure_comes_first_and_the_exception_is_in_its_report(run: Run) -> None:
    result = run(
        """
        def test(live_app):
            assert ask(live_app + "/broken") == "never"
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*HTTPError*", "*live_app*", "LookupError: no such article"])


@pytest.mark.parametrize("scope", ["function", "session"])
def test_a_request_that_still_runs_after_the_grace_fails_the_test_that_began_it_and_no_other(
    run: Run, scope: str
) -> None:
    result = run(
        """
        def test_that_begins(live_app):
            begin(live_app, "/hang")
            assert hanging.wait(60)

        def test_that_comes_next(live_app):
            assert ask(live_app.url) == "hello"

        def test_last():
            gate.set()
        """,
        "--ctl-grace=0.05",
        scope=scope,
    )
    result.assert_outcomes(failed=1, passed=2)
    result.stdout.fnmatch_lines(["*1 request not answered after 0.05 s:*", "*GET /hang, for *", "*gate.wait()*"])
    assert "ERROR at" not in result.stdout.str()


def test_what_the_server_logs_is_in_the_tests_caplog(run: Run) -> None:
    result = run(
        """
        def test(live_app, caplog):
            assert ask(live_app.url) == "hello"
            assert ("shop", 30, "index was asked for") in caplog.record_tuples
        """
    )
    result.assert_outcomes(passed=1)


def test_it_tells_what_this_test_has_asked_for(run: Run) -> None:
    result = run(
        """
        def test_one(live_app):
            ask(live_app.url)

        def test_two(live_app):
            ask(live_app + "/slow?q=1")
            pytest.raises(Exception, ask, live_app + "/none")
            with live_app.app.test_client() as client:
                client.get("/")
            (slow, missing) = live_app.requests
            assert (slow.method, slow.path, slow.query, slow.status) == ("GET", "/slow", "q=1", 200)
            assert slow.duration >= 0.1
            assert missing.status == 404
        """,
        scope="session",
    )
    result.assert_outcomes(passed=2)


def test_server_name_is_left_alone_and_urls_lead_to_the_server(run: Run) -> None:
    result = run(
        """
        def test(live_app):
            assert live_app.url_for("index") == live_app.url + "/"
            assert live_app.url_for("slow", q=1, _anchor="the end") == live_app.url + "/slow?q=1#the%20end"
            assert live_app.url_for("index", _external=True) == live_app.url_for("index", _external=False)
            assert live_app.url_for("index", _scheme="https", _method="GET").startswith("https://127.0.0.1")
            assert live_app.app.config["SERVER_NAME"] == "shop.example"
        """,
        more="""
        @pytest.fixture
        def app():
            app = create_app()
            app.config["SERVER_NAME"] = "shop.example"
            yield app
            assert app.config["SERVER_NAME"] == "shop.example"
        """,
    )
    result.assert_outcomes(passed=1)


def test_the_app_fixture_may_have_parameters(run: Run) -> None:
    result = run(
        """
        def test(live_app, request):
            assert live_app.app.config["NAME"] in request.node.name
            assert ask(live_app.url) == "hello"
        """,
        more="""
        @pytest.fixture(params=["one", "two"], scope="module")
        def app(request):
            app = create_app()
            app.config["NAME"] = request.param
            return app
        """,
    )
    result.assert_outcomes(passed=2)


def test_other_options_than_those_of_the_running_server_are_an_error(run: Run) -> None:
    result = run(
        """
        def test_one(live_app):
            pass

        @pytest.fixture(scope="session")
        def live_app_options():
            return {"grace": 1}

        class Test:
            @pytest.fixture
            def live_app_options(self):
                return {"grace": 2}

            def test(self, live_app):
                pass
        """,
        scope="session",
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["live_app runs already, with other live_app_options: {'grace': 1}"])


def test_a_database_in_memory_is_seen_by_the_server_if_its_connections_share_it(run: Run) -> None:
    result = run(
        """
        URI = "file:shop?mode=memory&cache=shared"

        def test(live_app):
            keeper = sqlite3.connect(URI, uri=True)
            keeper.execute("create table article (name)")
            keeper.execute("insert into article values ('tea')")
            keeper.commit()
            try:
                assert ask(live_app + "/articles") == "tea"
            finally:
                keeper.close()
        """,
        more="""
        import contextlib

        @pytest.fixture
        def app():
            app = create_app()

            @app.get("/articles")
            def articles():
                with contextlib.closing(sqlite3.connect("file:shop?mode=memory&cache=shared", uri=True)) as database:
                    return database.execute("select name from article").fetchone()[0]

            return app
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_client_that_tries_again_can_be_tested_by_a_pause_and_by_a_restart(run: Run) -> None:
    result = run(
        """
        def test(live_app):
            with live_app.pause(), pytest.raises(OSError):
                ask(live_app.url, timeout=0.1)
            assert ask(live_app.url) == "hello"
            port = live_app.port
            live_app.stop()
            with pytest.raises(OSError):
                ask(live_app.url)
            live_app.restart()
            assert live_app.port == port and ask(live_app.url) == "hello"
        """
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("ctl_scope", ["function", "session"])
def test_the_next_test_gets_a_running_server_although_one_has_stopped_it_and_failed(
    run: Run, pytester: pytest.Pytester, ctl_scope: str
) -> None:
    pytester.makeini(f"[pytest]\nctl_scope = {ctl_scope}\n")
    result = run(
        """
        ports = set()

        def test_stopped(live_app):
            ports.add(live_app.port)
            live_app.stop()
            assert not live_app.is_running
            assert False, "before it was started again"

        def test_without_it():
            pass

        def test_next(live_app):
            ports.add(live_app.port)
            assert ask(live_app.url) == "hello" and live_app.is_running

        def test_number():
            assert len(ports) == 1
        """,
        scope="session",
    )
    result.assert_outcomes(failed=1, passed=3)
    result.stdout.fnmatch_lines("*before it was started again*")


def test_it_serves_https_with_a_certificate_of_its_own(run: Run) -> None:
    result = run(
        """
        import ssl

        @pytest.fixture
        def live_app_options():
            return {"ssl_context": "adhoc"}

        def test(live_app):
            assert live_app.url.startswith("https://127.0.0.1:")
            context = ssl._create_unverified_context()
            assert urllib.request.urlopen(live_app.url, context=context).read() == b"hello"
        """
    )
    result.assert_outcomes(passed=1)


def test_a_missing_app_fixture_is_named(run: Run) -> None:
    result = run("def test(live_app): pass", more="del app")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*fixture 'app' not found"])


def test_a_wrong_setting_is_told_before_the_first_test(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nctl_scope = sessions\n")
    result = run("def test(): pass")
    result.stderr.fnmatch_lines(["*ctl_scope is one of function, class, module, package, session, not 'sessions'"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_base_url_is_that_of_another_plugin_where_there_is_one(run: Run) -> None:
    result = run(
        """
        def test_without_app(base_url):
            assert base_url == "http://shop.example"
        """,
        "--base-url=http://shop.example",
        more="del app",
    )
    result.assert_outcomes(passed=1)


def test_base_url_is_that_of_live_app_without_another_plugin(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(CONFTEST.replace("SCOPE", "function"))
    pytester.makepyfile("def test(base_url, live_app): assert base_url == live_app.url")
    # As if pytest-base-url were not installed.
    hide = """
    from importlib import util

    def find_spec(name, *rest, find_spec=util.find_spec):
        return None if name == "pytest_base_url" else find_spec(name, *rest)

    util.find_spec = find_spec
    """
    pytester.makepyfile(sitecustomize=hide)
    monkeypatch.setenv("PYTHONPATH", str(pytester.path), prepend=os.pathsep)
    result = pytester.runpytest_subprocess("-p", "no:base_url", "-p", "no:flask", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


@pytest.mark.full
def test_it_works_beside_pytest_flask_under_xdist_and_with_importlib(pytester: pytest.Pytester) -> None:
    conftest = CONFTEST.replace("SCOPE", "session") + "\n@pytest.fixture(name='ask')\ndef _ask():\n    return ask\n"
    pytester.makeconftest(conftest)
    for number in range(2):
        pytester.makepyfile(
            **{
                f"test_{number}": """
                import pytest

                @pytest.mark.parametrize("n", range(4))
                def test(live_app, ask, n):
                    assert ask(live_app.url) == "hello"

                def test_of_pytest_flask(client, config):
                    assert client.get("/").status_code == 200
                """
            }
        )
    result = pytester.runpytest_subprocess("-n", "2", "--import-mode=importlib", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=10)


def test_it_can_be_switched_off(run: Run) -> None:
    result = run("def test(live_app): pass", "-p", "no:flask_ctl")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*fixture 'live_app' not found"])


def test_the_plugin_imports_nothing_but_pytest_until_it_is_used() -> None:
    program = """
import sys, pytest
before = set(sys.modules)
import flask_ctl.pytest_plugin
print(sorted(name for name in set(sys.modules) - before if not name.startswith("_")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("['flask_ctl', 'flask_ctl.pytest_plugin']\n", "")


SHOP = """
import atexit, os, sys, time, flask, flask_ctl

if os.environ.get("BREAK") == "start":
    sys.exit("no database")
if os.environ.get("BREAK") == "hang":
    time.sleep(1000)

def create_app():
    app = flask.Flask("shop")
    flask_ctl.Control(app)
    app.add_url_rule("/", view_func=lambda: os.environ.get("GREETING", "hello"), endpoint="index")
    atexit.register(lambda: print("exit handlers have run", flush=True))
    return app
"""


@pytest.fixture
def shop(pytester: pytest.Pytester) -> str:
    """Its directory, for `cwd` of a process."""
    return repr(str(pytester.makepyfile(shop=SHOP).parent))


def test_a_process_is_ready_when_it_is_there_and_its_exit_handlers_run(run: Run, shop: str) -> None:
    result = run(
        f"""
    import os

    def test(app_process):
        process = app_process(app="shop:create_app()", cwd={shop}, env={{"GREETING": "good evening"}})
        assert ask(process.url) == ask(process + "/") == "good evening"
        with process.client() as client:
            assert client.status()["state"] == "running"
        assert process.stop()["exit_code"] == 0
        assert "exit handlers have run" in process.output

    def test_gunicorn(app_process):
        process = app_process(app="shop:create_app()", server="gunicorn", cwd={shop})
        assert ask(process.url) == "hello"
    """
    )
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        pytest.param("start", "", "*ended with exit code 1 at its start*", id="ends"),
        # As long as it may take a slow machine to get there.
        pytest.param("hang", ", timeout=12", "*was not ready after 12 s*", id="hangs", marks=pytest.mark.full),
        pytest.param(
            "hang",
            ", timeout=15, server='gunicorn'",
            "*was not ready after 15 s*",
            id="a worker hangs",
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_process_that_does_not_start_fails_the_test_with_its_output_or_its_stacks(
    run: Run, shop: str, what: str, options: str, said: str
) -> None:
    result = run(
        f"""
    def test(app_process):
        app_process(app="shop:create_app()", cwd={shop}, env={{"BREAK": "{what}"}}{options})
    """
    )
    result.assert_outcomes(failed=1)
    shown = "*no database*" if what == "start" else "*shop.py*, line 6 in <module>*"
    result.stdout.fnmatch_lines([said, shown])


def test_a_process_that_ends_by_itself_with_an_error_is_an_error_of_its_test(run: Run, shop: str) -> None:
    result = run(
        f"""
    import os

    def test(app_process):
        process = app_process(app="shop:create_app()", cwd={shop})
        os.kill(process.pid, 9)

    def test_that_expects_it(app_process):
        process = app_process(app="shop:create_app()", cwd={shop})
        os.kill(process.pid, 9)
        assert process.wait() == -9
    """
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ended with exit code -9*"])
