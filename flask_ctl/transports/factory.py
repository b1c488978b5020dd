"""The listener for an address; ZeroMQ is loaded for its own addresses only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ..dispatch.guard import Guard
from ..errors import ConfigurationError, InsecureConfiguration
from ..system.activation import activation
from ..system.addresses import Address, is_loopback
from .activated import ActivatedSocket
from .base import Listener
from .socketfile import SocketFile
from .unix import UnixListener

logger = logging.getLogger("flask_ctl")


@dataclass(frozen=True)
class CurveFiles:
    """Where a server's keys are: its own pair, and the directory of the clients' that it lets in."""

    key: str | None = None
    clients: str | None = None


def make_listener(address: Address, guard: Guard, curve: CurveFiles, master: int | None = None) -> Listener:
    """A listener that has not been opened; a hub gives the pid of its `master`.

    Raises ConfigurationError, or InsecureConfiguration for an open door.
    """
    if address.transport == "unix":
        return UnixListener(address.path, guard, _socket_file(address, guard, master))
    from .tcpport import TcpPort
    from .zeromq.listener import ZmqListener
    from .zeromq.zap import LocalIdentity, LoopbackIdentity

    if address.transport == "ipc":
        return ZmqListener(address, _socket_file(address, guard, master), LocalIdentity(), guard)
    options: dict[str, Any] = _curve(curve)
    if not options:
        _check_plain(address, guard)
        options = {"identity": LoopbackIdentity()}
    return ZmqListener(address, TcpPort(address), guard=guard, **options)


def _socket_file(address: Address, guard: Guard, master: int | None) -> SocketFile:
    kind = ActivatedSocket if activation.is_control(address.path) else SocketFile
    return kind(address.path, guard.policy.file_access(), master=master)


def _curve(files: CurveFiles) -> dict[str, Any]:
    """The keyword arguments of a ZmqListener with CURVE; empty without keys."""
    if files.key is None and files.clients is None:
        return {}
    if files.key is None or files.clients is None:
        missing = "CTL_CURVE_KEY" if files.key is None else "CTL_CURVE_CLIENTS"
        raise ConfigurationError(f"CURVE needs {missing}, too; make keys by: flask-ctl keygen")
    from .zeromq.curve import AllowedKeys, check_curve, load_key_pair
    from .zeromq.zap import KeyIdentity

    check_curve()
    return {"curve": load_key_pair(files.key), "identity": KeyIdentity(AllowedKeys(files.clients))}


def _check_plain(address: Address, guard: Guard) -> None:
    if not is_loopback(address):
        raise InsecureConfiguration(
            f"{address} can be reached from the network, where anybody could send commands; set CTL_CURVE_KEY and"
            " CTL_CURVE_CLIENTS, or listen at 127.0.0.1"
        )
    if guard.policy.tcp_operate:
        logger.warning("every user of this machine may operate the app over %s (CTL_TCP_OPERATE)", address)
