"""Fakes of the package's own seams: an HTTP server and a program, for every ordering of events in milliseconds.

What they stand for is tested with real servers and processes elsewhere.
"""

from __future__ import annotations

import itertools
import pathlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from harness import TIMEOUT, until

from flask_ctl.dispatch.commands import CommandRegistry, command_from
from flask_ctl.dispatch.limits import Limits
from flask_ctl.dispatch.peer import Peer
from flask_ctl.dispatch.policy import Policy
from flask_ctl.dispatch.replies import Call, Reply
from flask_ctl.errors import CommandError, ReloadFailed
from flask_ctl.inspection.exceptions import ExceptionTable
from flask_ctl.inspection.registries import Registries
from flask_ctl.lifecycle.app import ServedApp
from flask_ctl.lifecycle.commands import LifecycleCommands
from flask_ctl.lifecycle.instance import Instance
from flask_ctl.lifecycle.reload import ReloadRequest
from flask_ctl.lifecycle.stop import StopRequest
from flask_ctl.servers.base import HttpServer
from flask_ctl.servers.copies import ListenerCopies
from flask_ctl.servers.middleware import RequestCounter
from flask_ctl.system.directory import StartDirectory
from flask_ctl.system.handover import Handover
from flask_ctl.system.preflight import Preflight
from flask_ctl.system.program import Program
from flask_ctl.transports.factory import CurveFiles


class Gate:
    """Something that hangs, once it is shut, until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self) -> None:
        """Be there, and hang while the gate is shut."""
        self.reached.set()
        self._open.wait(TIMEOUT)


class Clock:
    """The module `time` as another module sees it: to sleep takes no time, and moves it on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cpu = 0.0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.cpu

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeCopies(ListenerCopies):
    """Copies without sockets; `waiting` connections have not been accepted."""

    def __init__(self) -> None:
        super().__init__({})
        self.made = False
        self.waiting = 0
        self.fails: Exception | None = None
        """What `make` raises, once."""

    def make(self) -> None:
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        self.made = True

    def discard(self) -> int:
        made, self.made = self.made, False
        return self.waiting if made else 0


class FakeServer(HttpServer):
    """An HTTP server without sockets, whose loop does at once what it is asked for."""

    name = "fake"
    copies: FakeCopies

    def __init__(self) -> None:
        super().__init__("1", ["http://fake"])
        self.on_end: Callable[[], Any] = lambda: None
        self.log: list[str] = []
        """What was asked for, in order."""
        self.copies = FakeCopies()
        self.reason: str | None = None
        self._requests: set[int] = set()
        self._numbers = itertools.count()
        self._draining = self._paused = self._left = self._ended = False

    # What visitors do.

    def begin(self) -> int:
        """A visitor's request that is in flight from now on. An image that is being left must never take one."""
        assert not self._paused, "it pauses"
        assert not self._left, "it has ended"
        number = next(self._numbers)
        self._requests.add(number)
        return number

    def answer(self, number: int) -> None:
        self._requests.discard(number)
        self.notify()

    @property
    def serves(self) -> bool:
        return not (self._draining or self._paused or self._left or self._ended)

    # What an operation asks for.

    def in_flight(self) -> int:
        return len(self._requests)

    def quiet(self) -> bool:
        return self._draining and not self._requests

    def drain(self) -> None:
        self.log.append("drain")
        self._draining = True
        self._paused = False
        self.notify()

    def close_idle(self) -> None:
        self.log.append("close idle")

    def cut(self) -> int:
        self.log.append("cut")
        count = len(self._requests)
        self._requests.clear()
        self.notify()
        return count

    def end(self) -> None:
        self.log.append("end")
        self._ended = True
        self.on_end()

    def obstacle(self) -> str | None:
        return self.reason

    def set_keep_alive(self, keep: bool) -> None:
        self.log.append(f"keep alive: {keep}")

    def requests(self) -> frozenset[int]:
        return frozenset(self._requests)

    def pause(self) -> None:
        self._paused = not self._draining
        self.notify()

    def resume(self) -> None:
        self._paused = False

    def paused(self) -> bool:
        return self._paused and not self._requests

    def leave(self) -> None:
        assert self.copies.made, "no copies are made"
        self.log.append("leave")
        self._left = True
        self.on_end()

    def hand_over(self) -> dict[str, Any]:
        self.log.append("hand over")
        return {"listeners": {}, "parked": []}


