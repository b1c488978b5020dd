"""A whole hub in memory: its clock, its threads' waits, its master and its workers are ours; the rest is the real code.

Time stands still while anything is left to do, and then jumps to when the next thing is due. So a test takes
milliseconds whatever the server's patience is, and one in which nothing can happen any more fails at once, by Stuck.
What workers, clients and signals do comes in an order drawn by a seed; on each way messages stay in order.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import flask_ctl.dispatch.futures
import flask_ctl.lifecycle.controller
import flask_ctl.lifecycle.operation
import flask_ctl.lifecycle.reload
import flask_ctl.lifecycle.stop
import flask_ctl.lifecycle.workforce
import flask_ctl.system.standby
from flask_ctl.dispatch.limits import Limits
from flask_ctl.dispatch.peer import Peer
from flask_ctl.dispatch.policy import Policy
from flask_ctl.errors import ReloadFailed
from flask_ctl.inspection.metrics import family, pack
from flask_ctl.protocol.typed import from_json
from flask_ctl.system import metrics
from flask_ctl.transports.factory import CurveFiles
from flask_ctl.workers import messages
from flask_ctl.workers.hub import apps, change, commands, cutting, endpoint, master, requests, status, stream, turnover
from flask_ctl.workers.hub import audit as auditing
from flask_ctl.workers.hub import hub as process
from flask_ctl.workers.hub import processes as asking
from flask_ctl.workers.hub import reload as reloading
from flask_ctl.workers.hub import stop as hub_stopping
from flask_ctl.workers.hub import table as workers
from flask_ctl.workers.messages import AppRecord, Figures, Hello, Loaded, Tally

PATIENCE = 30.0
"""Real seconds for a thread to do what it has to do; then the test has failed."""

LIMIT = 300.0
"""Seconds of the fake clock after which nothing is expected to happen any more."""

KEY = "app"
SIGNALS = {"stop": int(signal.SIGTERM), "fast": int(signal.SIGQUIT), "reload": int(signal.SIGHUP)}
SIGNALS_TO_WORKERS = {"recycle": int(signal.SIGTERM)}


class Stuck(AssertionError):
    """Nothing will ever happen again, or not within LIMIT."""


class _Closed(BaseException):
    """Ends the threads of a test that is over."""


class Clock:
    """The time, and everything that waits for it or for another thread."""

    def __init__(self) -> None:
        # Later than the real clock of any machine: whatever is computed from that is over, and shows.
        self.now = 1e9
        self.monitor = threading.Condition()
        self.threads = 0
        self.closed = False
        self.era = 0
        self._parked: list[tuple[Callable[[], bool], float]] = []

    def park(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait, with the monitor held, until `ready` or for so many seconds of this clock; whether it was ready."""
        era = getattr(threading.current_thread(), "era", self.era)
        entry = (ready, math.inf if timeout is None else self.now + timeout)
        self._parked.append(entry)
        self.monitor.notify_all()
        try:
            while not (self.closed or era != self.era or ready() or self.now >= entry[1]):
                self.monitor.wait(PATIENCE)
        finally:
            self._parked.remove(entry)
        if self.closed or era != self.era:
            raise _Closed
        return ready()

    def end_threads(self) -> None:
        """End all threads of a process that has been killed; with the monitor held."""
        self.era += 1
        self.monitor.notify_all()
        deadline = time.monotonic() + PATIENCE
        while self.threads:
            assert time.monotonic() < deadline
            self.monitor.wait(PATIENCE)

    def wait_until_idle(self) -> None:
        """Until every thread waits for what has not come; with the monitor held."""
        deadline = time.monotonic() + PATIENCE
        while not self._is_idle():
            self.monitor.wait(PATIENCE)
            assert time.monotonic() < deadline, "a thread does not come to an end, or waits for what is not ours"

    def next_deadline(self) -> float:
        return min((deadline for _, deadline in self._parked), default=math.inf)

    def _is_idle(self) -> bool:
        waiting = [entry for entry in self._parked if not entry[0]() and self.now < entry[1]]
        return len(waiting) == len(self._parked) == self.threads


