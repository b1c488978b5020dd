"""Results as text for a terminal: one screen for `status`, one line for other commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..errors import CommandError


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
    lines = [(status["app"], _headline(status)), ("server", _server(status["server"]))]
    lines.append(("requests", _requests(status["requests"])))
    lines.append(("process", _process(status["process"])))
    lines += [("worker", _worker(worker)) for worker in status.get("workers", [])]
    lines.append(("directory", status.get("directory", status["cwd"])))
    if status["cwd"] != lines[-1][1]:
        lines.append(("works in", status["cwd"]))
    lines.append(("versions", ", ".join(f"{name} {version}" for name, version in status["versions"].items())))
    if status.get("last_reload"):
        lines.append(("reloaded", _last_reload(status["last_reload"])))
    if status.get("stopping"):
        lines.append(("stopping", _stopping(status["stopping"])))
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in lines)


def _headline(status: dict[str, Any]) -> str:
    parent = f", under {status['parent']}" if status.get("parent") else ""
    return (
        f"{status['state']}, pid {status['pid']}{parent}, up {seconds(status['uptime'])},"
        f" generation {status['generation']}"
    )


def _server(server: dict[str, Any]) -> str:
    name = f"{server['name']} {server['version']}".rstrip()
    return f"{name} on {', '.join(server['listeners']) or 'an unknown address'}"


def _requests(requests: dict[str, Any]) -> str:
    oldest = f" (oldest {seconds(requests['oldest'])})" if requests.get("oldest") is not None else ""
    return (
        f"{requests['in_flight']} in flight{oldest}, {requests['total']} in all, {plural(requests['errors'], 'error')}"
    )


def _process(process: dict[str, Any]) -> str:
    return (
        f"{size(process['rss'])}, {process['cpu']:.2f} cores, {plural(process['threads'], 'thread')},"
        f" {process['fds']} descriptors"
    )


def _worker(worker: dict[str, Any]) -> str:
    rss = f", {size(worker['rss'])}" if worker.get("rss") is not None else ""
    return f"pid {worker['pid']}, generation {worker['generation']}: {_requests(worker)}{rss}"


def _last_reload(reload: dict[str, Any]) -> str:
    cut = f", {reload['cut']} CUT" if reload.get("cut") else ""
    return f"{reload['at']} {'in ' + seconds(reload['elapsed']) if reload['ok'] else 'FAILED: ' + reload['error']}{cut}"


def _stopping(stopping: dict[str, Any]) -> str:
    waiting = stopping.get("waiting_for")
    tail = f", kept alive by {', '.join(waiting)}" if waiting else ""
    if stopping["deadline"] is None:
        return f"{stopping['mode']}, asked for at {stopping['since']}, as soon as the reload is over{tail}"
    return f"{stopping['mode']} since {stopping['since']}, until {stopping['deadline']} at the latest{tail}"


def _stop(result: dict[str, Any]) -> str:
    what = "the server" if result.get("embedded") or not result["pid"] else f"pid {result['pid']}"
    if result["outcome"] == "killed":
        return f"{what} was killed after {seconds(result['elapsed'])}"
    if result["outcome"] == "died":
        return f"{what} died before the stop was done"
    cut = f", {result['cut']} CUT" if result["cut"] else ""
    finished = plural(result["drained"], "request")
    died = f", {plural(result['died'], 'worker')} DIED" if result.get("died") else ""
    return f"{what} stopped: {finished} finished{cut}{_left_behind(result)}{died}, in {seconds(result['elapsed'])}"


def _reload(result: dict[str, Any]) -> str:
    if "hooks_run" in result:
        return _reload_of_config(result)
    cut = f", {result['cut']} CUT" if result["cut"] else ""
    old = f", {plural(result['old_left'], 'old worker')} still at work" if result.get("old_left") else ""
    what = f"{cut}{_left_behind(result)}{old}"
    place = f" from {result['directory']}" if result.get("directory") else ""
    serves = f"pid {result['pid']} serves generation {result['generation']}{place}"
    return f"{serves}{what}, after {seconds(result['elapsed'])}"


def _reload_of_config(result: dict[str, Any]) -> str:
    if not result["hooks_run"]:
        return f"pid {result['pid']} has no function that is decorated with on_reload: nothing was done"
    return (
        f"pid {result['pid']} called {plural(result['hooks_run'], 'reload hook')}, after {seconds(result['elapsed'])}"
    )


def _left_behind(result: dict[str, Any]) -> str:
    """The end of a sentence that names what had not been done when the old code ended; "" if all was done."""
    hooks = ", hooks or exit functions LEFT UNFINISHED" if result.get("hooks") == "unfinished" else ""
    threads = result.get("threads_left")
    return hooks + (f", threads LEFT BEHIND: {', '.join(threads)}" if threads else "")


def _commands(commands: dict[str, Any]) -> str:
    rows = [(name, command["role"], command["scope"], command["summary"]) for name, command in commands.items()]
    widths = [max(map(len, column), default=0) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _render_other(result: Any) -> str:
    if isinstance(result, str):
        return result
    return "" if result is None else json.dumps(result, indent=2, ensure_ascii=False)


_RENDERERS: dict[str, Callable[[Any], str]] = {
    "ping": _ping,
    "status": _status,
    "stop": _stop,
    "reload": _reload,
    "commands": _commands,
}