class FakePreflight(Preflight):
    """A preflight that passes when its gate lets it, or fails."""

    def __init__(self, gate: Gate, failure: str | None) -> None:
        self._gate = gate
        self._reason = failure

    def cancel(self) -> None:
        self._gate.open()

    def run(self) -> None:
        self._gate()
        if self._reason is not None:
            raise ReloadFailed(self._reason, {"traceback": self._reason})


class Gone(BaseException):
    """The process is no more: nothing of the main thread runs behind the call that ended it."""


class FakeProgram(Program):
    """A program whose main thread unwinds when its server ends, runs exit functions, and ends or becomes another one.

    `fate` tells how it went: ``("exec", state)``, ``("end", code)``, or ``("exit", code)`` for one that was ended
    without its main thread.
    """

    def __init__(self, server: FakeServer) -> None:
        self.preflight = Gate()
        self.unwinding = Gate()
        self.exit_function = Gate()
        self.broken: str | None = None
        self.fails: dict[str, Exception] = {}
        """What a method raises, by its name, once."""
        self.threads: list[str] = []
        self.environment = {}
        self.busy: list[str] = []
        self.fate: tuple[str, Any] | None = None
        self._over = threading.Event()
        self._when_unwound: Callable[[], Any] | None = None
        self._unwinds = threading.Event()
        # It is there from the start, whatever may fail later.
        self._main = threading.Thread(target=self._run_main, name="main of a fake program")
        self._main.start()
        server.on_end = self._unwinds.set

    def wait(self) -> tuple[str, Any]:
        """How it ended."""
        assert self._over.wait(TIMEOUT), "it goes on"
        assert self.fate is not None
        return self.fate

    start_directory = StartDirectory("/srv/current", "/srv/1")

    def start_in(self, directory: str) -> None:
        self.start_directory = StartDirectory(directory, "/srv/1")

    def obstacle(self) -> str | None:
        return None

    def start_preflight(self, limit: float, served: Any) -> FakePreflight:
        self._fail("start_preflight")
        return FakePreflight(self.preflight, self.broken)

    def background_threads(self, but: Any) -> list[str]:
        return list(self.threads)

    def busy_executor_threads(self) -> list[str]:
        return list(self.busy)

    def check(self) -> None:
        self._fail("check")

    def execute(self, variables: dict[str, str]) -> None:
        self._fail("execute")
        self._end("exec", self.state)
        Handover(self.state).close_rest()

    def at_exit(self, function: Callable[[], Any]) -> None:
        self._when_unwound = function

    def run_exit_functions(self) -> None:
        self.exit_function()

    def flush(self) -> None:
        """It has written nothing."""

    def terminate(self, exit_code: int) -> None:
        self._end("exit", exit_code)

    def close(self) -> None:
        for gate in (self.preflight, self.unwinding, self.exit_function):
            gate.open()
        self.threads.clear()

    def join(self) -> None:
        self._closed = True
        self._unwinds.set()
        self._main.join(TIMEOUT)

    state: Any = None
    _closed = False

    def _fail(self, name: str) -> None:
        if name in self.fails:
            raise self.fails.pop(name)

    def _run_main(self) -> None:
        self._unwinds.wait()
        if self._closed:
            return
        self.unwinding()
        until(lambda: not self.threads or self.fate, "no threads")
        try:
            (self._when_unwound or self.exit_function)()
            self._end("end", 0)
        except Gone:
            pass

    def _end(self, how: str, what: Any) -> None:
        if self.fate is None:
            self.fate = how, what
            self._over.set()
        if threading.current_thread() is self._main:
            raise Gone


class FakeConnection:
    """A client's connection."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, reply: Any) -> None:
        self.kept.append(reply)

    def send(self, message: bytes) -> None:
        """Not read by anybody."""

    def subscribe(self, stream: Any, *, plain: bool = False) -> int:
        raise AssertionError("no command of this test streams")

    def cancel(self, subscription: int) -> bool:
        return False


def double(number: int) -> int:
    """An app's own command."""
    return 2 * number


