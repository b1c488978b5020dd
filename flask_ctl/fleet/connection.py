"""A connection to the NATS servers, and what its errors mean. Everything here belongs to one asyncio loop."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import ssl
from collections.abc import Callable
from typing import Any

from ..errors import AccessDenied, ConfigurationError, ControlError
from ..system.native import socket
from .settings import Broker

PING_INTERVAL = 10
"""Seconds between two looks whether a silent server is there; after two without an answer it is not."""

CONNECT_TIMEOUT = 5
"""Seconds for one server."""

RECONNECT = (0.5, 2.0)
"""Seconds between two tries, chosen by chance: many instances that have lost a server come back one by one."""

MAX_SPOKEN = 1000
"""Subjects whose spelling is remembered."""

UNCLEAR = 3
"""Tries of which each has to end without a reason before a server counts as unusable."""

MAX_DENIED = 100
"""Subjects without permission that are remembered."""

WITHOUT_NATS = "control over NATS needs the package nats-py; install it by: pip install 'flask-ctl[fleet]'"

REFUSED = "the server refuses these credentials"
MISSING = "the server wants credentials, and none are given"
CLOSED = "the server closes the connection, as it does if it refuses the credentials"
_REFUSALS = ("authorization", "authentication")
_VIOLATION = "permissions violation for "


class Connection:
    """A client of the servers that connects again for ever; `close` ends it.

    The sender of a request without permission sees a time-out, so `denial_of` tells what the server has said of a
    subject. `on_change` is called after connecting and losing.
    """

    def __init__(self, broker: Broker, name: str, on_change: Callable[[], Any] = lambda: None) -> None:
        """Raises ConfigurationError without the extra ``fleet``, or for files that can't be read."""
        self.broker = broker
        self.client: Any = _new_client(self)
        self.info: dict[str, Any] = {}
        """What the connected server has told of itself (INFO)."""
        self.problem: str | None = None
        """Why it is not connected; None while it is."""
        self._denied: dict[str, str] = {}
        self._ready = False
        self.stays_safe = False
        """Whether a server without TLS or authentication is refused from now on, before we have said a word there."""
        self._failures = 0
        self._refused = False
        self._failed = asyncio.Event()
        self.on_denied: Callable[[str, str], Any] = lambda subject, message: None
        self.closed = asyncio.Event()
        """Set when the client has given up, as for wrong credentials."""
        self._name = name
        self._on_change = on_change
        self._options = _options(broker)

    @property
    def connected(self) -> bool:
        return self._ready and bool(self.client.is_connected)

    @property
    def has_tls(self) -> bool:
        """Whether the connection is encrypted, and the server's certificate was checked."""
        return has_tls(self.info)

    @property
    def has_authentication(self) -> bool:
        """Whether the server lets nobody in without credentials."""
        return has_authentication(self.info)

    def denial_of(self, subject: str) -> str | None:
        """What the server has said of a message that we may not send there, in a sentence."""
        return self._denied.get(subject.lower())

    async def connect(self, *, patient: bool = True) -> None:
        """Connect; a `patient` caller has it tried again and again, another one not after every server has failed.

        Raises AccessDenied for credentials that a server refuses, ControlError for another last word of a server.
        """
        connecting = asyncio.ensure_future(self._connect())
        failed = asyncio.ensure_future(self._failed.wait())
        waiting = {connecting} if patient else {connecting, failed}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise self._last_word()
            connecting.result()
        finally:
            failed.cancel()
            connecting.cancel()

    async def _connect(self) -> None:
        from nats import errors

        try:
            await self.client.connect(
                servers=self.broker.servers,
                name=self._name,
                error_cb=self._note_error,
                disconnected_cb=self._note_lost,
                reconnected_cb=self._note_ready,
                closed_cb=self._note_closed,
                connect_timeout=CONNECT_TIMEOUT,
                ping_interval=PING_INTERVAL,
                max_reconnect_attempts=-1,
                reconnect_time_wait=random.uniform(*RECONNECT),
                inbox_prefix=self.broker.inbox,
                **self._options,
            )
        except errors.Error as error:
            await self._note_error(error)
            raise self._last_word() from None
        await self._note_ready()

    async def who(self) -> dict[str, Any]:
        """What the server knows of us: ``user``, ``account``, ``permissions``, and the server's time as ``time``.

        Empty where we may not ask it.
        """
        from nats import errors

        try:
            answer = await self.client.request("$SYS.REQ.USER.INFO", b"", timeout=2)
            document = json.loads(answer.data)
            return {**document["data"], "time": document["server"]["time"]}
        except (errors.Error, ValueError, KeyError):
            return {}

    async def close(self) -> None:
        """End the connection, without waiting for what was not sent."""
        await self.client.close()

    async def _note_error(self, error: Exception) -> None:
        from nats import errors

        text = str(error) or type(error).__name__
        lower = text.lower()
        if _VIOLATION in lower:
            self._note_denied(text, lower)
            return
        if not self.connected:
            # While it connects, the library gives the server's words.
            refused = any(word in lower for word in _REFUSALS)
            # The words of a server that refuses us get lost if it has closed before our last ones: it is asked again.
            unclear = (
                isinstance(error, (ConnectionResetError, BrokenPipeError, errors.UnexpectedEOF))
                and self.has_authentication
            )
            self._refused = refused or unclear
            self.problem = self._refusal if refused else CLOSED if unclear else _in_plain_words(error, text)
            self._failures += 1 if unclear else UNCLEAR
            if self._failures >= UNCLEAR * len(self.broker.servers):
                self._failed.set()
            self._on_change()

    @property
    def _refusal(self) -> str:
        broker = self.broker
        given = broker.credentials or broker.nkey or broker.user or broker.certificate
        return REFUSED if given or any("@" in url for url in broker.servers) else MISSING

    def _note_denied(self, text: str, lower: str) -> None:
        what = "publish" if "for publish" in lower else "subscribe"
        subject = text.partition('"')[2].partition('"')[0]
        # The library gives all of it in lower case.
        named = self.client.spoken.get(subject, subject)
        message = f"{self.broker.user or 'this user'} may not {what} {'to' if what == 'publish' else 'at'} {named}"
        if what == "subscribe" and named.startswith(f"{self.broker.inbox}."):
            message += (
                "; the inbox that it may use is to be named by FLASK_CTL_FLEET_INBOX, of an app by CTL_FLEET_INBOX"
            )
        if what == "publish":
            self._denied[subject] = message
            while len(self._denied) > MAX_DENIED:
                self._denied.pop(next(iter(self._denied)))
        self.on_denied(subject, message)

    async def _note_ready(self) -> None:
        """The server has taken the subscriptions, too."""
        self._ready, self.problem = True, None
        self._on_change()

    async def _note_lost(self) -> None:
        self._ready = False
        self.problem = self.problem or "the connection has ended"
        self._on_change()

    async def _note_closed(self) -> None:
        self.closed.set()
        await self._note_lost()

    def _last_word(self) -> ControlError:
        message = f"{', '.join(self.broker.shown())}: {self.problem}"
        return AccessDenied(message) if self._refused else ControlError(message)


