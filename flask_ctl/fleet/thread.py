"""The thread in which an instance's connection to NATS lives, with an asyncio loop of its own.

Nothing here waits for the server where the app, a stop or the control thread would have to wait, too, but for `flush`
and `close`, which have a limit.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ..dispatch.commands import Role
from ..errors import ControlError
from ..system.native import selectors, socket, start_thread, threading
from .agent import Agent, Deliver, Identity, roles_up_to
from .connection import Connection
from .presence import Presence
from .settings import FleetSettings

MAX_UNSENT = 1024 * 1024
"""Bytes of answers that wait for the server; without one more are dropped, the oldest first."""

RETRY = (1.0, 30.0)
"""Seconds before another try after a server has refused us: the first, and the most."""

NOTHING = "nothing was said"
NOT_YET = "not connected yet"

LAST_WORDS = 1.0
"""Seconds at most for the thread to end, and for a server to take the last answers."""

GOODBYE = 0.2
"""Seconds for a server to agree to the end of a connection."""

logger = logging.getLogger("flask_ctl")


class FleetThread:
    """Keeps an `Agent` at the servers, from `start` to `close`. Any thread may call the methods.

    `deliver` is called on this thread.
    """

    def __init__(self, settings: FleetSettings, identity: Identity, deliver: Deliver) -> None:
        self._settings = settings
        self._identity = identity
        self._deliver = deliver
        self._loop = _Loop()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._agent: Agent | None = None
        self._closing = asyncio.Event()
        self._leaves = False
        self._presence: Presence | None = None
        self._unsent: collections.deque[tuple[str, bytes, tuple[int, str] | None]] = collections.deque()
        self._lock = threading.Lock()
        self._given = 0
        # This one is changed by the fleet's thread alone.
        self._sent = 0
        self._safety: tuple[bool, bool] | None = None
        self._sending = asyncio.Event()
        self._sender: asyncio.Future[None] | None = None
        self._said: str | None = NOTHING
        self._tasks: set[asyncio.Future[Any]] = set()
        self.roles: Sequence[Role] = ()
        """Those whose requests are taken; empty before the first connection."""
        self.on_sent: Callable[[], Any] = lambda: None
        """Called on this thread when no answer waits any more."""
        self.account: str | None = None
        """The account of the server in which we are."""

    @property
    def problem(self) -> str | None:
        """Why no requests are taken in; None if they are."""
        connection = self._connection
        if connection is None:
            return NOT_YET
        # The client counts as connected before the server has our subscriptions again.
        takes = self._agent is not None and connection.connected and connection.problem is None
        return None if takes else connection.problem or NOT_YET

    @property
    def unsent(self) -> int:
        """Bytes of answers that wait for the server."""
        return self._given - self._sent

    def start(self) -> None:
        """Begin to connect."""
        self._thread = threading.Thread(target=self._run, name="flask-ctl-fleet", daemon=True)
        self._thread.start()

    def respond(self, reply: str, data: bytes, error: tuple[int, str] | None = None) -> None:
        """Send an answer as soon as there is a server."""
        with self._lock:
            self._given += len(data)
        self._call(self._keep, reply, data, error)

    def tell(self, presence: Presence) -> None:
        """Renew the presence."""
        self._call(self._renew, presence)

    def flush(self, timeout: float) -> None:
        """Wait until the server has what was answered, if there is one; `timeout` seconds at most."""
        if self.unsent and self.problem is None:
            self._wait(self._flush(), timeout)

    def close(self, *, leave: bool = False) -> None:
        """End the connection; more than once is fine. `leave` keeps the presence, for the next image of the process."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._leaves = leave
        self._call(self._closing.set)
        if not leave:
            thread.join(LAST_WORDS)

    def abandon(self) -> None:
        """In a forked child: close its copies of the descriptors."""
        self._thread = None
        if self._loop.is_closed():
            return
        for descriptor in self._descriptors():
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

    async def _serve(self) -> None:
        """Connect, and begin anew when a server has refused us for good, until the end."""
        delay = RETRY[0]
        while True:
            try:
                self._connection = Connection(self._settings.broker, f"flask-ctl {self._identity.instance}", self._told)
                self._connection.on_denied = self._denied
                await self._until_closing(self._attach(self._connection))
                delay = RETRY[0]
                await self._until_closing(self._connection.closed.wait())
            except ControlError as error:
                self._say(error.message)
            except Exception:
                # A fault of the library's must not end control over NATS for ever.
                logger.exception("the connection to NATS failed; it is tried again")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay)
            if self._closing.is_set():
                break
            delay = min(2 * delay, RETRY[1])
            await self._drop()
        if self._sender is not None:
            self._sender.cancel()
        if self._agent is not None and self.problem is None and not self._leaves:
            await self._agent.stop()
        await self._drop()

    async def _attach(self, connection: Connection) -> None:
        await connection.connect()
        self.account = (await connection.who()).get("account")
        roles = self._roles(connection)
        agent = Agent(connection, self._identity, roles, self._deliver)
        await agent.start()
        connection.stays_safe = not self._settings.operate and len(roles) > 1
        self._agent, self.roles = agent, roles
        if self._sender is None:
            # Only now: before it, the import of the library may fail for want of descriptors.
            self._sender = asyncio.ensure_future(self._send())
        self._sending.set()
        if self._presence is not None:
            await agent.tell(self._presence)

    async def _drop(self) -> None:
        connection, self._connection, self._agent = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                # What was published is handed to the kernel first; then a server with TLS is to say that it agrees.
                await asyncio.wait_for(connection.close(), GOODBYE)

    def _roles(self, connection: Connection) -> list[Role]:
        """What is served. Without TLS or authentication anybody could be the sender."""
        self._safety = has_tls, has_authentication = _safety_of(connection)
        missing = [name for name, there in (("TLS", has_tls), ("authentication", has_authentication)) if not there]
        if not missing:
            return roles_up_to("operate")
        without = f"no {missing[0]}" if len(missing) == 1 else "neither TLS nor authentication"
        if self._settings.operate:
            logger.warning(
                "anybody who reaches the NATS server may operate %s: it has %s (CTL_FLEET_OPERATE)",
                self._identity.app,
                without,
            )
            return roles_up_to("operate")
        logger.warning(
            "over NATS %s can only be observed: the server has %s; CTL_FLEET_OPERATE = True allows the rest",
            self._identity.app,
            without,
        )
        return roles_up_to("observe")

    async def _until_closing(self, waiting: Coroutine[Any, Any, Any]) -> None:
        """Until it is done, or the end."""
        task, closing = asyncio.ensure_future(waiting), asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({task, closing}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            task.cancel()
            closing.cancel()

    def _told(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if connection.connected:
            if self._agent is not None and _safety_of(connection) != self._safety:
                # Another server of the cluster, which is not as safe: what is served has to be chosen anew.
                self._begin(connection.close())
                return
            self._say(None)
            self._sending.set()
            if self._agent is not None and self._presence is not None:
                self._begin(self._agent.tell(self._presence))
        else:
            self._say(connection.problem)

    def _say(self, problem: str | None) -> None:
        if problem == self._said:
            return
        began, self._said = self._said is None or self._said == NOTHING, problem
        servers = ", ".join(self._settings.broker.shown())
        if problem is None:
            logger.info("%s is under control over NATS at %s", self._identity.app, servers)
        elif began:
            logger.warning("no control over NATS at %s: %s; it is tried again and again", servers, problem)
        else:
            # Each try may fail in another way, thousands of times in a night.
            logger.debug("still no control over NATS at %s: %s", servers, problem)

    def _denied(self, subject: str, message: str) -> None:
        logger.warning("control over NATS: %s; the permissions of the account say so", message)

    def _keep(self, reply: str, data: bytes, error: tuple[int, str] | None) -> None:
        self._unsent.append((reply, data, error))
        while self.unsent > MAX_UNSENT and len(self._unsent) > 1 and self.problem is not None:
            _, dropped, _ = self._unsent.popleft()
            self._sent += len(dropped)
        self._sending.set()

    async def _send(self) -> None:
        """Publish what waits, in order, while there is a server."""
        from nats import errors

        while True:
            await self._sending.wait()
            self._sending.clear()
            while self._unsent and self._agent is not None and self.problem is None:
                reply, data, error = self._unsent[0]
                try:
                    await self._agent.respond(reply, data, error)
                    if self._connection is not None and self._connection.client.pending_data_size > MAX_UNSENT // 4:
                        await self._connection.client.flush()
                except (errors.Error, asyncio.TimeoutError) as failure:
                    logger.debug("an answer was not sent over NATS: %s", failure)
                    if self.problem is not None:
                        break
                except Exception:
                    # One answer must not cost all those that follow.
                    logger.exception("an answer can't be sent over NATS")
                self._unsent.popleft()
                self._sent += len(data)
                if not self._unsent:
                    self.on_sent()

    async def _flush(self) -> None:
        while self._unsent and self.problem is None:
            await asyncio.sleep(0.001)
        if self._connection is not None:
            await self._connection.client.flush()

    def _renew(self, presence: Presence) -> None:
        self._presence = presence
        if self._agent is not None and self.problem is None:
            self._begin(self._agent.tell(presence))

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have it done beside what is done. The loop keeps only a weak reference to a task."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        # The loop may have been closed.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _wait(self, work: Coroutine[Any, Any, Any], timeout: float) -> None:
        try:
            waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            return
        try:
            waiting.result(timeout)
        except concurrent.futures.TimeoutError:
            waiting.cancel()
            logger.debug("NATS did not take the last words within %g s", timeout)
        except Exception as error:
            logger.debug("NATS did not take the last words: %s", error)

    def _descriptors(self) -> list[int]:
        loop: Any = self._loop
        return [*loop._selector.get_map(), loop._selector.fileno(), loop._csock.fileno()]


def _safety_of(connection: Connection) -> tuple[bool, bool]:
    return connection.has_tls, connection.has_authentication


class _Loop(asyncio.SelectorEventLoop):
    """A loop that resolves names in threads for which nobody waits.

    Those of asyncio's pool would be greenlets under gevent, and the interpreter would wait for one that hangs.
    """

    def __init__(self) -> None:
        # Gevent's selector would belong to its own loop.
        super().__init__(selectors.DefaultSelector())

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        found: asyncio.Future[Any] = self.create_future()

        def answer(set_it: Callable[[Any], Any], value: Any) -> None:
            # The loop may have ended meanwhile.
            with contextlib.suppress(RuntimeError):
                self.call_soon_threadsafe(lambda: None if found.done() else set_it(value))

        def resolve() -> None:
            try:
                addresses = socket.getaddrinfo(host, port, family, type, proto, flags)
            except OSError as error:
                answer(found.set_exception, error)
            else:
                answer(found.set_result, addresses)

        start_thread(resolve)
        return await found
