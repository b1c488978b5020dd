"""Supervisor's XML-RPC interface, over its Unix socket: supervisord.org, "XML-RPC API Documentation"."""

from __future__ import annotations

import http.client
import shlex
import socket
import xmlrpc.client
from typing import Any

from ..errors import ControlError
from ..system.credentials import peer_credentials
from ..system.processes import owner_of
from ..system.supervisor import supervisord_above
from .supervision import TELL_TIMEOUT, Manager

UNIX = "unix://"


class Supervisord(Manager):
    """A program of Supervisor, whose interface tells everything but the restart policy."""

    def keep_down(self) -> None:
        name = self.supervisor["process"]
        command = f"supervisorctl stop {shlex.quote(name)}"
        daemon, url = supervisord_above(self.pid), self.supervisor.get("url", "")
        if daemon is None or not url.startswith(UNIX):
            raise self._refusal(f"has no Unix socket that is known here; run: {command}")
        try:
            with self._proxy(url.removeprefix(UNIX), daemon) as proxy:
                if proxy.supervisor.getPID() != daemon:
                    raise self._refusal(f"is not what listens at {url}; run: {command}")
                process: Any = proxy.supervisor.getProcessInfo(name)
                if process["pid"] not in self._started():
                    raise self._refusal(f"runs pid {process['pid']} under that name; if that is meant, run: {command}")
                proxy.supervisor.stopProcess(name, False)
        except PermissionError:
            raise self._denied(f"lets this user not use {url}") from None
        except xmlrpc.client.ProtocolError as error:
            if error.errcode == 401:
                raise self._denied(f"wants a password; run: {command}") from None
            raise self._refusal(f"answers {error.errcode} {error.errmsg}; run: {command}") from None
        except TimeoutError:
            raise ControlError(
                f"{command} has not been answered within {TELL_TIMEOUT:g} s; it may still be done"
            ) from None
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise ControlError(f"nothing was done: {command}: {error}") from None

    def _proxy(self, path: str, daemon: int) -> xmlrpc.client.ServerProxy:
        owner = owner_of(daemon)

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(TELL_TIMEOUT)
                # If this fails, the transport closes the connection, and that its socket.
                self.sock.connect(path)
                # Its pid is the one before supervisord became a daemon.
                if peer_credentials(self.sock)[1] not in (0, owner):
                    raise PermissionError(f"{path} belongs to neither root nor the user of supervisord")

        class Transport(xmlrpc.client.Transport):
            def make_connection(self, host: Any) -> http.client.HTTPConnection:
                # Where the base class keeps, reuses and closes it.
                self._connection = host, self._connection[1] or Connection("localhost")
                return self._connection[1]

        return xmlrpc.client.ServerProxy("http://localhost/RPC2", Transport())
