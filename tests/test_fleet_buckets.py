"""The entries of a bucket are read whole, in whatever order answers arrive; a write waits for a bucket to be known."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from nats.js.errors import NoStreamResponseError

from flask_ctl.fleet import buckets
from flask_ctl.fleet.buckets import read_entries, taken


def message(key: str, left: int, **headers: str) -> Any:
    metadata = SimpleNamespace(num_pending=left, sequence=SimpleNamespace(stream=1), timestamp=None)
    return SimpleNamespace(subject=f"$KV.box.{key}", data=b"", headers=headers or None, metadata=metadata)


class Consumer:
    """A subscription: each look of the reader is answered by the next of `steps`, after which messages arrive."""

    def __init__(self, *steps: tuple[int, int, list[Any]]) -> None:
        self._steps = list(steps)
        self._take: Any = None
        self._delivering: list[asyncio.Task[None]] = []
        self.ended = False

    def jetstream(self, timeout: float) -> Consumer:
        return self

    async def subscribe(self, subject: str, *, cb: Any, **options: Any) -> Consumer:
        self._take = cb
        return self

    async def consumer_info(self) -> Any:
        sent, left, messages = self._steps.pop(0)
        self._delivering.append(asyncio.create_task(self._deliver(messages)))
        return SimpleNamespace(num_pending=left, delivered=SimpleNamespace(consumer_seq=sent))

    async def unsubscribe(self) -> None:
        self.ended = True

    async def _deliver(self, messages: list[Any]) -> None:
        for each in messages:
            await self._take(each)


REMOVED = {"KV-Operation": "PURGE"}
EXPIRED = {"Nats-Marker-Reason": "MaxAge"}

ROWS = {
    "there is none": (Consumer((0, 0, [])), []),
    "none was sent yet": (Consumer((0, 2, [message("a", 1), message("b", 0)])), ["a", "b"]),
    "all were sent and none has arrived yet": (Consumer((2, 0, [message("a", 1), message("b", 0)])), ["a", "b"]),
    "the last one was removed on its way": (Consumer((0, 2, [message("a", 1)]), (1, 0, [])), ["a"]),
    "one comes late": (Consumer((1, 1, [message("a", 1)]), (2, 0, [message("b", 0)])), ["a", "b"]),
    "some are marks of what was removed": (
        Consumer((0, 3, [message("a", 2, **REMOVED), message("b", 1), message("c", 0, **EXPIRED)])),
        ["b"],
    ),
}


@pytest.mark.parametrize(("consumer", "keys"), ROWS.values(), ids=ROWS)
def test_all_entries_are_read(consumer: Consumer, keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "LOOK_INTERVAL", 0.01)
    assert [entry.key for entry in asyncio.run(read_entries(consumer, "box"))] == keys
    assert consumer.ended


def test_a_server_that_sends_no_entry_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "LOOK_INTERVAL", 0.001)
    monkeypatch.setattr(buckets, "READ_TIMEOUT", 0.01)
    consumer = Consumer(*[(0, 1, [])] * 1000)
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(read_entries(consumer, "box"))
    assert consumer.ended


@pytest.mark.parametrize("unknown", [0, 1, 3])
def test_a_write_is_tried_again_while_no_server_knows_the_bucket(monkeypatch: pytest.MonkeyPatch, unknown: int) -> None:
    monkeypatch.setattr(buckets, "TAKE_INTERVAL", 0.0)
    answers: list[Any] = [*[NoStreamResponseError()] * unknown, 7]

    async def write() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert asyncio.run(taken(write)) == 7
    assert not answers


def test_a_write_that_no_server_takes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "TAKE_TIMEOUT", 0.0)
    monkeypatch.setattr(buckets, "TAKE_INTERVAL", 0.0)

    async def write() -> Any:
        raise NoStreamResponseError

    with pytest.raises(NoStreamResponseError):
        asyncio.run(taken(write))
