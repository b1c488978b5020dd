"""The text of a record of a rollout."""

from __future__ import annotations

from typing import Any

from flask_ctl import printable

from .course import Outcome, count_outcomes

Document = dict[str, Any]


def render(document: Document, state: str = "ended", program: str = "flask-ctl rollout") -> str:
    """A line for each instance, and one for the rollout; `program` is the command that goes on with it."""
    rows = [
        (
            printable("/".join(filter(None, [target["host"], target["name"]])), keep="") or "-",
            printable(str(target["pid"] or "-"), keep=""),
            outcome_text(target),
        )
        for target in document["targets"]
    ]
    names, pids = (max((len(row[column]) for row in rows), default=0) for column in range(2))
    lines = [f"{name:{names}}  {pid:>{pids}}  {outcome}" for name, pid, outcome in rows]
    return "\n".join([*lines, summary(document, state, program)]) + "\n"


def summary(document: Document, state: str, program: str = "flask-ctl rollout") -> str:
    """The rollout in one line."""
    counts = count_of(document)
    told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items()) or "nothing asked"
    line = printable(f"rollout {document['id']}, {document['method']}: {told}", keep="")
    if state == "running":
        operator = document["operator"]
        by = f"{operator['user']} on {operator['host']}, " if "user" in operator else ""
        return f"{line}; running, " + printable(f"{by}pid {operator['pid']}", keep="")
    if state == "abandoned":
        line += "; its operator was killed"
    elif document["end"] not in (None, "finished"):
        end = printable(document["end"], keep="")
        line += f"; ended by {end}" if end != "interrupted" else "; interrupted"
    open_ones = any(target["outcome"] in (None, *_OPEN) for target in document["targets"])
    return f"{line}\nto go on: {program} resume {document['id']}" if open_ones else line


_OPEN = (Outcome.NOT_STARTED.value, Outcome.REFUSED.value, Outcome.UNREACHABLE.value, Outcome.UNKNOWN.value)


def count_of(document: Document) -> dict[str, int]:
    """How many instances have each outcome; without one they are ``asked`` or ``not started``."""
    asked = sum(target["outcome"] is None and target["asked"] for target in document["targets"])
    others = [target["outcome"] or Outcome.NOT_STARTED.value for target in document["targets"]]
    counts = count_outcomes(map(Outcome, others))
    if asked:
        counts["asked"] = asked
        counts[Outcome.NOT_STARTED.value] -= asked
    return {outcome: number for outcome, number in counts.items() if number}


def outcome_text(target: dict[str, Any]) -> str:
    """What has become of an instance, in one line."""
    now, message = target["now"], target["message"].partition("\n")[0]
    parts = [target["outcome"] or ("asked" if target["asked"] else "not started")]
    if now is not None and now["pid"] != target["pid"]:
        parts.append(f"pid {now['pid']}")
    if now is not None:
        parts.append(f"generation {now['generation']}")
    return printable(", ".join(parts) + (f": {message}" if message else ""), keep="")
