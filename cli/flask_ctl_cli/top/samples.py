"""What the view shows of an instance: its last answers, and the rates between two of them."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flask_ctl import AccessDenied, CommandError, ControlClient, ControlError

HISTORY = 60
"""Samples that the sparklines show."""

WINDOW = 10
"""Samples over which the figures in digits are taken: of those of one second few requests would be seen."""

RECORDS = 8
"""Log records that are shown at most."""

DURATIONS = "flask_ctl_request_duration_seconds"


class Buckets(NamedTuple):
    """Upper bounds in seconds, and how many durations each has, those of lower bounds included."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    @classmethod
    def of(cls, families: Sequence[Mapping[str, Any]]) -> Buckets:
        """The durations of all methods together; empty for a server that does not measure them."""
        sums: dict[float, float] = {}
        for family in families:
            if family["name"] == DURATIONS:
                for name, labels, value, *_ in family["samples"]:
                    if name.endswith("_bucket"):
                        bound = float(labels["le"])
                        sums[bound] = sums.get(bound, 0) + value
        bounds = tuple(sorted(sums))
        return cls(bounds, tuple(sums[bound] for bound in bounds))

    def since(self, before: Buckets) -> Buckets:
        """The durations that have come since; all, if the server has begun to count anew."""
        if self.bounds != before.bounds or any(now < then for now, then in zip(self.counts, before.counts)):
            return self
        return Buckets(self.bounds, tuple(now - then for now, then in zip(self.counts, before.counts)))

    def quantile(self, share: float) -> float | None:
        """The duration that so great a share does not exceed, by a straight line within a bucket; None without any."""
        if not self.counts or not self.counts[-1]:
            return None
        wanted, below, lower = share * self.counts[-1], 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts):
            if count >= wanted:
                if bound == float("inf"):
                    return lower
                return lower + (bound - lower) * (wanted - below) / (count - below) if count > below else bound
            below, lower = count, bound
        return lower


class Sample(NamedTuple):
    """What an instance has counted at one moment."""

    at: float
    total: int
    errors: int
    buckets: Buckets

    def rate(self, before: Sample) -> float:
        """Requests a second since another sample."""
        return (self.total - before.total) / ((self.at - before.at) or 1.0)


class Watched:
    """One instance. `ask` is called by one thread; the others only read what it has left."""

    def __init__(self, connect: Callable[[], ControlClient], name: str = "") -> None:
        self.connect = connect
        self.name = name
        self.status: dict[str, Any] | None = None
        self.problem = ""
        """Why there is no answer; what is shown is that of the last one."""
        self.requests: list[dict[str, Any]] = []
        self.records: collections.deque[dict[str, Any]] = collections.deque(maxlen=RECORDS)
        """The last log records, and what the stream tells beside them."""
        self._follows = False
        self.rates: collections.deque[float] = collections.deque([0.0] * HISTORY, HISTORY)
        """Requests a second."""
        self.latencies: collections.deque[float] = collections.deque([0.0] * HISTORY, HISTORY)
        """The 95th percentile in seconds, 0 without a request."""
        self.rate = 0.0
        self.errors = 0.0
        """Requests and errors a second, over the last WINDOW samples, like what follows."""
        self.median: float | None = None
        self.slow: float | None = None
        """The 50th and the 95th percentile in seconds, None without a request."""
        self._client: ControlClient | None = None
        self._window: collections.deque[Sample] = collections.deque(maxlen=WINDOW)

    def ask(self) -> None:
        """Take a sample. A failure becomes the `problem`."""
        try:
            self._client = self._client or self.connect()
            status = self._client.status()
            self._note(status, Buckets.of(self._families(self._client)))
            self.requests = self._client.requests()["requests"]
            self.problem = ""
        except ControlError as error:
            self.problem = error.message
            self.rates.append(0.0)
            self.latencies.append(0.0)
            self.close()

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.close()
        self._client = None

    def _families(self, client: ControlClient) -> Sequence[Mapping[str, Any]]:
        try:
            families: list[dict[str, Any]] = client.metrics()["families"]
        except CommandError:
            # A server of an older version.
            return []
        return families

    def _note(self, status: dict[str, Any], buckets: Buckets) -> None:
        sample = Sample(time.monotonic(), status["requests"]["total"], status["requests"]["errors"], buckets)
        if self.status is not None and (self.status["pid"] != status["pid"] or sample.total < self._window[-1].total):
            # Another process, which has begun to count anew.
            self._window.clear()
        self.status = status
        # What came before the first sample came at an unknown time.
        first, last = (self._window[0], self._window[-1]) if self._window else (sample, sample)
        self._window.append(sample)
        self.rates.append(sample.rate(last))
        self.latencies.append(sample.buckets.since(last.buckets).quantile(0.95) or 0.0)
        self.rate = sample.rate(first)
        self.errors = (sample.errors - first.errors) / ((sample.at - first.at) or 1.0)
        recent = sample.buckets.since(first.buckets)
        self.median, self.slow = recent.quantile(0.5), recent.quantile(0.95)

    def follow_records(self) -> None:
        """Keep the records up to date, from now on: one entry in the audit log, and not one a second."""
        if not self._follows:
            self._follows = True
            # It waits for records, and does not keep the program from its end.
            threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        try:
            with self.connect() as client:
                self.records.extend(client.follow("logs", follow=True, lines=RECORDS))
        except AccessDenied:
            self.records.append({"problem": "log records are for the role inspect"})
        except ControlError as error:
            self.records.append({"problem": error.message})
        # At the next look, if it answers again.
        self._follows = False
