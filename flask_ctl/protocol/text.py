"""Results as text: one screen for `status`, one line for other commands. For a terminal see `screen`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CommandError
from .escaping import printable

if TYPE_CHECKING:
    from datetime import datetime


def render_result(method: str, result: Any) -> str:
    """The text for a command's result; ends with a newline unless it is empty."""
    renderer = _RENDERERS.get(method, _render_other)
    text = renderer(result)
    return text + "\n" if text and not text.endswith("\n") else text


def render_error(error: CommandError) -> str:
    """One line for an error."""
    return f"error: {error.message}\n"


def seconds(value: float) -> str:
    """A duration in readable units: tenths of a second below a minute (0.8 s), else 5 min 3 s, 2 h 5 min, 3 d 4 h."""
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(value: float) -> str:
    """A number of bytes in readable units: 29.3 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if round(value, 1) < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def plural(count: int, noun: str) -> str:
    """1 request, 2 requests."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _ping(result: dict[str, Any]) -> str:
    return f"pong from pid {result['pid']}, flask-ctl {result['version']}, protocol {result['protocol']}"


def _status(status: dict[str, Any]) -> str:
    rows = status_rows(status)
    rows[WORKERS_AT:WORKERS_AT] = [("worker", _worker(worker)) for worker in status.get("workers", [])]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


WORKERS_AT = 4
"""The rows of `status` before the workers."""


def status_rows(status: dict[str, Any], now: datetime | None = None) -> list[tuple[str, str]]:
    """A label and a text for each line of `status` but those of the workers; with `now` times are relative to it."""
    rows = [(status["app"], _headline(status)), ("server", _server(status["server"]))]
    rows.append(("requests", _requests(status["requests"])))
    rows.append(("process", _process(status["process"])))
    rows.append(("directory", status.get("directory", status["cwd"])))
    if status["cwd"] != rows[-1][1]:
        rows.append(("works in", status["cwd"]))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in status["versions"].items())))
    if status.get("supervisor"):
        rows.append(("supervisor", _supervisor(status["supervisor"])))
    if status.get("service_manager"):
        rows.append(("notifies", _service_manager(status["service_manager"])))
    if status.get("fleet"):
        rows.append(("NATS", _fleet(status["fleet"])))
    if status.get("last_reload"):
        rows.append(("reloaded", _last_reload(status["last_reload"], now)))
    if status.get("draining"):
        rows.append(("draining", _draining(status["draining"], now)))
    if status.get("stopping"):
        rows.append(("stopping", _stopping(status["stopping"], now)))
    return rows


def _headline(status: dict[str, Any]) -> str:
    parent = f", under {status['parent']}" if status.get("parent") else ""
    return (
        f"{status['state']}, pid {status['pid']}{parent}, up {seconds(status['uptime'])},"
        f" generation {status['generation']}"
    )


def _server(server: dict[str, Any]) -> str:
    name = f"{server['name']} {server['version']}".rstrip()
    kept = f"; systemd keeps the sockets: {', '.join(server['activated'])}" if server.get("activated") else ""
    return f"{name} on {', '.join(server['listeners']) or 'an unknown address'}{kept}"


def _requests(requests: dict[str, Any]) -> str:
    oldest, which = "", requests.get("oldest_request")
    if requests.get("oldest") is not None:
        oldest = f" (oldest {seconds(requests['oldest'])}{': ' + request_name(which) if which else ''})"
    return (
        f"{requests['in_flight']} in flight{oldest}, {requests['total']} in all, {plural(requests['errors'], 'error')}"
    )


MAX_CUT_SHOWN = 5
"""Requests that were cut which a line of text names."""


def request_name(request: dict[str, Any]) -> str:
    """Method and route; a request to which Flask gave no route has only a method."""
    return f"{request['method']} {request['route'] or '(no route)'}"


def _process(process: dict[str, Any]) -> str:
    return (
        f"{size(process['rss'])}, {process['cpu']:.2f} cores, {plural(process['threads'], 'thread')},"
        f" {process['fds']} descriptors"
    )


def _worker(worker: dict[str, Any]) -> str:
    rss = f", {size(worker['rss'])}" if worker.get("rss") is not None else ""
    return f"pid {worker['pid']}, generation {worker['generation']}: {_requests(worker)}{rss}"