class Scene:
    """An instance that serves by a FakeServer, in a FakeProgram; `on_stop` is its hook, if it has one.

    With `readiness` it has hooks for that, too: they note themselves in `ran`, and `on_drain` can hang, or fail.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        hooks: bool = True,
        readiness: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.server = FakeServer()
        self.program = FakeProgram(self.server)
        self.program.environment.update(environment or {})
        self.on_stop = Gate()
        self.on_drain = Gate()
        self.on_drain_fails = False
        self.ran: list[str] = []
        self.hooks_ran = 0
        self.socket = directory / "scene.sock"
        app = ServedApp(
            name="fake", root_path=str(directory), requests=RequestCounter(lambda environ, start_response: []),
            exceptions=ExceptionTable(), registries=Registries(),
            commands=[command_from(double, name="double")], stop_hooks=[self._hook] if hooks else [], reload_hooks=[],
            run_command=lambda function, arguments: function(**arguments), run_hook=lambda hook: hook(),
            endpoints=[str(self.socket)], required=True, policy=Policy(), curve=CurveFiles(None, None),
            ready_hooks=[lambda: self.ran.append("on_ready")] if readiness else [],
            drain_hooks=[self._drain_hook] if readiness else [],
            limits=Limits(), grace=TIMEOUT, preflight_timeout=TIMEOUT, versions={"flask_ctl": "0"},
        )  # fmt: skip
        self.instance = Instance(self.server, [app], handle_signals=False, program=self.program)
        self.instance.open()
        self.instance.serving()
        self.connection = FakeConnection()
        self.held = 0
        """A request that a test holds in flight."""
        hand_over = self.instance._hand_over
        self.program.state = None

        def keep_state(reply: Reply | None) -> Any:
            self.program.state = hand_over(reply)
            return self.program.state

        self.instance._hand_over = keep_state  # type: ignore[method-assign]

    def _hook(self) -> None:
        self.on_stop()
        self.hooks_ran += 1
        self.ran.append("on_stop")

    def _drain_hook(self) -> None:
        self.on_drain()
        self.ran.append("on_drain")
        if self.on_drain_fails:
            raise ValueError("no registry")

    def close(self) -> None:
        self.on_stop.open()
        self.on_drain.open()
        self.program.close()
        for operation in (self.instance._stop, self.instance._reload):
            if operation is not None:
                assert operation.wait(TIMEOUT), "its thread goes on"
        if self.instance._reload is not None:
            # An exec would have ended all of it.
            self.instance._reload.after_commit._replacement.end(0, wait=lambda: True)
        self.program.join()
        self.instance.close()

    def reload(self, *, grace: float = TIMEOUT, cut: bool = False, preflight: bool = True) -> Future[Any]:
        """Ask for a reload; the Future has its failure."""
        request = ReloadRequest(grace, cut, preflight, TIMEOUT, {"pid": 1})
        return self.ask(lambda: self.instance.reload(request, Reply(self.connection, {"id": 1})))

    def stop(
        self,
        mode: Any = "graceful",
        *,
        grace: float | None = None,
        delay: float = 0.0,
        by: dict[str, Any] | None = None,
        **options: Any,
    ) -> Future[Any]:
        """Ask for a stop, as a client, or as a signal does."""
        limit = TIMEOUT if grace is None else grace
        request = StopRequest(mode, limit, by or {"pid": 2}, delay, explicit=grace is not None)
        return self.ask(lambda: self.instance.stop(request, **options))

    def follow_stop(self, mode: Any, grace: float) -> Future[Any]:
        """Ask for the result of a stop that is begun by somebody else, as a client does by `begin=false`."""
        commands = LifecycleCommands(self.instance, self.instance.apps[0], CommandRegistry())
        return self.ask(lambda: commands.stop(Call(Peer(pid=4)), mode, grace, begin=False))

    def drain(self, draining: bool = True) -> Future[Any]:
        """Begin or end a drain, as a client."""
        return self.ask(lambda: self.instance.set_draining(draining, {"pid": 3}))

    def signal(self, name: str, mode: Any = "graceful") -> Future[Any]:
        return self.stop(mode, by={"signal": name})

    def status(self) -> dict[str, Any]:
        return self.instance.status(self.instance.apps[0])

    def stop_is_in(self, phase: str) -> bool:
        stop = self.instance._stop
        return stop is not None and stop.phase == phase

    def reload_is_in(self, phase: str) -> bool:
        reload = self.instance._reload
        return reload is not None and reload.phase == phase

    def ask(self, ask: Callable[[], Future[Any]]) -> Future[Any]:
        """What `ask` gives on the control thread; what it raises is the Future's failure."""
        answer: Future[Any] = Future()

        def call() -> None:
            try:
                ask().add_done_callback(lambda done: _copy(done, answer))
            except CommandError as error:
                answer.set_exception(error)
            asked.set()

        asked = threading.Event()
        self.instance._control.call_soon(call)
        assert asked.wait(TIMEOUT), "the control thread hangs"
        return answer


def _copy(done: Future[Any], answer: Future[Any]) -> None:
    error = done.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())
