"""A user of a NATS server that speaks to instances without our own client, for the tests."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import nats
from harness import TIMEOUT, until
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.errors import NotFoundError

from flask_ctl.fleet.buckets import read_entries
from flask_ctl.fleet.subjects import PRESENCE

T = TypeVar("T")


class Answer(dict[str, Any]):
    """A JSON-RPC response, with the headers of its message, and the notifications before it."""

    headers: dict[str, str]
    notifications: list[dict[str, Any]]


class NatsUser:
    """A connection to the server at `url`; a context manager. `options` are those of `nats.connect`."""

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self.denied: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        self.client = self._run(nats.connect(url, error_cb=self._note, **options))
        self._inbox = self.client.new_inbox()
        self._answers = self._run(self.client.subscribe(f"{self._inbox}.*"))

    def __enter__(self) -> NatsUser:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._run(self.client.close())
        self._loop.close()

    def inbox(self) -> str:
        """A new reply subject."""
        return f"{self._inbox}.{next(self._numbers)}"

    def send(self, subject: str, data: bytes, reply: str | None = None, **headers: str) -> str:
        """Publish; gives the reply subject. Underscores in names of headers are dashes."""
        reply = reply or self.inbox()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._run(self.client.publish(subject, data, reply=reply, headers=named or None))
        self._run(self.client.flush())
        return reply

    def listen(self, subject: str) -> Subscription:
        """Subscribe, and wait until the server has said what it thinks of that."""
        subscription = self._run(self.client.subscribe(subject))
        self._run(self.client.flush())
        return subscription

    def put(self, bucket: str, key: str, value: bytes) -> None:
        """Write an entry of a bucket that exists."""
        self._run(self._put(bucket, key, value))

    def make_bucket(self, name: str, ttl: float | None) -> None:
        """Whose entries live for so many seconds."""
        self._run(self.client.jetstream().create_key_value(bucket=name, ttl=ttl))

    def replicas(self, bucket: str) -> int:
        """Of a bucket; 0 as long as there is none, or its servers don't answer."""
        return self._run(self._replicas(bucket))

    def call(
        self, subject: str, method: str, params: dict[str, Any] | None = None, *, number: int = 1, **headers: str
    ) -> Answer:
        """The response to a request with the id `number`."""
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}
        return self.response(self.send(subject, json.dumps(request).encode(), **headers))

    def response(self, reply: str) -> Answer:
        """The response that comes at a reply subject, joined if it comes in parts."""
        notifications, data = [], b""
        while True:
            message = self.next()
            if message.subject != reply:
                continue
            headers = message.headers or {}
            data += message.data
            number, _, count = headers.get("Flask-Ctl-Part", "").partition("/")
            if number != count:
                continue
            value, data = json.loads(data), b""
            if "method" in value:
                notifications.append(value)
                continue
            answer = Answer(value)
            answer.headers, answer.notifications = headers, notifications
            return answer

    def next(self, subscription: Subscription | None = None) -> Msg:
        """The next message at any of our reply subjects, or of another subscription."""
        message: Msg = self._run((subscription or self._answers).next_msg(timeout=TIMEOUT))
        return message

    def services(self, verb: str = "INFO", count: int = 1) -> list[dict[str, Any]]:
        """What the services of flask-ctl answer, `count` of them, once they are there."""
        found: list[dict[str, Any]] = []

        def ask() -> bool:
            found[:] = self._run(self._gather(f"$SRV.{verb}.flask-ctl", count))
            return len(found) >= count

        until(ask, lambda: f"{count} services, not {found}")
        return found

    def presences(self) -> dict[str, dict[str, Any]]:
        """By instance, as far as they are renewed or not removed."""
        return self._run(self._presences())

    async def _gather(self, subject: str, count: int) -> list[dict[str, Any]]:
        inbox = self.client.new_inbox()
        answers = await self.client.subscribe(inbox)
        await self.client.publish(subject, b"", reply=inbox)
        found: list[dict[str, Any]] = []
        try:
            while len(found) < count:
                message = await answers.next_msg(timeout=0.5)
                if message.data:
                    found.append(json.loads(message.data))
        except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
            pass
        await answers.unsubscribe()
        return found

    async def _presences(self) -> dict[str, dict[str, Any]]:
        try:
            entries = await read_entries(self.client, PRESENCE)
        except NotFoundError:
            return {}
        records = [json.loads(entry.value) for entry in entries]
        return {record["instance"]: record for record in records}

    async def _put(self, bucket: str, key: str, value: bytes) -> None:
        await (await self.client.jetstream().key_value(bucket)).put(key, value)

    async def _replicas(self, bucket: str) -> int:
        try:
            status = await (await self.client.jetstream().key_value(bucket)).status()
        except nats.errors.Error:
            return 0
        return int(status.stream_info.config.num_replicas or 0)

    async def _note(self, error: Exception) -> None:
        self.denied.append(str(error))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)