class FakeTime:
    """The module `time`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        return self._clock.now

    def sleep(self, seconds: float) -> None:
        with self._clock.monitor:
            self._clock.park(lambda: False, seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class FakeCondition:
    """A threading.Condition."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._tickets: list[list[bool]] = []
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        ticket = [False]
        with self._clock.monitor:
            self._tickets.append(ticket)
            self._lock.release()
            try:
                return self._clock.park(lambda: ticket[0], timeout)
            finally:
                self._tickets.remove(ticket)
                # Whoever has it needs the monitor to go on.
                while not self._lock.acquire(blocking=False):
                    self._clock.monitor.wait(0.001)

    def notify_all(self) -> None:
        with self._clock.monitor:
            for ticket in self._tickets:
                ticket[0] = True
            self._clock.monitor.notify_all()

    notify = notify_all


class FakeQueue:
    """A queue.SimpleQueue."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._items: collections.deque[Any] = collections.deque()

    def put(self, item: Any) -> None:
        with self._clock.monitor:
            self._items.append(item)
            self._clock.monitor.notify_all()

    def get(self) -> Any:
        with self._clock.monitor:
            self._clock.park(lambda: bool(self._items))
            return self._items.popleft()


class FakeThread(threading.Thread):
    """A thread that the clock knows of."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__(**{**options, "daemon": True})
        self._clock, self._over, self.era = clock, False, clock.era

    def start(self) -> None:
        with self._clock.monitor:
            self._clock.threads += 1
        super().start()

    def run(self) -> None:
        with contextlib.suppress(_Closed):
            super().run()
        with self._clock.monitor:
            self._over = True
            self._clock.threads -= 1
            self._clock.monitor.notify_all()

    def join(self, timeout: float | None = None) -> None:
        with self._clock.monitor:
            self._clock.park(lambda: self._over, timeout)

    def is_alive(self) -> bool:
        return not self._over


class FakeThreading:
    """The module `threading`. While `exhausted` no thread can be started."""

    exhausted = False

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def Thread(self, **options: Any) -> FakeThread:
        if self.exhausted:
            raise RuntimeError("can't start new thread")
        return FakeThread(self._clock, **options)

    def Condition(self) -> FakeCondition:
        return FakeCondition(self._clock)

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


class FakeWaker:
    """A Waker."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.is_set = False

    def fileno(self) -> int:
        return -1

    def wake(self) -> None:
        with self._clock.monitor:
            self.is_set = True
            self._clock.monitor.notify_all()

    def clear(self) -> None:
        self.is_set = False

    def close(self) -> None:
        pass


class FakeProcess:
    """A process, and the handle on it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pid = next(world.pids)
        self.alive = True
        self.suspended = False
        world.processes[self.pid] = self

    def fileno(self) -> int:
        return self.pid

    def ended(self) -> bool:
        return not self.alive

    def signal(self, signum: int) -> None:
        if self.alive and signum:
            self.world.soon(("signals", self.pid), self.on_signal, signum)

    def kill(self) -> None:
        self.die()

    def suspend(self) -> None:
        self.suspended = True

    def signal_pends(self) -> bool:
        return self.suspended

    def close(self) -> None:
        pass

    def die(self) -> None:
        """It is gone, without a word."""
        if not self.alive:
            return
        with self.world.clock.monitor:
            self.alive = False
            self.world.clock.monitor.notify_all()
        self.on_end()

    def on_signal(self, signum: int) -> None:
        raise NotImplementedError

    def on_end(self) -> None:
        raise NotImplementedError