def _supervisor(supervisor: dict[str, Any]) -> str:
    policy = supervisor.get("restart", "unknown")
    again = "it may be started again after a stop" if policy == "unknown" else f"restart policy: {policy}"
    return f"{supervisor_name(supervisor)}; {again}"


def _service_manager(told: dict[str, Any]) -> str:
    access = ", which systemd hears only with NotifyAccess=all" if told["is_main"] is False else ""
    watchdog = f"; pings within {seconds(told['watchdog'])}" if told["watchdog"] else ""
    return f"the service manager, from pid {told['told_by']}{access}{watchdog}"


def _fleet(fleet: dict[str, Any]) -> str:
    servers = ", ".join(fleet["servers"])
    if fleet["problem"]:
        return f"not connected to {servers}: {fleet['problem']}"
    return f"{servers}, as {fleet['instance']} ({', '.join(fleet['roles'])})"


def supervisor_name(supervisor: dict[str, Any]) -> str:
    """The kind, and the supervisor's own name for the server: systemd shop.service."""
    names = [str(supervisor[key]) for key in ("unit", "process", "service", "pod") if supervisor.get(key)]
    return " ".join([supervisor["kind"], *names])


def _last_reload(reload: dict[str, Any], now: datetime | None) -> str:
    at = reload["at"] if now is None else f"{_rounded(seconds_since(reload['at'], now))} ago"
    cut = f", {reload['cut']} CUT" if reload.get("cut") else ""
    return f"{at} {'in ' + seconds(reload['elapsed']) if reload['ok'] else 'FAILED: ' + reload['error']}{cut}"


def _draining(draining: dict[str, Any], now: datetime | None) -> str:
    since = f"since {draining['since']}" if now is None else f"for {_rounded(seconds_since(draining['since'], now))}"
    by = ", ".join(f"{name} {value}" for name, value in draining["by"].items())
    checks = plural(draining["failed_checks"], "health check")
    return f"{since}, asked by {by}: {draining['in_flight']} in flight, {checks} failed"


def _stopping(stopping: dict[str, Any], now: datetime | None) -> str:
    waiting = stopping.get("waiting_for")
    tail = f", kept alive by {', '.join(waiting)}" if waiting else ""
    since, deadline = stopping["since"], stopping["deadline"]
    if deadline is None:
        asked = f"at {since}" if now is None else f"{_rounded(seconds_since(since, now))} ago"
        return f"{stopping['mode']}, asked for {asked}, as soon as the reload is over{tail}"
    if now is None:
        return f"{stopping['mode']} since {since}, until {deadline} at the latest{tail}"
    left = -seconds_since(deadline, now)
    until = f"for {_rounded(left)} more at the latest" if left > 0 else "past its deadline"
    return f"{stopping['mode']} for {_rounded(seconds_since(since, now))}, {until}{tail}"


def seconds_since(time: str, now: datetime) -> float:
    """Seconds from a time of `status` (RFC 3339) to `now`. Raises ValueError if it is none."""
    # Python 3.10 does not know the Z. The class is that of `now`: clients without a terminal don't import datetime.
    return (now - type(now).fromisoformat(time.replace("Z", "+00:00"))).total_seconds()


