"""Advice after a time-out; each remedy is named only where it helps."""

from __future__ import annotations

from typing import Any

from flask_ctl import TimedOut

_QUESTIONS = ("ping", "status", "commands", "describe", "exceptions", "requests", "routes", "stacks")
"""Commands that a server answers at once, unless it hangs."""


MAX_SHOWN = 5
"""Requests that are named."""


def hint_after(error: TimedOut, command: str, program: str, wait_option: str = "--timeout") -> str:
    """The advice for a person whose `command` has timed out; "" if there is none.

    `program` is the name of this program in the shell, `wait_option` the option that sets the time-out.
    """
    data = error.data if isinstance(error.data, dict) else {}
    if command == "reload":
        return _after_reload(data)
    if data.get("killed"):
        return ""
    if data.get("hub") == "died":
        return f"Stop it again: {program} stop"
    remedies = [f"Wait longer by {wait_option}"]
    if command == "stop":
        remedies += _fast(data, program)
    if command in _QUESTIONS and command != "stacks" and data.get("can_be_killed", True):
        remedies.append(f"see why by: {program} stacks")
    if command in ("stop", *_QUESTIONS) and data.get("can_be_killed", True):
        remedies.append(f"end it by: {program} stop --kill-after SECONDS")
    return ", or ".join(remedies) + ("" if len(remedies) > 1 else ".")


def _after_reload(data: dict[str, Any]) -> str:
    # Without requests and threads the server waited for something else.
    if data.get("in_flight") or data.get("threads"):
        requests = [
            f"{request['method']} {request['route'] or '(no route)'} for {request['age']:.1f} s"
            for request in data.get("requests", [])[:MAX_SHOWN]
        ]
        in_way = f"In the way: {', '.join(requests)}.\n" if requests else ""
        return in_way + "Give it more time by --grace SECONDS, or cut what is still at work by --cut."
    return ""


def _fast(data: dict[str, Any], program: str) -> list[str]:
    """The effect of --mode fast, if it has one: it cuts requests, or leaves hooks unfinished."""
    if data.get("phase") == "hooks":
        return [f"leave its on_stop hooks unfinished by: {program} stop --mode fast"]
    if data.get("phase") in ("delay", "drain") and data.get("in_flight") and data.get("mode") == "graceful":
        return [f"cut its requests by: {program} stop --mode fast"]
    return []