class FakeWorker(FakeProcess):
    """A worker. What it is doing, and how it fails, is in its attributes."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        # Loading takes its time.
        world.clock.now += 0.001
        self.loaded_at = world.clock.now
        self.in_flight = 0
        self.total = 0
        self.aborted = 0
        self.waiting = 0
        self.memory: Any = None
        self.hook_kills = False
        self.serves = False
        self.leaving = False
        self.ending = self.waits = False
        self.hooks_ran = 0
        self.exit_functions_ran = False
        self.hook_hangs = world.hooks_hang
        self.drain_hook_left: str | None = None
        """The name of an `on_drain` function that never ends."""
        self.deaf = False
        """Whether it hears nothing of what the hub says."""
        self.metrics_hang = self.metrics_asked = False
        self.held = False
        self.state, self.ready = "starting", False
        self.chores: list[tuple[str, dict[str, Any]]] = []
        self.leases: list[dict[str, Any]] = []
        self.calls: list[int] = []
        self.hooks_asked: list[int] = []

    def begin(self, *, reported: bool = True) -> None:
        """A request comes in; what is not reported at once is known to the hub only when it asks."""
        assert self.alive
        self.in_flight += 1
        self.total += 1
        if reported:
            self._report()

    def finish(self) -> None:
        """A request is answered."""
        if self.alive and self.in_flight:
            self.in_flight -= 1
            self._report()
            self._end_if_done()

    def abort(self) -> None:
        """The server ends a request itself, as gunicorn's --timeout does, and then the worker."""
        self.world.lost += 1
        self.aborted += 1
        self.finish()
        self.leave()

    def leave(self) -> None:
        """The master's TERM: end when nothing is in flight."""
        if self.alive and not self.suspended and (self.serves or not self.world.deaf_while_loading):
            self.leaving = True
            self._end_if_done()

    def hello(self) -> None:
        self.serves = True
        self._send(messages.request("hello", messages.as_json(self._greeting()), messages.HELLO_ID))

    def release_hooks(self) -> None:
        """Its hooks come to an end."""
        self.hook_hangs = False
        for id in self.hooks_asked:
            self._send(messages.answer(id, None))
        if self.ending:
            self._go()

    def on_end(self) -> None:
        self.world.lost += self.in_flight
        self.world.tell_of_end(self)
        self.world.master.on_worker_end(self)

    def on_signal(self, signum: int) -> None:
        if signum == SIGNALS["stop"] and self.world.drains_by_itself:
            self.leave()
        else:
            self.die()

    def hear(self, line: bytes) -> None:
        """A line of the hub's."""
        if not self.alive or self.suspended or self.deaf:
            return
        message = json.loads(line)
        if message.get("id") == messages.HELLO_ID and "result" in message:
            self.state, self.ready = message["result"]["state"], message["result"]["ready"]
            self.leases = message["result"]["leases"]
        if "method" not in message:
            return
        answer = getattr(self, "do_" + message["method"])(message.get("id"), **message.get("params", {}))
        if answer is not NotImplemented and "id" in message and self.alive:
            self._send(messages.answer(message["id"], answer))

    def do_figures(self, id: int) -> Any:
        return messages.as_json(self._figures())

    def tell_metrics(self) -> None:
        """What it tells now and then."""
        self._send(messages.request("metrics", {"app": KEY, "own": self._own_metrics()}))

    def _own_metrics(self) -> str:
        return pack([family("flask_ctl_requests", "counter", "", [["_total", {}, self.total]])])

    def do_answer(self, id: int, app: str, question: str, params: dict[str, Any]) -> Any:
        assert app == KEY
        if question == "metrics":
            self.metrics_asked = True
            return NotImplemented if self.metrics_hang else [{"own": self._own_metrics()}]
        assert question == "oldest"
        return [{"number": number, "method": "GET", "route": "/", "age": 1.5} for number in range(self.in_flight)]

    def do_leave(self, id: None) -> Any:
        self._send(messages.request("left", {}))
        return NotImplemented

    def do_state(self, id: int | None, state: str, ready: bool) -> Any:
        self.state, self.ready = state, ready
        return {"hooks_run": 1, "hooks_failed": []}

    def do_chore(self, id: int, name: str, params: dict[str, Any]) -> Any:
        self.chores.append((name, params))
        return []

    def do_drain(self, id: int) -> Any:
        self.held = True
        return self.world.can_hold_back

    def do_pause(self, id: int) -> Any:
        return None

    def do_resume(self, id: int) -> Any:
        return None

    def do_close_silent(self, id: int) -> Any:
        return None

    def do_extend_grace(self, id: int, seconds: float) -> Any:
        return None

    def do_save_state(self, id: None, **state: Any) -> Any:
        self.world.memory = self.memory = state
        return NotImplemented

    def do_audit(self, id: int, level: int, fields: dict[str, Any]) -> Any:
        self.world.audit.append(fields)
        return None

    def do_preflight(self, id: int) -> Any:
        return {"command": ["x"], "directory": "/", "environment": {}}

    def do_run_stop_hooks(self, id: int, patience: float) -> Any:
        self._send(messages.request("received", {"id": id}))
        if self.hook_kills:
            self.die()
            return NotImplemented
        if self.hook_hangs:
            self.hooks_asked.append(id)
            return NotImplemented
        self.hooks_ran += 1
        return self.drain_hook_left

    def do_run_reload_hooks(self, id: int) -> Any:
        return None

    def do_call(self, id: int, **call: Any) -> Any:
        self._send(messages.request("received", {"id": id}))
        return f"by {self.pid}"

    def do_exit(self, id: int, wait: bool = False) -> Any:
        if self.ending:
            return None
        self.ending = self.exit_functions_ran = True
        self.waits = wait
        if not wait:
            self.die()
            return NotImplemented
        return None

    def _end_if_done(self) -> None:
        if self.leaving and not self.in_flight and self.waits:
            self._go()
        if self.leaving and not self.in_flight and not self.ending:
            self.ending = True
            if not self.hook_hangs or self.hooks_ran:
                self._go()

    def _go(self) -> None:
        self.exit_functions_ran = True
        self._report(final=True)
        self.world.soon(self.pid, self.die)

    def _report(self, final: bool = False) -> None:
        self._send(messages.request("report", {"figures": messages.as_json(self._figures()), "final": final}))

    def _figures(self) -> Figures:
        return Figures({KEY: Tally(self.in_flight, None, self.total, 0, self.aborted)}, waiting=self.waiting)

    def _greeting(self) -> Hello:
        world = self.world
        record = AppRecord(
            key=KEY, name="sample", root_path="/srv", endpoints=[world.address], required=False, grace=30.0,
            preflight_timeout=60.0, versions={"flask_ctl": "1", "python": "3"},
            commands={"greet": {"summary": "", "scope": "each", "role": "operate", "parameters": {}}},
            policy=Policy(), limits=Limits(), curve=CurveFiles(),
        )  # fmt: skip
        return Hello(
            apps.package_version(), self.pid, world.master.pid, Loaded(self.pid, self.loaded_at), world.wanted,
            "/srv", {"name": "fake", "version": "1", "listeners": []}, SIGNALS | SIGNALS_TO_WORKERS,
            world.drains_by_itself, None, [record], self._figures(), saved_state=self.memory,
            runs_exit_handlers=world.runs_exit_handlers,
        )  # fmt: skip

    def _send(self, line: bytes) -> None:
        self.world.soon(self.pid, self.world.to_hub, self, line)


