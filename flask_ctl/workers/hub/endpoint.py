"""The hub's side of the workers' private socket: messages become calls of the hub."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ...dispatch.dispatcher import Answer, Notify
from ...dispatch.futures import then
from ...dispatch.guard import Guard
from ...dispatch.limits import Limits
from ...dispatch.peer import Peer
from ...dispatch.policy import Policy
from ...dispatch.replies import Connection
from ...errors import INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, CommandError, RemoteProtocolError
from ...inspection.exceptions import MAX_ENTRIES
from ...inspection.feeds import FEEDS, ring_of
from ...inspection.ring import Ring
from ...lifecycle.stop import Mode
from ...protocol.jsonrpc import decode, encode, error_object, result_object
from ...protocol.typed import SHOWN, from_json
from ...system.processes import open_process
from ...transports.base import Handler
from ...transports.reactor import READ, Reactor
from ...transports.socketfile import SocketFile
from ...transports.unix import UnixListener
from .. import messages
from ..messages import Figures, Hello, LeftException, LeftItems, Welcome
from .table import MAX_WORKERS, Snapshot, Worker, Workers

logger = logging.getLogger("flask_ctl")

T = TypeVar("T")

_SAME_USER = Policy()
_LATEST = 1e11
"""A Unix time that any calendar can show."""

_ROOM = Limits(connections=2 * MAX_WORKERS)


class WorkersSocket(UnixListener):
    """Listens for workers; the lock on its path has been taken by the worker that started the hub."""

    def __init__(self, path: str, lock: int, on_attach: Callable[[Reactor], Any]) -> None:
        super().__init__(path, Guard(limits=_ROOM), SocketFile(path, lock=lock))
        self._on_attach = on_attach

    def attach(self, reactor: Reactor, handler: Handler) -> None:
        super().attach(reactor, handler)
        self._on_attach(reactor)


class WorkerEndpoint:
    """Handles the messages of workers. Each is checked first: whatever a worker sends, the hub goes on."""

    def __init__(
        self,
        workers: Workers,
        *,
        generation_of: Callable[[Hello], int],
        on_hello: Callable[[Worker], Welcome],
        on_report: Callable[[], Any],
        on_end: Callable[[Worker], Any],
        on_stop: Callable[[Any, float, Peer], Any],
        on_read_metrics: Callable[[str], Future[str]],
    ) -> None:
        """`generation_of` tells the generation of a new worker's code. `on_stop` is for a stop that an app asks for.

        `on_read_metrics` gives the packed metrics of an app, by its key.
        """
        self._workers = workers
        self._generation_of = generation_of
        self._on_hello = on_hello
        self._on_report = on_report
        self._on_end = on_end
        self._on_stop = on_stop
        self._on_read_metrics = on_read_metrics
        self._reactor: Reactor | None = None

    def attach(self, reactor: Reactor) -> None:
        """Watch the workers' ends from this reactor."""
        self._reactor = reactor
        for worker in self._workers:
            self._watch(worker)

    def handle(self, message: bytes, peer: Peer, notify: Notify, connection: Connection | None = None) -> Answer:
        id = None
        try:
            _SAME_USER.check(peer, "operate")
            value = decode(message)
            if not isinstance(value, dict):
                raise CommandError("no object", code=INVALID_REQUEST)
            id = value.get("id")
            if "method" not in value:
                self._settle(value, peer)
                return None
            return self._serve(value["method"], value.get("params", {}), id, peer, connection)
        except CommandError as error:
            return encode(error_object(id, error))
        except RemoteProtocolError as error:
            return encode(error_object(id, CommandError(error.message, code=INVALID_PARAMS)))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # Whatever a worker sends, the hub goes on for the others. What the system lacks is no fault of the message:
            # the control thread begins anew, and the workers connect again.
            logger.exception("a message of worker %s failed", peer.pid)
            return encode(error_object(id, CommandError(f"{type(error).__name__}: {error}")))

    def handle_plain(self, line: bytes, peer: Peer, connection: Connection | None = None) -> Answer:
        return b"this socket is for the workers; look for the app's own\n"

    def _serve(self, method: Any, params: Any, id: Any, peer: Peer, connection: Connection | None) -> Answer:
        if not isinstance(params, dict):
            raise CommandError("the parameters are no object", code=INVALID_PARAMS)
        if method == "hello":
            welcome = self._hello(from_json(Hello, params), peer, _sender(connection))
            return encode(result_object(id, messages.as_json(welcome)))
        worker = self._workers.get(peer.pid)
        if worker is None:
            raise CommandError("say hello first", code=INVALID_REQUEST)
        if method == "report":
            figures = from_json(Figures, params.get("figures"), "figures")
            worker.final = bool(params.get("final"))
            worker.hear(figures)
            self._on_report()
        elif method == "exceptions":
            self._exceptions(worker, params)
        elif method == "metrics":
            self._metrics(worker, params)
        elif method == "read_metrics":
            return self._read_metrics(worker, params, id)
        elif method == "left":
            worker.left = _rings(params)
        elif method == "received":
            worker.received(from_json(int, params.get("id"), "id"))
        elif method == "stop":
            mode, grace = from_json(Mode, params.get("mode"), "mode"), from_json(float, params.get("grace"), "grace")
            if not 0 <= grace < math.inf:
                raise CommandError(f"grace is no number of seconds: {grace!r}", code=INVALID_PARAMS)
            self._on_stop(mode, grace, peer)
        else:
            raise CommandError(f"no method {method!r}", code=METHOD_NOT_FOUND)
        return None

    def _exceptions(self, worker: Worker, params: dict[str, Any]) -> None:
        entries = from_json(list[LeftException], params.get("exceptions"), "exceptions")
        key = _app_of(worker, params)
        if not all(0 <= at < _LATEST for entry in entries for at in (entry.first, entry.last)):
            raise CommandError("first or last is no time", code=INVALID_PARAMS)
        worker.exceptions[key] = [messages.as_json(entry) for entry in entries[-MAX_ENTRIES:]]

    def _metrics(self, worker: Worker, params: dict[str, Any]) -> None:
        key = _app_of(worker, params)
        before = worker.snapshots.get(key, Snapshot())
        own, registered = (from_json(str, params.get(name, ""), name) for name in ("own", "registered"))
        worker.snapshots[key] = Snapshot(own or before.own, registered or before.registered)
        worker.has_last_snapshot = params.get("last") is True

    def _read_metrics(self, worker: Worker, params: dict[str, Any], id: Any) -> Answer:
        result = self._on_read_metrics(_app_of(worker, params))
        answer: Answer = then(result, lambda text: encode(result_object(id, text)))
        return answer

    def _settle(self, value: dict[str, Any], peer: Peer) -> None:
        id, error = value.get("id"), value.get("error", {})
        if type(id) is not int or not isinstance(error, dict) or type(error.get("code", 0)) is not int:
            raise CommandError("no answer", code=INVALID_REQUEST)
        worker = self._workers.get(peer.pid)
        if worker is not None:
            worker.settle(id, value)
            if worker.next_deadline() is None:
                self._on_report()

    def _hello(self, hello: Hello, peer: Peer, send: Callable[[bytes], Any]) -> Welcome:
        if hello.pid != peer.pid:
            raise CommandError(f"pid {peer.pid} says that it is {hello.pid}", code=INVALID_REQUEST)
        worker = self._workers.get(hello.pid)
        if worker is not None:
            worker.renew(hello, send)
            self._workers.heard_of(hello)
            return self._on_hello(worker)
        handle = open_process(hello.pid)
        if handle is None:
            raise CommandError(f"pid {hello.pid} can't be watched")
        worker = Worker(hello, handle, send, self._generation_of(hello))
        try:
            self._workers.add(worker)
        except CommandError:
            handle.close()
            raise
        self._watch(worker)
        return self._on_hello(worker)

    def _watch(self, worker: Worker) -> None:
        assert self._reactor is not None
        self._reactor.register(worker.handle, READ, lambda _events: self._ended(worker))

    def _ended(self, worker: Worker) -> None:
        assert self._reactor is not None
        self._reactor.unregister(worker.handle)
        # Its final report may be read in this same round of the reactor.
        self._reactor.call_soon(self._on_end, worker)


def _app_of(worker: Worker, params: dict[str, Any]) -> str:
    key: str = from_json(str, params.get("app"), "app")
    if key not in {app.key for app in worker.hello.apps}:
        raise CommandError(f"no app of this worker: {key[:SHOWN]!r}", code=INVALID_PARAMS)
    return key


def _rings(params: dict[str, Any]) -> dict[str, Ring]:
    """By the name of the feed, what a worker leaves."""
    left = from_json(dict[str, LeftItems], {name: params[name] for name in FEEDS if name in params}, "what is left")
    rings = {name: ring_of(name, each.last, each.items) for name, each in left.items()}
    for ring in rings.values():
        if not all(0 <= item[0] < _LATEST for _, item in ring.after(0)):
            raise CommandError("an item has no time", code=INVALID_PARAMS)
    return rings


def _sender(connection: Connection | None) -> Callable[[bytes], Any]:
    if connection is None:
        raise CommandError("hello does not come in a batch", code=INVALID_REQUEST)
    return lambda line: connection.send(line.rstrip(b"\n"))
