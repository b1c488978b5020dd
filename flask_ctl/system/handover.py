"""What a process image hands over to the next one across an exec: descriptors and counters.

The old image writes it to an unnamed file whose descriptor the environment names; the new one takes what it can use
and closes the rest once it serves.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from typing import Any

from .native import socket

ENVIRONMENT = "FLASK_CTL_HANDOVER"


class Handover:
    """The inherited state; each item can be taken once. Empty in a process that was started normally.

    ``instance`` holds what `Instance` carries on, ``listeners`` the HTTP sockets by requested address, ``parked``
    connections that have not sent a byte, ``controls`` the control sockets: ``address``, ``file`` or None, ``socket``,
    ``lock`` or -1, and ``caller``: None, or the client that asked for the reload, with the ``reply`` that is owed, and
    how it is reached: a ``descriptor`` and what is ``unread``, or ``routing_id`` and ``peer``. ``entry`` is the
    instance's file in the registry, see `take_entry`.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state
        self.is_there = bool(state)
        """Whether there was a previous image."""
        for descriptor in self._descriptors():
            os.set_inheritable(descriptor, False)

    def take_instance(self) -> dict[str, Any] | None:
        """The state of the previous `Instance` as a dict, removed from the hand-over; None without one."""
        instance: dict[str, Any] | None = self._state.pop("instance", None)
        return instance

    def take_entry(self) -> dict[str, Any] | None:
        """The instance's file in the registry: its ``path``, and the descriptor of its ``lock``."""
        entry: dict[str, Any] | None = self._state.pop("entry", None)
        return entry

    def take_listener(self, address: str) -> int | None:
        """The listening socket for an HTTP address as it was asked for."""
        listener: int | None = self._state.get("listeners", {}).pop(address, None)
        return listener

    def add_listener(self, address: str, descriptor: int) -> None:
        """Have a socket that was inherited in another way taken likewise."""
        self._state.setdefault("listeners", {})[address] = descriptor

    def take_parked(self) -> list[socket.socket]:
        """Accepted HTTP connections."""
        return [socket.socket(fileno=descriptor) for descriptor in self._state.pop("parked", [])]

    def take_control(self, address: str) -> dict[str, Any] | None:
        """The control socket at `address`, and the caller of the reload if it connected there."""
        for control in self._state.get("controls", []):
            if control["address"] == address:
                self._state["controls"].remove(control)
                found: dict[str, Any] = control
                return found
        return None

    def leaves(self, address: str) -> bool:
        """Whether a control socket at `address` can be taken."""
        return any(control["address"] == address for control in self._state.get("controls", []))

    def take_caller(self) -> dict[str, Any] | None:
        """The caller of the reload, if it has a descriptor and nothing listens where it had connected."""
        for control in self._state.get("controls", []):
            if "descriptor" in (control["caller"] or {}):
                caller: dict[str, Any] = control["caller"]
                control["caller"] = None
                return caller
        return None

    def close_rest(self) -> None:
        """Close what the new program has no use for; its control sockets' files go, too."""
        for control in self._state.get("controls", []):
            if control["file"] is not None:
                with contextlib.suppress(OSError):
                    os.unlink(control["file"])
        if self._state.get("entry"):
            with contextlib.suppress(OSError):
                os.unlink(self._state["entry"]["path"])
        for descriptor in self._descriptors():
            os.close(descriptor)
        self._state = {}

    def _descriptors(self) -> list[int]:
        controls = self._state.get("controls", [])
        callers = [control["caller"]["descriptor"] for control in controls if "descriptor" in (control["caller"] or {})]
        sockets = [control[key] for control in controls for key in ("socket", "lock") if control[key] >= 0]
        entry = [self._state["entry"]["lock"]] if self._state.get("entry") else []
        return [*self._state.get("listeners", {}).values(), *self._state.get("parked", []), *sockets, *callers, *entry]


class HandoverFile:
    """The unnamed file for the state, created before a reload commits. Raises OSError if it can't be created."""

    def __init__(self) -> None:
        # In memory where that is possible: the temporary directory may be full.
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("flask-ctl-handover")
            try:
                self._file = open(descriptor, "w+")  # noqa: SIM115
            except OSError:
                os.close(descriptor)
                raise
        else:
            self._file = tempfile.TemporaryFile("w+")  # noqa: SIM115

    def write(self, state: dict[str, Any]) -> str:
        """Write `state` and make its descriptors inheritable; returns the value of ENVIRONMENT for the next image."""
        json.dump(state, self._file)
        self._file.flush()
        for number in (self._file.fileno(), *Handover(state)._descriptors()):
            os.set_inheritable(number, True)
        return f"{os.getpid()}:{self._file.fileno()}"

    def close(self) -> None:
        """Give it up."""
        self._file.close()


def _read() -> Handover:
    text = os.environ.pop(ENVIRONMENT, "")
    pid, _, descriptor = text.partition(":")
    # A child that was started before this module was imported has the variable too, but not the pid.
    if not descriptor or int(pid) != os.getpid():
        return Handover({})
    with open(int(descriptor)) as file:
        file.seek(0)
        return Handover(json.load(file))


inherited = _read()
"""The state that this process image has inherited."""