class FakeMaster(FakeProcess):
    """A master like gunicorn's, or with `drains_by_itself` False like uWSGI's."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.stopping = False
        self.reloading = False

    def on_signal(self, signum: int) -> None:
        if not self.alive:
            return
        if signum == SIGNALS["reload"] and not self.stopping:
            self._reload()
        elif signum == SIGNALS["stop"]:
            self.stopping = True
            for worker in self.world.living():
                worker.leave() if self.world.drains_by_itself else worker.die()
            self._end_if_alone()
        elif signum == SIGNALS["fast"]:
            self.stopping = True
            for worker in self.world.living():
                worker.die()
            self._end_if_alone()

    def on_end(self) -> None:
        # Its workers notice it, and end when they have answered.
        for worker in self.world.living():
            self.world.soon(worker.pid, worker.leave)

    def on_worker_end(self, worker: FakeWorker) -> None:
        if not self.alive:
            return
        if self.stopping:
            self._end_if_alone()
        elif self.reloading and not self.world.drains_by_itself:
            self._start_new_if_alone()
        elif len(self.world.living()) < self.world.wanted:
            self.world.start_worker()

    def _reload(self) -> None:
        old = self.world.living()
        self.reloading = True
        if self.world.drains_by_itself:
            self._start_new()
        for worker in old:
            worker.leave()

    def _start_new_if_alone(self) -> None:
        if not self.world.living():
            self._start_new()

    def _start_new(self) -> None:
        self.reloading = False
        if self.world.new_code == "kills the master":
            self.die()
            return
        for number in range(self.world.wanted):
            self.world.start_worker(number)

    def _end_if_alone(self) -> None:
        if self.stopping and not self.world.living() and not self.world.end_is_held:
            self.die()


class FakeReactor:
    """A Reactor: all that the hub watches are ends of processes."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[int], Any]] = {}
        self.call_soon: Callable[..., Any] = lambda *_: None

    def register(self, descriptor: Any, events: int, callback: Callable[[int], Any]) -> None:
        self.watched[descriptor.fileno()] = callback

    def unregister(self, descriptor: Any) -> None:
        self.watched.pop(descriptor.fileno(), None)


