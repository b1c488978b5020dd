"""The audit log, ``flask_ctl.audit``: who asked for what, and how it ended.

One record for every command of role inspect or operate once its outcome is known, and one for every refusal. What it
tells stands in the message, on one line that no peer can forge, and in `record.audit`, a dict: ``peer``, ``command``,
``parameters``, ``outcome`` (done, failed or refused), ``error``, ``duration`` in seconds.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..errors import CommandError
from ..system import logs
from ..system.processes import program_name
from .commands import Command
from .peer import Peer
from .redaction import MASK, Params, cut, masked, secrets_of

logger = logging.getLogger("flask_ctl.audit")

Write = Callable[[int, dict[str, Any]], Any]
"""Takes the level of a record, and what it tells."""


class Audit:
    """The log of one instance, and the entries that are still without an outcome. `write` puts a record into it."""

    def __init__(self, write: Write | None = None) -> None:
        self._write = write or write_record
        self._open: set[Entry] = set()
        self.on_record: Callable[[dict[str, Any]], Any] = lambda fields: None
        """Called with what each record tells."""

    def begin(self, peer: Peer, command: Command, params: Params) -> Entry:
        """An entry for a command that is about to run; it is logged when it is done."""
        entry = Entry(self, _with_program(peer.describe()), command.name, masked(command, params), time.monotonic())
        entry.secrets = secrets_of(command, params)
        self._open.add(entry)
        return entry

    def refused(
        self, peer: Peer, error: CommandError, name: str, command: Command | None = None, params: Params | None = None
    ) -> None:
        """Log that a peer may not run a command; `command` is None for an unknown one."""
        self.tell(
            logging.WARNING,
            _with_program(peer.describe()),
            cut(name),
            masked(command, params or {}),
            "refused",
            _told(error),
        )

    def rejected(self, peer: Peer, error: CommandError, count: int = 1) -> None:
        """Log that a peer was refused before it could say what it wanted, or `count` times more than was logged."""
        self.tell(logging.WARNING, _with_program(peer.describe()), None, {}, "refused", _told(error), count=count)

    def tell(
        self,
        level: int,
        peer: dict[str, Any],
        command: str | None,
        parameters: dict[str, Any],
        outcome: str,
        error: dict[str, Any] | None,
        duration: float = 0.0,
        count: int = 1,
    ) -> None:
        """Log one record of these fields; `duration` is in seconds."""
        fields: dict[str, Any] = {"peer": peer, "command": command, "parameters": parameters, "outcome": outcome}
        fields |= {"error": error, "duration": round(duration, 3), "count": count}
        self._write(level, fields)
        self.on_record(fields)

    def export_state(self) -> list[dict[str, Any]]:
        """The entries without an outcome, for the next image of this process to log."""
        return [entry.export_state() for entry in tuple(self._open)]

    def restore_state(self, state: list[dict[str, Any]]) -> list[Entry]:
        """The entries that the previous image has exported."""
        entries = [Entry(self, **fields) for fields in state]
        self._open.update(entries)
        return entries

    def close(self) -> None:
        """Log open entries as cut off by the end of the server; wait a second at most for the handlers."""
        for entry in tuple(self._open):
            entry.done(CommandError("cut off by the end of the server"))
        logs.flush()

    def take(self, entry: Entry) -> bool:
        """Whether the entry was open; it is no longer."""
        try:
            self._open.remove(entry)
        except KeyError:
            return False
        return True


class Entry:
    """One command on its way to the log. Any thread may end it; the first one does."""

    def __init__(
        self,
        audit: Audit,
        peer: dict[str, Any],
        command: str,
        parameters: dict[str, Any],
        began: float,
        replaces: bool = False,
    ) -> None:
        self.command = command
        self.replaces = replaces
        """Whether it is the reload by which this image is replaced, so that the next one knows the outcome."""
        self.secrets: list[str] = []
        self._audit, self._peer, self._parameters, self._began = audit, peer, parameters, began

    def done(self, outcome: Any) -> Any:
        """Log it: failed if the outcome is a CommandError, else done. Gives the outcome back."""
        if self._audit.take(self):
            error = _told(outcome, self.secrets) if isinstance(outcome, CommandError) else None
            duration = time.monotonic() - self._began
            how = "failed" if error else "done"
            self._audit.tell(logging.INFO, self._peer, self.command, self._parameters, how, error, duration)
        return outcome

    def follow(self, outcome: Future[Any]) -> None:
        """Log it when the Future is done."""
        outcome.add_done_callback(lambda future: self.done(future.exception() or future.result()))

    def export_state(self) -> dict[str, Any]:
        """Forget it here; what the next image of the process needs to log it."""
        self._audit.take(self)
        return {
            "peer": self._peer,
            "command": self.command,
            "parameters": self._parameters,
            "began": self._began,
            "replaces": self.replaces,
        }


def asker(by: dict[str, Any]) -> str:
    """The peer in a `by` of `status`, written as in the records of this log."""
    return _who(_with_program(by))


def _with_program(by: dict[str, Any]) -> dict[str, Any]:
    """`by` with the name of the peer's program, which the peer can choose freely."""
    return {**by, "program": program_name(by["pid"])} if by.get("pid") is not None else by


def _who(fields: dict[str, Any]) -> str:
    """One line of ASCII, whatever the names in it."""
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in fields.items() if value is not None) or "unknown"


def _told(error: CommandError, secrets: list[str] | None = None) -> dict[str, Any]:
    message = error.message
    for secret in secrets or []:
        message = message.replace(secret, MASK)
    return {"code": error.code, "message": cut(message)}


def write_record(level: int, fields: dict[str, Any]) -> None:
    """Give a record to the logging of this process."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", _line(fields), extra={"audit": fields})


def _line(fields: dict[str, Any]) -> str:
    """The record for a person: one line of ASCII, whatever the peers have sent."""
    parameters = ", ".join(f"{_quoted(name)}={json.dumps(value)}" for name, value in fields["parameters"].items())
    what = "" if fields["command"] is None else f"{_quoted(fields['command'])}({parameters}) by "
    who = _who(fields["peer"])
    how = fields["outcome"] if fields["outcome"] == "refused" else f"{fields['outcome']} in {fields['duration']:.3f} s"
    error = fields["error"]
    return f"{what}{who}: {how}" + (f": {error['code']} {_quoted(error['message'])}" if error else "")


def _quoted(text: str) -> str:
    return json.dumps(text)[1:-1]


class _NoEntry(Entry):
    def done(self, outcome: Any) -> Any:
        return outcome


NO_ENTRY = _NoEntry(Audit(), {}, "", {}, 0.0)
"""For what is not logged."""
