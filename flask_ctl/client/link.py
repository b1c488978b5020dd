"""An operator's connection to NATS, in a thread with an asyncio loop of its own. Any thread may use it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..errors import AccessDenied, ControlError
from ..fleet.connection import Connection
from ..fleet.faults import plain_faults
from ..fleet.inbox import Inbox, Receive, Request
from ..fleet.settings import Broker
from ..fleet.subjects import PREFIX

LAST_WORDS = 1.0
"""Seconds for the server to take what was sent last."""

Result = TypeVar("Result")


class Link:
    """From `open` to `close`. `connection` and `inbox` belong to its loop, where `run` runs a coroutine."""

    def __init__(self, broker: Broker, user: str) -> None:
        self._broker = broker
        self._user = user
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="flask-ctl-nats", daemon=True)
        self.connection: Connection
        self.inbox: Inbox

    def open(self, timeout: float) -> None:
        """Connect. Raises AccessDenied for credentials that are refused, ControlError if no server can be reached."""
        self._thread.start()
        try:
            self.run(self._open(timeout))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection, once what was sent has been taken; more than once is fine."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(2 * LAST_WORDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LAST_WORDS)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of a coroutine on the loop. Raises what it raises."""
        try:
            waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise ControlError("the connection is closed") from None
        try:
            return waiting.result()
        finally:
            # As after Ctrl-C.
            waiting.cancel()

    def guarded(self, work: Coroutine[Any, Any, Result]) -> Result:
        """As `run`. Raises AccessDenied as soon as the server says that something is not permitted."""
        if self._loop.is_closed():
            work.close()
            raise ControlError("the connection is closed")
        return self.run(self._until_denied(work))

    def send(self, request: Request, receive: Receive, reply: str | None = None) -> str:
        """See `Inbox.send`; `receive` is called on the loop."""
        return self.run(self._send(request, receive, reply))

    def soon(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Call it on the loop, without waiting for that."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    async def _open(self, timeout: float) -> None:
        self.connection = Connection(self._broker, "flask-ctl", self._note_change)
        self.inbox = Inbox(self.connection, self._user)
        try:
            await asyncio.wait_for(self.connection.connect(patient=False), timeout)
        except asyncio.TimeoutError:
            servers = ", ".join(self._broker.shown())
            raise ControlError(f"no NATS server answers at {servers} within {timeout:g} s") from None
        with plain_faults("NATS can't be used"):
            await self.inbox.open()

    async def _close(self) -> None:
        if not hasattr(self, "inbox"):
            return
        if self.connection.connected:
            with contextlib.suppress(Exception):
                await self.inbox.close()
                await asyncio.wait_for(self.connection.client.flush(), LAST_WORDS)
        await self.connection.close()

    async def _send(self, request: Request, receive: Receive, reply: str | None) -> str:
        with plain_faults(f"the request to {request.instance} can't be sent"):
            return await self.inbox.send(request, receive, reply)

    async def _until_denied(self, work: Coroutine[Any, Any, Result]) -> Result:
        denied: asyncio.Future[str] = self._loop.create_future()

        def note(subject: str, message: str) -> None:
            # A command that another thread has sent is told to that one.
            if not subject.startswith(f"{PREFIX}.") and not denied.done():
                denied.set_result(message)

        self.inbox.denials.append(note)
        task = asyncio.ensure_future(work)
        try:
            waiting: set[asyncio.Future[Any]] = {task, denied}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise AccessDenied(denied.result())
        finally:
            self.inbox.denials.remove(note)
            denied.cancel()
            task.cancel()

    def _note_change(self) -> None:
        # The first time there is nothing to tell.
        if self.connection.connected:
            self.inbox.note_reconnected()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()