class FakeControl:
    """A ControlServer whose thread is the test's."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.restarts = 0
        self.endpoints = ["workers"]
        self.handlers: list[Any] = []

    def on_tick(self, chore: Any) -> None:
        """No address is opened later than at the first Hello."""

    def start(self, listeners: Any) -> None:
        """The workers' own socket is `World.to_hub`."""

    def add(self, listener: Any, handler: Any) -> None:
        self.endpoints.append(listener.endpoint)
        self.handlers.append(handler)

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.world.soon("control", function, *arguments)

    def flush(self) -> None:
        done: list[bool] = []
        self.call_soon(self.call_soon, done.append, True)
        with self.world.clock.monitor:
            self.world.clock.park(lambda: bool(done))

    def close(self) -> None:
        """Nothing is open."""


class FakePreflight:
    """A preflight whose end is the world's to say."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._cancelled = False

    def cancel(self) -> None:
        with self._world.clock.monitor:
            self._cancelled = True
            self._world.clock.monitor.notify_all()

    def run(self) -> None:
        world = self._world
        with world.clock.monitor:
            world.clock.park(lambda: self._cancelled or world.preflight != "held")
        if world.preflight == "fails" and not self._cancelled:
            raise ReloadFailed("refused", {"traceback": "x"})


class FakeStateFile:
    """A StateFile."""

    broken = False

    def __init__(self) -> None:
        self._text: str | None = None

    def read(self) -> messages.SavedState | None:
        return None if self._text is None else from_json(messages.SavedState, json.loads(self._text))

    def write(self, state: messages.SavedState) -> None:
        if not self.broken:
            self._text = json.dumps(messages.as_json(state))


class Asked:
    """A command that a client has sent."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.phases: list[str] = []

    @property
    def done(self) -> bool:
        return bool(self.answers)

    @property
    def result(self) -> Any:
        assert len(self.answers) == 1, self.answers
        assert "result" in self.answers[0], self.answers[0]
        return self.answers[0]["result"]

    @property
    def error(self) -> int:
        """The code of the error that it was answered with."""
        assert len(self.answers) == 1, self.answers
        return int(self.answers[0]["error"]["code"])


