"""The registries of prometheus_client that an app has given us: what is in them, as families.

Nothing of that package is imported here: the app has done so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import CONFLICT, CommandError
from .metrics import AGGREGATES, PREFIX, SUMMED, TYPES, Family, as_value, check, pack

_MODES = {"all": "each", "min": "min", "max": "max", "sum": "sum", "mostrecent": "last"}
"""The aggregates of the ``multiprocess_mode`` of a Gauge, without its ``live``: gauges end with their process here."""

MAX_NOTED = 100
"""Malformed metrics that are named in the log, each once."""

POLL = 0.005
"""Seconds between two looks whether a collection has ended."""

logger = logging.getLogger("flask_ctl")


class Registered(NamedTuple):
    """A registry, and the aggregates of gauges by the name of their family, which precede what the gauges declare."""

    registry: Any
    aggregates: Mapping[str, str]


class Registries:
    """The registries of an app. One thread at a time collects from them: a collector of the app's may hang."""

    def __init__(self) -> None:
        self.registered: list[Registered] = []
        self.packed = ""
        """What was collected last, as `pack` packs it."""
        self._collecting = False
        self._malformed: set[str] = set()

    def add(self, registry: Any, aggregates: Mapping[str, str]) -> None:
        """Raises ValueError for an aggregate that there is not."""
        for name, aggregate in aggregates.items():
            if aggregate not in AGGREGATES:
                raise ValueError(f"the aggregate of {name} is one of {', '.join(AGGREGATES)}, not {aggregate!r}")
        if all(one.registry is not registry for one in self.registered):
            self.registered.append(Registered(registry, dict(aggregates)))

    def __bool__(self) -> bool:
        return bool(self.registered)

    def check_idle(self) -> None:
        """Raises CommandError -32002 while a collection is under way."""
        if self._collecting:
            raise CommandError("a collector of the app has not returned yet", code=CONFLICT)

    def collect(self) -> str:
        """The families of this moment, packed. It runs code of the app's, and raises what that raises."""
        self.check_idle()
        self._collecting = True
        try:
            self.packed = pack(self.families())
        finally:
            self._collecting = False
        return self.packed

    def collect_last(self) -> str:
        """As `collect`, once a collection that is under way has ended: what is counted meanwhile is in this one."""
        while self._collecting:
            time.sleep(POLL)
        return self.collect()

    def families(self) -> list[Family]:
        """The families of this moment.

        The second one of a name, one with a name like ours, and a malformed one are left out.
        """
        found: dict[str, Family] = {}
        for registry, aggregates in self.registered:
            for metric in registry.collect():
                if metric.name in found or str(metric.name).startswith(PREFIX) or metric.type not in TYPES:
                    logger.debug("the metric %s is left out", metric.name)
                    continue
                try:
                    one = _family(metric, aggregates.get(metric.name) or _declared(registry, metric.name))
                    check(one)
                except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
                    self._note_malformed(str(metric.name), error)
                else:
                    found[metric.name] = one
        return list(found.values())

    def _note_malformed(self, name: str, error: Exception) -> None:
        if name not in self._malformed and len(self._malformed) < MAX_NOTED:
            self._malformed.add(name)
            logger.warning("the metric %s is left out: %s", name, error)


def _family(metric: Any, aggregate: str) -> Family:
    samples: list[list[Any]] = []
    for sample in metric.samples:
        if metric.type in SUMMED and sample.name == f"{metric.name}_created":
            # Each worker has a time of its own, and each series would be doubled.
            continue
        samples.append([sample.name, dict(sample.labels), as_value(float(sample.value))])
        if (exemplar := sample.exemplar) is not None:
            when = None if exemplar.timestamp is None else float(exemplar.timestamp)
            samples[-1].append([dict(exemplar.labels), as_value(float(exemplar.value)), when])
    names = {"name": metric.name, "type": metric.type, "help": metric.documentation, "unit": metric.unit}
    return {**names, "aggregate": aggregate, "samples": samples}


def _declared(registry: Any, name: str) -> str:
    """What a gauge declares by ``multiprocess_mode``; prometheus_client keeps that to itself."""
    collector = getattr(registry, "_names_to_collectors", {}).get(name)
    return _MODES.get(getattr(collector, "_multiprocess_mode", "all").removeprefix("live"), "each")
