"""What workers and their hub tell each other: JSON-RPC both ways over a private Unix socket. No I/O here.

A worker begins each connection with the request `hello`; the answer is a Welcome. Then it notifies the hub:

- ``report``: its figures have changed. With ``final`` they are the last, and it ends in order.
- ``exceptions``: what an `ExceptionTable` of an app has at the end of the worker, before its last report.
- ``left``: by the name of a feed the LeftItems, at its end likewise, or before the hub kills it.
- ``metrics``: for an ``app`` what it has counted: its ``own`` metrics once a second, what it has collected from the
  ``registered`` ones; both with ``last`` at its end, likewise.
- ``received``: it has a request of the hub that runs the app's own code, which may take any time.
- ``stop``: the app asks for a stop of the server.

And it sends one request: ``read_metrics``, for a view of an ``app``; the answer is packed.

The hub sends requests:

- ``figures``: the answer is the worker's Figures of this moment.
- ``answer``: the answer to a question about the process, see `inspection.questions`.
- ``drain``: accept no new connections; the answer is whether the server can do that.
- ``close_silent``: close the connections that have not sent a byte.
- ``state``: the `state` of `status`, and whether load balancers are to send requests; the answer is the result of the
  hooks of the app for that. Without an id it is a notification.
- ``pause``, ``resume``: accept no connections while the master is signalled to replace the workers.
- ``preflight``: the answer is the command that loads the new code and ends.
- ``extend_grace``: the least number of seconds for requests in flight at the worker's end.
- ``call``, ``run_stop_hooks``, ``run_reload_hooks``: run a command or the hooks of the app. Those of a stop wait for so
  many seconds of ``patience`` for `on_ready` and `on_drain` functions; the answer is the name of one that still runs.
- ``collect``: the metrics of an app's registries, packed.
- ``chore``: one of the CHORES of `inspection.levels`, in a thread of the app's.
- ``audit``: write a record to the app's audit log.
- ``exit``: run the exit handlers and end, although requests are in flight.

And it notifies them: ``listening`` has its addresses, at which the workers show that they live; ``save_state`` has a
SavedState, which they keep for the next hub; after ``leave`` a worker sends ``exceptions`` and ``left``, because it is
about to be killed.

Workers and hub may be of different versions of the package for the time of a reload: fields may be added, never
changed, unknown ones are ignored, and `hello` means the same for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from ..errors import INTERNAL_ERROR, CommandError, as_command_error, error_from_object
from ..inspection.levels import Lease
from ..lifecycle.app import AppConfig
from ..lifecycle.readiness import Drain
from ..protocol.framing import MAX_FRAME
from ..protocol.jsonrpc import encode, error_object, request_object, result_object
from ..system.directory import StartDirectory

VERSION = 1
"""Version of this protocol."""

HELLO_ID = 0
T = TypeVar("T")


@dataclass(frozen=True)
class Tally:
    """What one worker counts for one app: requests in flight, the age of the oldest in seconds, totals.

    `aborted` are requests that the server itself ended before they were answered; `oldest_request` has the ``method``
    and the ``route`` of the oldest one.
    """

    in_flight: int = 0
    oldest: float | None = None
    total: int = 0
    errors: int = 0
    aborted: int = 0
    oldest_request: dict[str, str | None] | None = None


@dataclass(frozen=True)
class NumberedRequest:
    """A request in flight, in the answer of a worker to the question ``oldest``; `age` is in seconds."""

    number: int
    method: str
    route: str | None
    age: float


@dataclass(frozen=True)
class LeftException:
    """An entry of an `ExceptionTable`, as a worker leaves it to the hub."""

    id: str
    type: str
    message: str
    count: int
    first: float
    last: float
    origin: str
    traceback: str
    route: str | None = None
    method: str | None = None
    where: str | None = None


@dataclass(frozen=True)
class LeftItems:
    """The newest items of a `Ring`, each with its number, and the number of the `last` one."""

    last: int
    items: list[tuple[int, Any]]


@dataclass(frozen=True)
class Figures:
    """What a worker counts: a tally for each app, custom commands in flight, connections that wait to be accepted.

    `begun` are its connections that have sent something, as far as there are more of them than requests in flight;
    `silent` are connections that have not sent a byte. Both are counted while a stop drains. `failed_checks` are health
    checks that it has answered with 503 since it was ready.
    """

    apps: dict[str, Tally] = field(default_factory=dict)
    commands: int = 0
    waiting: int = 0
    begun: int = 0
    silent: int = 0
    failed_checks: int = 0

    @property
    def in_flight(self) -> int:
        """Requests and commands that have not been answered."""
        return sum(tally.in_flight for tally in self.apps.values()) + self.commands + self.begun

    @property
    def aborted(self) -> int:
        """Requests that the server itself has ended."""
        return sum(tally.aborted for tally in self.apps.values())


@dataclass(frozen=True, kw_only=True)
class AppRecord(AppConfig):
    """What the hub has to know of an app; `commands` as the command `commands` describes them."""

    key: str
    commands: dict[str, dict[str, Any]]
    has_registries: bool = False


@dataclass(frozen=True)
class Loaded:
    """The load token of a worker's code: the process that imported it, and when, on the system's monotonic clock.

    A forked child has its parent's token, which is how code that a reload would not renew gives itself away.
    """

    pid: int
    at: float


@dataclass(frozen=True)
class SavedReload:
    """A reload that the master has been asked for, for a hub that has to watch the rest of it.

    `since`, `began` and `deadline` are on the system's monotonic clock: when the master was asked, when the hub was,
    and when the grace ends. `count` is the number of workers at `since`, `old` are the pids of those that are left, and
    `passed` is the number of new ones that have come and gone. Of requests `cut` have been cut, the oldest of which
    are `cut_requests`; those that are left at the end of the grace are to be, with `cut_rest`.
    """

    since: float
    began: float
    deadline: float
    by: dict[str, Any]
    grace: float
    preflight_timeout: float
    cut_rest: bool
    cut: int
    count: int
    passed: int
    old: list[int]
    cut_requests: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class SavedMetrics:
    """The packed totals of workers that have ended, by app; and their number, with and without a last snapshot."""

    totals: dict[str, str] = field(default_factory=dict)
    ended: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class SavedHistory:
    """What a hub knows of reloads: `generation`, `reloaded_at` and `last_reload` of `status`, and the one under way.

    Code that was loaded after `renewed_at`, on the system's monotonic clock, is of this generation. `entries` is what
    the command `history` answers. So many workers more than the master's setting are expected as `resized` says.
    `started_at` is kept because the system clock may be set meanwhile.
    """

    generation: int
    reloaded_at: str | None = None
    last_reload: dict[str, Any] | None = None
    renewed_at: float | None = None
    begun: SavedReload | None = None
    entries: list[dict[str, Any]] = field(default_factory=list)
    resized: int = 0
    started_at: str | None = None
    failed_reloads: int = 0


@dataclass(frozen=True)
class SavedState:
    """What the workers keep for the next hub; the one with the highest number is the last.

    `totals` are the requests and errors of workers that have ended, by app; `drain` is the one in force, `leases` are
    levels of loggers.
    """

    number: int
    totals: dict[str, tuple[int, int]]
    history: SavedHistory
    drain: Drain | None = None
    leases: list[Lease] = field(default_factory=list)
    metrics: SavedMetrics = field(default_factory=SavedMetrics)


@dataclass(frozen=True)
class Hello:
    """A worker introduces itself.

    `signals` are the master's, by what they ask of it: stop, fast, reload, add, remove; recycle is for a worker.
    `instead` says for those of the last three that are missing what helps. `obstacle` says why a reload can't be done.
    A worker that has to know first whether it may serve is not `ready`, and says hello again when it serves.
    `directory` is that of its code, `commit` the git commit there when it was loaded. A worker
    that `runs_exit_handlers` has died if it ends without a final report. `index` is the one of its last Welcome, 0
    before.
    """

    package: str
    pid: int
    master: int
    loaded: Loaded
    wanted: int
    cwd: str
    server: dict[str, Any]
    signals: dict[str, int]
    drains_by_itself: bool
    obstacle: str | None
    apps: list[AppRecord]
    figures: Figures
    saved_state: SavedState | None = None
    ready: bool = True
    directory: StartDirectory | None = None
    runs_exit_handlers: bool = False
    commit: str | None = None
    instead: dict[str, str] = field(default_factory=dict)
    index: int = 0
    protocol: int = VERSION


@dataclass(frozen=True)
class Welcome:
    """The hub's answer: addresses, what is wrong with them, and whether the worker must not accept connections now.

    The `first` worker logs the addresses and the problems. `state` is that of `status`, `ready` says whether load
    balancers are to send requests; `leases` are levels of loggers. `index` is the worker's stable number in metrics.
    """

    endpoints: list[str]
    problems: list[str]
    draining: bool
    first: bool
    state: str = "running"
    ready: bool = True
    leases: list[Lease] = field(default_factory=list)
    index: int = 0
    protocol: int = VERSION


def request(method: str, params: Mapping[str, Any] | None = None, id: int | None = None) -> bytes:
    """A request, or without `id` a notification, as a line."""
    message = request_object(method, params) if id is None else request_object(method, params, id)
    return encode(message) + b"\n"


def answer(id: int, result: Any) -> bytes:
    """The answer to a request, as a line; `result` may be the exception that it has ended with."""
    failed = isinstance(result, BaseException)
    try:
        line = encode(error_object(id, as_command_error(result)) if failed else result_object(id, result)) + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        return answer(id, CommandError(f"the result is not JSON: {error}"))
    if len(line) > MAX_FRAME:
        return answer(id, CommandError(f"the result takes {len(line)} bytes, and {MAX_FRAME} is the most"))
    return line


def error_of(value: Mapping[str, Any]) -> CommandError:
    """The exception for the error of an answer."""
    error = value["error"]
    return error_from_object(error.get("code", INTERNAL_ERROR), str(error.get("message")), error.get("data"))


def as_json(value: Any) -> dict[str, Any]:
    """A Hello, Welcome, SavedState or Figures as JSON; `from_json` makes the dataclass of it again."""
    return asdict(value)
