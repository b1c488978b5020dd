"""All errors of this package, as one tree.

::

    ControlError
    ├── ConfigurationError      an address, a file or an option that can't be used
    │   ├── AddressInUse            an address at which another instance listens
    │   └── InsecureConfiguration   a configuration that would give unauthorized users access
    ├── NotRunning              nothing listens at the address: no socket, refused, stale
    ├── AmbiguousTarget         it is not clear which instance is meant
    ├── ServerDied              the server's process ended before the command was done
    ├── ProtocolError
    │   ├── LocalProtocolError  this side would have sent an illegal message
    │   └── RemoteProtocolError the other side does not speak this protocol
    │       └── WrongScheme         it does, but over another transport than the address says
    └── CommandError            an error object of JSON-RPC: code, message, data
        ├── AccessDenied        -32003
        ├── ReloadFailed        -32004, with the new code's traceback in data
        ├── TimedOut            -32005
        └── ServerReloaded      -32006, the command may have run

Every class has a ``code``: the JSON-RPC error code, or None for an error that is never sent as an error object.
"""

from __future__ import annotations

from typing import Any

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
NOT_SUPPORTED = -32001
CONFLICT = -32002
PERMISSION_DENIED = -32003
RELOAD_FAILED = -32004
TIMED_OUT = -32005
SERVER_RELOADED = -32006
SERVER_DIED = -32007

__all__ = [
    "AccessDenied",
    "AddressInUse",
    "AmbiguousTarget",
    "CommandError",
    "ConfigurationError",
    "ControlError",
    "InsecureConfiguration",
    "LocalProtocolError",
    "NotRunning",
    "ProtocolError",
    "ReloadFailed",
    "RemoteProtocolError",
    "ServerDied",
    "ServerReloaded",
    "TimedOut",
    "WrongScheme",
    "error_from_object",
]


class ControlError(Exception):
    """Base of all errors of this package; ``message`` is for a person, ``data`` (JSON, or None) for a program."""

    code: int | None = None

    def __init__(self, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.data = data


class ConfigurationError(ControlError):
    """An address, a file or an option can't be used; the message names the remedy."""


class AddressInUse(ConfigurationError):
    """Another instance listens at the address; ``data["pid"]`` is its pid, or None."""


class InsecureConfiguration(ConfigurationError):
    """The configuration would give unauthorized users access; the app does not start with it."""


class NotRunning(ControlError):
    """Nothing listens at the address; the message lists the paths that were tried."""


class AmbiguousTarget(ControlError):
    """Several instances match, or none belongs to the current directory; the message lists the live instances.

    ``data["matching"]`` tells how many match, None if that is not known.
    """

    @property
    def none_matches(self) -> bool:
        """Whether it is certain that only other instances run."""
        return isinstance(self.data, dict) and self.data.get("matching") == 0


class ServerDied(ControlError):
    """The server's process ended before the command was done; ``data["outcome"]`` is ``died``."""

    code = SERVER_DIED

    def __init__(self, message: str, data: Any = None) -> None:
        super().__init__(message, {"outcome": "died"} if data is None else data)


class ProtocolError(ControlError):
    """A side violated the protocol; the subclass says which."""


class LocalProtocolError(ProtocolError):
    """This side would have sent an illegal message; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The other side does not speak this protocol, or speaks a newer version of it."""


class WrongScheme(RemoteProtocolError):
    """The socket at that path is one of another transport; ``data["address"]`` is the right address."""

    def __init__(self, address: str, right: str, what: str) -> None:
        super().__init__(f"{address} is {what}: its address is {right}", {"address": right})


class CommandError(ControlError):
    """The server's answer was an error object (JSON-RPC 2.0, section 5.1)."""

    def __init__(self, message: str, data: Any = None, *, code: int = INTERNAL_ERROR) -> None:
        super().__init__(message, data)
        self.code: int = code


class AccessDenied(CommandError):
    """The file mode, the peer's credentials or its role do not permit the command."""

    def __init__(self, message: str, data: Any = None, *, code: int = PERMISSION_DENIED) -> None:
        super().__init__(message, data, code=code)


class ReloadFailed(CommandError):
    """The new code was refused, and the old code still serves; ``data["traceback"]`` is the new code's output."""

    def __init__(self, message: str, data: Any = None, *, code: int = RELOAD_FAILED) -> None:
        super().__init__(message, data, code=code)


class TimedOut(CommandError):
    """There was no answer in time; the server still runs."""

    def __init__(self, message: str, data: Any = None, *, code: int = TIMED_OUT) -> None:
        super().__init__(message, data, code=code)


class ServerReloaded(CommandError):
    """A reload ended the connection before the command was answered; ``data`` is ``{"may_have_run": True}``."""

    def __init__(self, message: str, data: Any = None, *, code: int = SERVER_RELOADED) -> None:
        super().__init__(message, {"may_have_run": True} if data is None else data, code=code)

    @classmethod
    def before(cls, name: str) -> ServerReloaded:
        """The error for a command that was not answered."""
        return cls(f"the server was reloaded before it answered {name[:80]}, which may have run")


_CLASS_OF_CODE: dict[int, type[CommandError]] = {
    PERMISSION_DENIED: AccessDenied,
    RELOAD_FAILED: ReloadFailed,
    TIMED_OUT: TimedOut,
    SERVER_RELOADED: ServerReloaded,
}


def as_command_error(error: BaseException) -> CommandError:
    """The CommandError for an exception in a command: itself, or one with its type and text, but no traceback."""
    if isinstance(error, CommandError):
        return error
    kind = type(error).__name__
    try:
        text = str(error)
    except Exception:
        text = "its text can't be had"
    return CommandError(f"{kind}: {text}" if text else kind, {"type": kind}, code=INTERNAL_ERROR)


def error_from_object(code: int, message: str, data: Any = None) -> CommandError:
    """The exception for an error object: a subclass of :class:`CommandError` where the code has one."""
    return _CLASS_OF_CODE.get(code, CommandError)(message, data, code=code)