def _rounded(value: float) -> str:
    """A duration in its largest unit: 12 s, 2 min, 3 h, 4 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= length:
            return f"{value // length:.0f} {unit}"
    return f"{max(0.0, value):.0f} s"


def _stop(result: dict[str, Any]) -> str:
    again = _started_again(result)
    return f"{_stopped(result)}\n{again}" if again else _stopped(result)


CAN_KEEP_DOWN = ("systemd", "supervisor", "runit", "pm2")
"""Supervisors that a client can tell to stop a server and not to start it again."""


def _started_again(result: dict[str, Any]) -> str:
    """Who starts the server again after a stop; "" if that is not to be expected."""
    supervisor = result.get("supervisor")
    if (sockets := result.get("activated")) and not result.get("for_good"):
        remedy = "; stop --for-good prevents that" if supervisor else ""
        return f"systemd starts it again at the next connection to its sockets: {', '.join(sockets)}{remedy}"
    if not supervisor or supervisor["kind"] == "reloader":
        return ""
    name, policy = supervisor_name(supervisor), supervisor["restart"]
    if result.get("for_good"):
        return f"{name} does not start it again: it was told to stop it"
    again = result.get("starts_again")
    if again is not None and "job" in supervisor:
        return (
            f"{name} {'starts it again' if again else 'does not start it again'}: its {supervisor['job']} is under way"
        )
    if again is False:
        return f"{name} does not start it again (restart policy: {policy})"
    remedy = "; stop --for-good prevents that" if supervisor["kind"] in CAN_KEEP_DOWN else ""
    return (
        f"{name} starts it again (restart policy: {policy}){remedy}" if again else f"{name} may start it again{remedy}"
    )


def _stopped(result: dict[str, Any]) -> str:
    what = "the server" if result.get("embedded") or not result["pid"] else f"pid {result['pid']}"
    if result["outcome"] == "killed":
        return f"{what} was killed after {seconds(result['elapsed'])}"
    if result["outcome"] == "died":
        return f"{what} died before the stop was done"
    if result["outcome"] == "stopped":
        return f"{what} has ended before it told what became of its requests"
    cut = _cut(result)
    finished = plural(result["drained"], "request")
    died = f", {plural(result['died'], 'worker')} DIED" if result.get("died") else ""
    return f"{what} stopped: {finished} finished{cut}{_left_behind(result)}{died}, in {seconds(result['elapsed'])}"


def _drain(result: dict[str, Any]) -> str:
    again = " already" if result["changed"] is False else ""
    after = f", after {seconds(result['elapsed'])}" if "elapsed" in result else ""
    done = f"pid {result['pid']} is draining{again}: {result['in_flight']} in flight{after}"
    return "\n".join([done + _hooks(result), *_unanswered(result)])


def _resume(result: dict[str, Any]) -> str:
    before = ", and has not been draining" if result["changed"] is False else ""
    done = f"pid {result['pid']} is {result['state']}{before}"
    return "\n".join([done + _hooks(result), *_unanswered(result)])


def _hooks(result: dict[str, Any]) -> str:
    failed = "".join(f"\nhook FAILED: {printable(text)}" for text in result["hooks_failed"])
    return (f", {plural(result['hooks_run'], 'hook')} run" if result["hooks_run"] else "") + failed


def _reload(result: dict[str, Any]) -> str:
    if "hooks_run" in result:
        return _reload_of_config(result)
    cut = _cut(result)
    old = f", {plural(result['old_left'], 'old worker')} still at work" if result.get("old_left") else ""
    what = f"{cut}{_left_behind(result)}{old}"
    place = f" from {result['directory']}" if result.get("directory") else ""
    serves = f"pid {result['pid']} serves generation {result['generation']}{place}"
    return f"{serves}{what}, after {seconds(result['elapsed'])}{_confirmed(result)}"


def _confirmed(result: dict[str, Any]) -> str:
    """Below the result of a reload or a restart: what its confirmation has found; "" without one."""
    confirmed = result.get("confirmed")
    return "" if confirmed is None else f"\n{_judged(confirmed)}"


def _judged(confirmed: dict[str, Any]) -> str:
    before, after = confirmed["before"], confirmed["after"]
    figures = (
        f"{plural(after['errors'], 'error')} in {plural(after['requests'], 'request')}{_percent(after['rate'])} in"
        f" {seconds(confirmed['seconds'])}, before {before['errors']} in {before['requests']}{_percent(before['rate'])}"
    )
    if after.get("old_left"):
        figures += f", with those that {plural(after['old_left'], 'old worker')} finished"
    if confirmed["ok"] is None:
        return f"too little traffic to judge the new code: {figures}"
    if confirmed["ok"]:
        return f"confirmed: {figures}"
    return f"NOT CONFIRMED: {figures}; generation {before['generation']} was loaded from {before['directory']}"


def _percent(rate: float | None) -> str:
    return "" if rate is None else f" ({rate:.2%})"


def _reload_of_config(result: dict[str, Any]) -> str:
    if not result["hooks_run"]:
        return f"pid {result['pid']} has no function that is decorated with on_reload: nothing was done"
    return (
        f"pid {result['pid']} called {plural(result['hooks_run'], 'reload hook')}, after {seconds(result['elapsed'])}"
    )


def _cut(result: dict[str, Any]) -> str:
    """The end of a sentence that tells how many requests were cut, and which; "" if none was."""
    if not result["cut"]:
        return ""
    known = [
        f"{request_name(request)} after {seconds(request['age'])}"
        for request in result.get("cut_requests", [])[:MAX_CUT_SHOWN]
    ]
    others = result["cut"] - len(known)
    names = [*known, f"{others} more"] if known and others > 0 else known
    return f", {result['cut']} CUT" + (f" ({', '.join(names)})" if names else "")


def _left_behind(result: dict[str, Any]) -> str:
    """The end of a sentence that names what had not been done when the old code ended; "" if all was done."""
    hooks = ", hooks or exit functions LEFT UNFINISHED" if result.get("hooks") == "unfinished" else ""
    threads = result.get("threads_left")
    return hooks + (f", threads LEFT BEHIND: {', '.join(threads)}" if threads else "")


def _log_level(result: dict[str, Any]) -> str:
    rows = [
        f"{printable(row['logger'])}: {row['level']}{', but ' + row['note'] if row['note'] else ''}"
        f" (pid {', '.join(map(str, row['workers']))})"
        for row in result["loggers"]
    ]
    for lease in result["leases"]:
        by = ", ".join(f"{name} {value}" for name, value in lease["by"].items())
        rows.append(f"{printable(lease['logger'])}: {lease['level']} until {lease['until']}, set by {by}")
    return "\n".join([*rows, *_unanswered(result)])


def _reopen_logs(result: dict[str, Any]) -> str:
    files: dict[str, list[str]] = {}
    for one in result["files"]:
        files.setdefault(one["file"], []).append(str(one["worker"]))
    rows = [f"{printable(file)}: opened anew (pid {', '.join(pids)})" for file, pids in files.items()]
    rows += [f"{printable(one['file'])}: NOT opened (pid {one['worker']}): {one['error']}" for one in result["failed"]]
    if not rows and not result["unanswered"]:
        rows = ["no handler writes to a file"]
    return "\n".join([*rows, *_unanswered(result)])


def _exceptions(result: dict[str, Any]) -> str:
    parts = [_exception(entry) for entry in result["exceptions"]]
    if not parts and not result["unanswered"]:
        parts = ["no exception"]
    return "\n\n".join([*parts, *_unanswered(result)])


def _exception(entry: dict[str, Any]) -> str:
    origin = f"{entry['method']} {entry['route'] or 'without a route'}" if entry["method"] else f"a {entry['origin']}"
    first = f", the first at {entry['first']}" if entry["count"] > 1 else ""
    headline = f"{plural(entry['count'], 'time')} in {origin}, pid {entry['worker']}, at {entry['last']}{first}"
    message = f"{entry['type']}: {entry['message']}" if entry["message"] else entry["type"]
    where = f" ({entry['where']})" if entry["where"] else ""
    traceback = "\n".join(f"  {line}" for line in entry["traceback"].splitlines())
    return "\n".join([headline, printable(message + where), printable(traceback)])


def _stacks(result: dict[str, Any]) -> str:
    parts = ["\n".join([_stack_headline(stack), *_frames(stack)]) for stack in result["stacks"]]
    if not parts and not result["unanswered"]:
        parts = ["no request is in flight"]
    if result["left_out"]:
        parts.append(f"{plural(result['left_out'], 'stack')} left out; ask one worker by --worker PID")
    return "\n\n".join([*parts, *result["notes"], *_unanswered(result)])


def _stack_headline(stack: dict[str, Any]) -> str:
    names = [f"greenlet {stack['greenlet']}"] if stack["greenlet"] else []
    if stack["thread"] or not names:
        number = f" ({stack['thread_id']})" if stack["thread_id"] else ""
        names.append(f"thread {printable(stack['thread'])}{number}" if stack["thread"] else "a thread without a name")
    request = stack["request"]
    serves = f": {request['method']} {request['path']}, {seconds(request['age'])}" if request else ""
    note = f", {stack['note']}" if stack["note"] else ""
    return f"pid {stack['worker']}, {', '.join(names)}{serves}{note}"


def _frames(stack: dict[str, Any]) -> Iterator[str]:
    left_out = stack["left_out"]
    for number, frame in enumerate(stack["frames"]):
        if left_out and number == left_out["after"]:
            yield f"  … {plural(left_out['frames'], 'frame')} left out …"
        yield f'  File "{printable(frame["file"])}", line {frame["line"]}, in {frame["function"]}'
        if frame["source"]:
            yield f"    {printable(frame['source'])}"


class Column(NamedTuple):
    """A column of a table; the higher its `rank`, the sooner it is left out where there is no room."""

    heading: str
    rank: int
    cells: list[str]
    is_number: bool = True

    @property
    def width(self) -> int:
        """The width of its widest cell."""
        return max(map(len, [self.heading, *self.cells]))

    def cell(self, row: int) -> str:
        """The heading, 0, or the text of a row, as wide as the column."""
        text = [self.heading, *self.cells][row]
        return text.rjust(self.width) if self.is_number else text.ljust(self.width)


def table(columns: list[Column]) -> str:
    """A line for the headings, and for each row; without trailing spaces."""
    rows = len(columns[0].cells) + 1
    return "".join("  ".join(column.cell(row) for column in columns).rstrip() + "\n" for row in range(rows))


def request_columns(requests: list[dict[str, Any]]) -> list[Column]:
    """The table of `requests`; without the columns that a caller of role observe does not get."""

    def column(heading: str, rank: int, text: Callable[[dict[str, Any]], Any], *, is_number: bool = False) -> Column:
        return Column(heading, rank, [str(text(request) or "") for request in requests], is_number)

    columns = [
        column("age", 1, lambda request: seconds(request["age"]), is_number=True),
        column("method", 2, lambda request: request["method"]),
        column("route", 0, lambda request: request["route"] or "(no route)"),
        column("worker", 3, lambda request: request["worker"], is_number=True),
        column("client", 6, lambda request: request.get("client")),
        column("id", 5, lambda request: request.get("id")),
        column("thread", 7, lambda request: request.get("thread") or request.get("greenlet")),
        column("path", 4, lambda request: "?".join(filter(None, [request.get("path"), request.get("query")]))),
    ]
    return [column for column in columns if any(column.cells)]


def _metrics(result: dict[str, Any]) -> str:
    rows = []
    for family in result["families"]:
        for name, labels, value, *_ in family["samples"]:
            shown = ",".join(f"{label}={json.dumps(text)}" for label, text in labels.items())
            rows.append(printable(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"))
    return "\n".join([*rows, *_unanswered(result)])


def _requests_in_flight(result: dict[str, Any]) -> str:
    shown = table(request_columns(result["requests"])) if result["requests"] else ""
    return shown + notes_on_requests(result)


def notes_on_requests(result: dict[str, Any]) -> str:
    """What comes below the table: how many are not shown, which workers did not answer; or that there is nothing."""
    notes = [f"… {plural(result['left_out'], 'more request')}"] if result["left_out"] else []
    if not (result["requests"] or result["left_out"] or result["unanswered"]):
        notes = ["no request in flight"]
    return "".join(f"{line}\n" for line in [*notes, *_unanswered(result)])


def _unanswered(result: dict[str, Any]) -> list[str]:
    return [f"pid {one['worker']} did not answer: {one['error']}" for one in result["unanswered"]]


def instance_columns(instances: list[dict[str, Any]]) -> list[Column]:
    """The table of `ls`; the owner is shown if there are several."""

    def column(heading: str, rank: int, text: Callable[[dict[str, Any]], Any], *, is_number: bool = False) -> Column:
        values = [text(instance) for instance in instances]
        cells = ["-" if value is None else printable(str(value)).replace("\n", " ") for value in values]
        return Column(heading, rank, cells, is_number)

    def age(instance: dict[str, Any]) -> str | None:
        return seconds(instance["age"]) if isinstance(instance["age"], (int, float)) else None

    owners = len({instance["owner"] for instance in instances}) > 1
    return [
        column("name", 0, lambda one: one["name"]),
        column("pid", 1, lambda one: one["pid"], is_number=True),
        column("state", 2, lambda one: one["problem"] or one["state"]),
        column("generation", 7, lambda one: one["generation"], is_number=True),
        column("server", 6, lambda one: one["server"]),
        column("workers", 5, lambda one: one["workers"] or None, is_number=True),
        column("in flight", 3, lambda one: one["in_flight"], is_number=True),
        column("age", 4, age, is_number=True),
        *([column("owner", 4, lambda one: one["owner"])] if owners else []),
        column("socket", 8, lambda one: one["socket"]),
        column("directory", 9, lambda one: one["directory"]),
    ]


def _instances(instances: list[dict[str, Any]]) -> str:
    return table(instance_columns(instances)) if instances else "no instance is running"


def _commands(commands: dict[str, Any]) -> str:
    rows = [(name, command["role"], command["scope"], command["summary"]) for name, command in commands.items()]
    widths = [max(map(len, column), default=0) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _workers(result: dict[str, Any]) -> str:
    def named(pids: list[int]) -> str:
        return ", ".join(map(str, pids))

    changes = [f"{what} {named(result[what])}" for what in ("started", "ended") if result[what]]
    serving = f"{plural(len(result['workers']), 'worker')}: pid {named(result['workers'])}"
    return f"{'; '.join([serving, *changes])}{_cut(result)}, after {seconds(result['elapsed'])}"


def _history(result: dict[str, Any]) -> str:
    return "\n".join(map(_generation, result["history"])) or "no start is known"


def _generation(entry: dict[str, Any]) -> str:
    by = ", ".join(f"{name} {value}" for name, value in (entry["by"] or {}).items())
    took = "" if entry["elapsed"] is None else f" in {seconds(entry['elapsed'])}"
    cut = f", {entry['cut']} CUT" if entry["cut"] else ""
    commit = f", commit {entry['commit'][:12]}" if entry["commit"] else ""
    what = f"FAILED{took}: {entry['error']}" if entry["outcome"] == "failed" else f"{entry['outcome']}{took}"
    asked = f", asked by {by}" if by else ""
    return f"{entry['at']}  generation {entry['generation']} {what}{cut}{asked}; {entry['directory']}{commit}"


def _wait(result: dict[str, Any]) -> str:
    name = f"pid {result['pid']}" if result["pid"] is not None else "the server"
    if result["reached"] != "gone":
        return f"{name} is {result['reached']} after {seconds(result['elapsed'])}: {result['state']}"
    if result["pid"] is None:
        return "nothing is running"
    return f"{name} is gone{'; another instance serves there' if result['proof'] == 'other' else ''}"


def _restart(result: dict[str, Any]) -> str:
    stopped = _stopped(result["stopped"])
    by = supervisor_name(result["supervisor"])
    ready = f"pid {result['pid']}, started by {by}, is ready after {seconds(result['elapsed'])}"
    return f"{stopped}\n{ready}{_confirmed(result)}"


def _render_other(result: Any) -> str:
    if isinstance(result, str):
        return result
    return "" if result is None else json.dumps(result, indent=2, ensure_ascii=False)


def _doctor(result: dict[str, Any]) -> str:
    lines = []
    for finding in sorted(result["findings"], key=lambda finding: finding["severity"] != "problem"):
        pids = finding.get("workers", [])
        where = f" (pid {', '.join(map(str, pids))})" if pids else ""
        # File names are not those of this user alone.
        message, remedy = printable(finding["message"]), printable(finding["remedy"])
        lines += [f"{finding['severity']}: {message}{where}", f"    {remedy}"]
    lines += (f"problem: pid {each['worker']}: {each['error']}" for each in result["unanswered"])
    if not any(line.startswith("problem: ") for line in lines):
        lines.append("nothing is wrong")
    return "\n".join(lines)


HIGH = 0.85
"""The share of a limit from which its line says HIGH."""

MAX_SHOWN = 100
"""Characters of the value of a setting in a table."""


def _describe(result: dict[str, Any]) -> str:
    rows = [(result["app"], f"pid {result['pid']}"), ("directory", _directory(result["directory"]))]
    rows.append(("commit", result["commit"] or "unknown"))
    for program in result["programs"]:
        only = _only_in(program)
        rows += [
            ("command", program["command"] + only),
            ("python", f"{program['python']}, {program['executable']}{only}"),
            ("environment", (program["virtual_environment"] or "no virtual environment") + only),
            *([("flags", ", ".join(program["flags"]) + only)] if program["flags"] else []),
        ]
    rows += [(limit["limit"], _limit(limit)) for limit in result["limits"]]
    for process in result["processes"]:
        memory, gc = process["memory"], process["gc"]
        sizes = [f"{size(memory[name])} {name}" for name in ("rss", "peak") if memory[name] is not None]
        rows.append(("memory", ", ".join([f"pid {process['worker']}: {memory['blocks']} blocks", *sizes])))
        state = "" if gc["enabled"] else "DISABLED, "
        runs = ", ".join(map(str, gc["collections"]))
        found = f"{gc['collected']} objects collected, {gc['uncollectable']} uncollectable, {gc['frozen']} frozen"
        rows.append(("gc", f"pid {process['worker']}: {state}{runs} collections by generation, {found}"))
    width = max(len(label) for label, _ in rows)
    head = [printable(f"{label:<{width}}  {text}") for label, text in rows]
    settings = sorted(result["settings"], key=lambda one: _ORIGINS.index(one["origin"]))
    values = [json.dumps(one["value"], ensure_ascii=False) for one in settings]
    columns = [
        Column("setting", 0, [printable(one["name"]) for one in settings], is_number=False),
        Column("origin", 1, [one["origin"] for one in settings], is_number=False),
        Column("value", 2, [printable(_at_most(value) + _only_in(one)) for value, one in zip(values, settings)], False),
    ]
    notes = [f"… {plural(result['left_out'], 'more setting')}"] if result["left_out"] else []
    return "\n".join([*head, "", *table(columns).splitlines(), *notes, *_unanswered(result)])


_ORIGINS = ("environment", "argument", "config", "default")


def _directory(directory: dict[str, str] | None) -> str:
    if directory is None:
        return "unknown"
    loaded = f", loaded from {directory['loaded']}" if directory["loaded"] != directory["path"] else ""
    now = f", leads to {directory['now']} now" if directory["now"] != directory["loaded"] else ""
    return f"{directory['path']}{loaded}{now}"


def _limit(limit: dict[str, Any]) -> str:
    used, allowed = limit["used"], limit["allowed"]
    of = f"pid {limit['worker']}" if limit["of"] == "process" else limit["of"]
    shown = size if limit["limit"] == "memory" else str
    text = f"{of}: {'unknown' if used is None else shown(used)}"
    if allowed is None:
        return text
    share = 0.0 if used is None else used / max(allowed, 1)
    return f"{text} of {shown(allowed)} ({share:.0%}){' HIGH' if share >= HIGH else ''}"


def _only_in(row: dict[str, Any]) -> str:
    return f" (pid {', '.join(map(str, row['workers']))})" if "workers" in row else ""


def _at_most(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _routes(result: dict[str, Any]) -> str:
    routes = result["routes"]
    shown = [sorted({*(route["methods"] or ["any"])} - {"HEAD", "OPTIONS"}) or route["methods"] for route in routes]
    hosts = [printable(route["host"] or "") for route in routes]
    columns = [
        Column("rule", 0, [printable(route["rule"]) for route in routes], is_number=False),
        Column("methods", 1, [", ".join(methods) for methods in shown], is_number=False),
        *([Column("host", 2, hosts, is_number=False)] if any(hosts) else []),
        Column("endpoint", 3, [printable(route["endpoint"]) + _only_in(route) for route in routes], is_number=False),
    ]
    notes = [f"… {plural(result['left_out'], 'more route')}"] if result["left_out"] else []
    if not routes and not result["unanswered"]:
        notes = ["no route"]
    return "\n".join([*(table(columns).splitlines() if routes else []), *notes, *_unanswered(result)])


_RENDERERS: dict[str, Callable[[Any], str]] = {
    "ping": _ping,
    "status": _status,
    "stop": _stop,
    "reload": _reload,
    "describe": _describe,
    "routes": _routes,
    "doctor": _doctor,
    "drain": _drain,
    "resume": _resume,
    "log_level": _log_level,
    "reopen_logs": _reopen_logs,
    "exceptions": _exceptions,
    "metrics": _metrics,
    "requests": _requests_in_flight,
    "stacks": _stacks,
    "commands": _commands,
    "history": _history,
    "workers": _workers,
    "wait": _wait,
    "restart": _restart,
    "started_again": _started_again,
    "supervisor": supervisor_name,
    "ls": _instances,
}