class World:
    """A hub, a master and its workers."""

    def __init__(self, patch: pytest.MonkeyPatch, seed: int = 0, **settings: Any) -> None:
        self.wanted = 2
        self.drains_by_itself = True
        self.can_hold_back = True
        self.runs_exit_handlers = True
        self.deaf_while_loading = False
        """Whether a worker that has just been forked loses what the master tells it."""
        self.hooks_hang = False
        self.end_is_held = False
        self.load_is_held = False
        self.new_code = "good"
        """Or ``too few``, ``never``: of the workers for it some or all hang in loading it; ``kills the master``."""
        self.preflight = "passes"
        """Or ``fails``, ``held``."""
        for name, value in settings.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.address = "/nowhere/app.sock"
        self.clock = Clock()
        self.pids = itertools.count(100)
        self.processes: dict[int, FakeProcess] = {}
        self.memory: Any = None
        self.state_file = FakeStateFile()
        self.audit: list[dict[str, Any]] = []
        self.lost = 0
        """Requests that were in flight in workers which have ended."""
        self._random = random.Random(seed)
        self._ways: dict[Any, collections.deque[tuple[Callable[..., Any], tuple[Any, ...]]]] = {}
        self._loading: list[FakeWorker] = []
        self._alarm = math.inf
        self._ids = itertools.count(1)
        self.threading = FakeThreading(self.clock)
        self._patch(patch)
        self.master = FakeMaster(self)
        self._start_hub()

    def begin(self) -> None:
        """Start the workers."""
        for _ in range(self.wanted):
            self.start_worker()
        self.run(lambda: len(self.hub.workers) == self.wanted)
        self.clock.now += 1.0

    def _start_hub(self) -> None:
        self.control = FakeControl(self)
        self.reactor = FakeReactor()
        self.reactor.call_soon = self.control.call_soon
        self.hub = process.Hub("/nowhere/hub", -1, self.master, self.control, self.state_file)  # type: ignore[arg-type]
        self.hub._endpoint.attach(self.reactor)  # type: ignore[arg-type]
        self.main = FakeThread(self.clock, target=self.hub.run, name="hub")
        self.main.start()

    # What a test does

    def kill_hub(self) -> None:
        """End it without a word; what it has sent arrives, what it was sent is lost."""
        with self.clock.monitor:
            self.clock.end_threads()
            for way in list(self._ways):
                kept = [call for call in self._ways[way] if call[0] != self.to_hub]
                self._ways[way] = collections.deque([] if way in ("control", "clients") else kept)
                if not self._ways[way]:
                    del self._ways[way]

    def next_hub(self, *but: FakeWorker) -> None:
        """Start another one, to which the workers connect."""
        self._start_hub()
        for worker in self.living():
            if worker.serves and worker not in but:
                worker.hello()

    def living(self) -> list[FakeWorker]:
        return [p for p in self.processes.values() if isinstance(p, FakeWorker) and p.alive]

    def start_worker(self, number: int = 0) -> None:
        worker = FakeWorker(self)
        comes = {"never": False, "too few": number > 0}.get(self.new_code, True)
        if self.load_is_held or not comes:
            self._loading.append(worker)
        else:
            worker.hello()

    def release_load(self) -> None:
        """The workers that were held while they loaded go on."""
        self.load_is_held = False
        loading, self._loading = self._loading, []
        for worker in loading:
            if worker.alive:
                worker.hello()

    def release_end(self) -> None:
        """The master may end."""
        self.end_is_held = False
        self.master._end_if_alone()

    def ask(self, method: str, **params: Any) -> Asked:
        """Send a command, and follow its progress."""
        asked = Asked()
        message = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": {**params, "_progress": True}}
        self.soon("clients", self._handle, json.dumps(message).encode(), asked)
        return asked

    def run(self, until: Callable[[], Any] | None = None) -> None:
        """Go on until that is so; by default until the hub has ended."""
        until = until or (lambda: not self.main.is_alive())
        limit = self.clock.now + LIMIT
        while True:
            with self.clock.monitor:
                self.clock.wait_until_idle()
                if until():
                    return
                way = self._random.choice(list(self._ways)) if self._ways else None
                if way is None:
                    self._let_time_pass(limit)
                    continue
                function, arguments = self._ways[way].popleft()
                if not self._ways[way]:
                    del self._ways[way]
            function(*arguments)
            self.wake()

    def sleep(self, seconds: float) -> None:
        """Go on for so many seconds, or until the hub has ended."""
        self._alarm = self.clock.now + seconds
        self.run(lambda: not self.main.is_alive() or (self.clock.now >= self._alarm and not self._ways))
        self._alarm = math.inf

    def wake(self) -> None:
        """Have every thread look whether what it waits for has come."""
        with self.clock.monitor:
            self.clock.monitor.notify_all()

    def answer(self, method: str, **params: Any) -> Asked:
        """Ask, and go on until there is an answer."""
        asked = self.ask(method, **params)
        self.run(lambda: asked.done)
        return asked

    def close(self) -> None:
        with self.clock.monitor:
            self.clock.closed = True
            self.clock.monitor.notify_all()
            deadline = time.monotonic() + PATIENCE
            while self.clock.threads:
                assert time.monotonic() < deadline
                self.clock.monitor.wait(PATIENCE)

    # What the parts tell it

    def soon(self, way: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Call it on the control thread, after what goes the same way."""
        with self.clock.monitor:
            self._ways.setdefault(way, collections.deque()).append((function, arguments))
            self.clock.monitor.notify_all()

    def to_hub(self, worker: FakeWorker, line: bytes) -> None:
        peer = Peer(worker.pid, os.geteuid(), os.getegid())
        keeper = _Keeper(self, worker)
        answer = self.hub._endpoint.handle(line.rstrip(b"\n"), peer, lambda _: None, keeper)
        if answer is not None:
            assert isinstance(answer, bytes)
            keeper.send(answer)

    def tell_of_end(self, worker: FakeWorker) -> None:
        def tell() -> None:
            if worker.pid in self.reactor.watched:
                self.reactor.watched[worker.pid](1)

        # Its last words may be read before or after that.
        self.soon(worker.pid, tell)

    def _handle(self, message: bytes, asked: Asked) -> None:
        def answered(data: Any) -> None:
            asked.answers.append(json.loads(data))

        def notify(line: bytes) -> None:
            asked.phases.append(json.loads(line)["params"]["phase"])

        peer = Peer(os.getpid(), os.geteuid(), os.getegid())
        answer = self.control.handlers[0].handle(message, peer, notify, _Client())
        if isinstance(answer, Future):
            answer.add_done_callback(lambda future: self.control.call_soon(answered, future.result()))
        else:
            answered(answer)

    def _let_time_pass(self, limit: float) -> None:
        due = min(self.clock.next_deadline(), self._alarm)
        if due > limit:
            state = self.hub._lifecycle.state.value
            workers = [
                {name: value for name, value in vars(worker).items() if name != "world"} for worker in self.living()
            ]
            phases = [one and one.phase for one in (self.hub._stop, self.hub._reload)]
            raise Stuck(f"{state}, stop and reload {phases}, master lives: {self.master.alive}, workers: {workers}")
        self.clock.now = max(due, self.clock.now)
        self.clock.monitor.notify_all()

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        fake_time = FakeTime(self.clock)

        def new_future() -> Future[Any]:
            future: Future[Any] = Future()
            future._condition = FakeCondition(self.clock)  # type: ignore[assignment]
            return future

        class FakeQueues:
            SimpleQueue = staticmethod(lambda: FakeQueue(self.clock))

        fakes = {
            "time": fake_time, "threading": self.threading, "new_future": new_future, "queue": FakeQueues,
            "open_process": self.processes.get, "parent_of": lambda pid: self.master.pid,
            "Waker": lambda: FakeWaker(self.clock),
        }  # fmt: skip
        for module in (
            flask_ctl.dispatch.futures, flask_ctl.lifecycle.controller, flask_ctl.lifecycle.logs,
            flask_ctl.lifecycle.operation,
            flask_ctl.lifecycle.reload, flask_ctl.lifecycle.stop, flask_ctl.lifecycle.workforce,
            flask_ctl.system.standby, apps, asking,
            auditing, change, commands, cutting, endpoint, turnover, master, process, reloading, requests, status,
            stream, hub_stopping, workers,
        ):  # fmt: skip
            for name, fake in fakes.items():
                if hasattr(module, name):
                    patch.setattr(module, name, fake)
        patch.setattr(process, "wait_readable", self._wait_readable)
        patch.setattr(metrics, "age_of", lambda pid: 0.0)
        patch.setattr(metrics, "metrics_of", lambda readers, pids: {})
        for module in (change, reloading):
            patch.setattr(module, "Preflight", lambda *_args, **_options: FakePreflight(self))

    def _wait_readable(self, descriptors: list[int], timeout: float | None) -> list[int]:
        waker: Any = self.hub._waker
        with self.clock.monitor:
            self.clock.park(
                lambda: waker.is_set or (self.master.fileno() in descriptors and not self.master.alive), timeout
            )
        return []


class _Client:
    """A client's connection."""

    def keep(self, reply: Any) -> None:
        raise AssertionError("a hub is no image that could leave a reply to the next one")

    def send(self, message: bytes) -> None:
        raise AssertionError("only workers are told something that is no answer")

    def subscribe(self, stream: Any, *, plain: bool = False) -> int:
        raise AssertionError("no command of this test streams")

    def cancel(self, subscription: int) -> bool:
        return False


class _Keeper(_Client):
    """A worker's connection."""

    def __init__(self, world: World, worker: FakeWorker) -> None:
        self._world, self._worker = world, worker

    def send(self, message: bytes) -> None:
        self._world.soon(("to", self._worker.pid), self._worker.hear, message)


@contextlib.contextmanager
def world(seed: int = 0, **settings: Any) -> Iterator[World]:
    """A hub with its workers, who have introduced themselves."""
    with pytest.MonkeyPatch.context() as patch:
        made = World(patch, seed, **settings)
        try:
            made.begin()
            yield made
        finally:
            made.close()