def has_tls(info: dict[str, Any]) -> bool:
    """Whether a server with this INFO encrypts."""
    # The client encrypts exactly if the server says so, and checks the certificate then.
    return bool(info.get("tls_required"))


def has_authentication(info: dict[str, Any]) -> bool:
    """Whether a server with this INFO lets nobody in without credentials."""
    return bool(info.get("auth_required") or info.get("tls_verify"))


def check_broker(broker: Broker) -> None:
    """Raises ConfigurationError without the extra ``fleet``, or for files that can't be read; nothing is connected."""
    if importlib.util.find_spec("nats") is None:
        raise ConfigurationError(WITHOUT_NATS)
    _options(broker)


def _new_client(connection: Connection) -> Any:
    try:
        from nats import errors
        from nats.aio.client import Client
    except ImportError:
        raise ConfigurationError(WITHOUT_NATS) from None

    class CheckedClient(Client):
        """Sends no credentials to a server without TLS if TLS is wanted; knows the subjects it has spoken to."""

        def __init__(self) -> None:
            super().__init__()
            self.spoken: dict[str, str] = {}
            """Subjects, by what they are in lower case."""

        async def publish(self, subject: str, *arguments: Any, **options: Any) -> None:
            self._note(subject)
            await super().publish(subject, *arguments, **options)

        async def subscribe(self, subject: str, *arguments: Any, **options: Any) -> Any:
            self._note(subject)
            return await super().subscribe(subject, *arguments, **options)

        def _note(self, subject: str) -> None:
            self.spoken[subject.lower()] = subject
            if len(self.spoken) > MAX_SPOKEN:
                del self.spoken[next(iter(self.spoken))]

        async def _process_connect_init(self) -> None:
            try:
                await super()._process_connect_init()
            except (OSError, errors.Error, asyncio.TimeoutError):
                raise
            except Exception as error:
                # With another exception, as for a file of credentials that is being written, it would never try again.
                raise errors.Error(f"{type(error).__name__}: {error}") from None

        async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
            if initial_connection:
                if connection.broker.wants_tls and not info.get("tls_required"):
                    raise errors.SecureConnWantedError
                if connection.stays_safe and not (has_tls(info) and has_authentication(info)):
                    raise errors.Error("the server is not as safe as the one before")
                connection.info = info
            await super()._process_info(info, initial_connection)

    return CheckedClient()


def _options(broker: Broker) -> dict[str, Any]:
    """Of what authenticates us. Raises ConfigurationError for a file that can't be read."""
    options: dict[str, Any] = {}
    for name, path in (("user_credentials", broker.credentials), ("nkeys_seed", broker.nkey)):
        if path is not None:
            if not os.access(path, os.R_OK):
                raise ConfigurationError(f"{path}, with the credentials for NATS, can't be read")
            options[name] = path
    if broker.user is not None:
        options |= {"user": broker.user, "password": broker.password}
    if broker.wants_tls:
        try:
            options["tls"] = context = ssl.create_default_context(cafile=broker.ca)
            if broker.certificate is not None:
                context.load_cert_chain(broker.certificate, broker.key)
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(filter(None, (broker.ca, broker.certificate, broker.key)))
            raise ConfigurationError(f"the certificates for NATS can't be used ({names}): {error}") from None
    return options


def _in_plain_words(error: Exception, text: str) -> str:
    """Why a server can't be used."""
    from nats import errors

    if isinstance(error, errors.SecureConnWantedError):
        return "the server has no TLS, which is wanted; nothing was sent to it"
    if isinstance(error, ssl.SSLCertVerificationError):
        file = "CTL_FLEET_CA, or FLASK_CTL_FLEET_CA, names the file of the authorities"
        return f"the server's certificate is not trusted: {error.verify_message}; {file}"
    if isinstance(error, ConnectionRefusedError):
        return "no NATS server listens there"
    if isinstance(error, socket.gaierror):
        return "the name of the server is not known"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, asyncio.TimeoutError):
        return "the server does not answer"
    return text.removeprefix("nats: ")
