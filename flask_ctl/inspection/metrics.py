"""Metrics as families of samples, and how those of several processes become one answer.

A family is a JSON object: ``name``, ``type`` (as OpenMetrics has it), ``help``, ``unit``, ``aggregate`` (how the values
of a gauge become one, see AGGREGATES) and ``samples``: lists of the sample's name, its labels, its value, and perhaps
an exemplar (labels, value, Unix time). Values that JSON lacks are the texts ``NaN``, ``+Inf`` and ``-Inf``.
"""

from __future__ import annotations

import base64
import json
import math
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..servers.middleware import BOUNDS, RequestCounter

Family = dict[str, Any]
Sample = list[Any]
Labels = tuple[tuple[str, str], ...]

PREFIX = "flask_ctl_"
"""Begins the names of our own families, and of no others."""

TYPES = frozenset(["counter", "gauge", "histogram", "summary", "info", "stateset", "gaugehistogram", "unknown"])

LEFT_OUT = "flask_ctl_samples_left_out"

PROCESSOR_TIME = "flask_ctl_process_cpu_seconds"

SUMMED = frozenset(["counter", "histogram", "summary"])
"""Types whose values stay when a process has ended."""

AGGREGATES = ("each", "sum", "max", "min", "last")
"""The values of a gauge: that of each worker with the label ``worker``, or one; ``last`` is of the newest worker."""

MAX_SAMPLES = 20_000
"""Samples of one process, and of all that have ended; others are left out and counted."""

MAX_PACKED = 768 * 1024
"""Characters of the samples of one process as `pack` writes them, so that they fit into one message."""

MAX_UNPACKED = 32 * 1024 * 1024
"""Bytes of JSON that are unpacked at most."""


def family(
    name: str, type: str, help: str, samples: Iterable[Sample], unit: str = "", aggregate: str = "each"
) -> Family:
    """A family whose samples have suffixes for names: ``_total``, ``_bucket`` or none."""
    named = [[name + suffix, labels, value] for suffix, labels, value in samples]
    return {"name": name, "type": type, "help": help, "unit": unit, "aggregate": aggregate, "samples": named}


def own_families(requests: RequestCounter) -> list[Family]:
    """What this process has counted for one app."""
    begun, failed = (total - before for total, before in zip(requests.totals(), requests.carried))
    families = [
        family("flask_ctl_requests_begun", "counter", "Requests that have begun.", [["_total", {}, begun]]),
        family(
            "flask_ctl_request_errors",
            "counter",
            "Requests that ended with a status of 500 or more, or with an exception.",
            [["_total", {}, failed]],
        ),
        family(
            "flask_ctl_requests_aborted",
            "counter",
            "Requests that the server itself ended before they were answered.",
            [["_total", {}, requests.aborted()]],
        ),
        family("flask_ctl_requests_in_flight", "gauge", "Requests in flight.", [["", {}, requests.in_flight]]),
        family(
            PROCESSOR_TIME,
            "counter",
            "Processor time of the serving processes, ended ones included.",
            [["_total", {}, time.process_time()]],
            unit="seconds",
        ),
    ]
    if requests.durations is None:
        return families
    ended = sorted(requests.durations.read().items())
    by_method: dict[str, list[float]] = {}
    for (method, _), row in ended:
        by_method[method] = [a + b for a, b in zip(by_method[method], row)] if method in by_method else row
    return [
        family(
            "flask_ctl_requests",
            "counter",
            "Requests that have ended, by method and class of status.",
            [["_total", {"method": method, "status": status}, sum(row[1:])] for (method, status), row in ended],
        ),
        family(
            "flask_ctl_request_duration_seconds",
            "histogram",
            "Time from the call of the app to the end of the response, by method.",
            [sample for method, row in by_method.items() for sample in _histogram({"method": method}, row)],
            unit="seconds",
        ),
        *families,
    ]


def _histogram(labels: dict[str, str], row: list[Any]) -> Iterator[Sample]:
    count = 0
    for bound, number in zip([*map(str, BOUNDS), "+Inf"], row[1:]):
        count += number
        yield ["_bucket", {**labels, "le": bound}, count]
    yield ["_count", labels, count]
    yield ["_sum", labels, row[0]]


def number_of(value: Any) -> float:
    """A value as a number; texts are those of the module's docstring. Raises ValueError, TypeError."""
    return float(value) if isinstance(value, str) else value + 0


def as_value(number: float) -> float | str:
    """A number as JSON has it."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "+Inf" if number > 0 else "-Inf"


def pack(families: Iterable[Family], max_samples: float | None = None) -> str:
    """The families as text, which is a twentieth of their JSON; the last ones are left out where there are too many.

    Too many samples are more than `max_samples`, by default MAX_SAMPLES.
    """
    fitting, left_out = [], 0
    room = MAX_SAMPLES if max_samples is None else max_samples
    for one in families:
        if len(one["samples"]) <= room:
            fitting.append(one)
            room -= len(one["samples"])
        else:
            left_out += len(one["samples"])
    text, number = "", len(fitting)
    fits, most = -1, number + 1
    while most - fits > 1:
        document = {
            "families": fitting[:number],
            "left_out": left_out + sum(len(one["samples"]) for one in fitting[number:]),
        }
        plain = json.dumps(document).encode()
        tried = base64.b85encode(zlib.compress(plain, 1)).decode()
        if len(tried) <= MAX_PACKED and len(plain) <= MAX_UNPACKED:
            fits, text = number, tried
        else:
            most = number
        # By halves, as each try takes long.
        number = (fits + most) // 2
    return text


class Unpacked(NamedTuple):
    """What a process has sent: its families, and the number of samples that it has left out."""

    families: list[Family]
    left_out: int


def unpack(text: str) -> Unpacked:
    """What `pack` has packed. Raises ValueError if it is malformed: another process has sent it."""
    if not text:
        return Unpacked([], 0)
    try:
        inflater = zlib.decompressobj()
        document = json.loads(inflater.decompress(base64.b85decode(text), MAX_UNPACKED))
        families, left_out = document["families"], document["left_out"]
        for one in families:
            check(one)
        return Unpacked(families, int(left_out))
    except (zlib.error, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"these are no metrics: {error}") from None


def check(one: Family) -> None:
    """Raises ValueError, TypeError, LookupError, AttributeError or ArithmeticError for a malformed family."""
    texts = [one[name] for name in ("name", "type", "help", "unit", "aggregate")]
    if not all(type(text) is str for text in texts) or one["type"] not in TYPES or one["aggregate"] not in AGGREGATES:
        raise ValueError("a family is malformed")
    for name, labels, value, *exemplar in one["samples"]:
        if type(name) is not str or not _is_value(value) or not _are_labels(labels):
            raise ValueError(f"a sample of {one['name']} is malformed")
        if exemplar and exemplar[0] is not None:
            of, at, when = exemplar[0]
            if not _is_value(at) or not _are_labels(of) or not (when is None or math.isfinite(when)):
                raise ValueError(f"an exemplar of {one['name']} is malformed")


def _is_value(value: Any) -> bool:
    """Whether JSON has it. Raises like `check` if it is no number."""
    return math.isfinite(number_of(value)) or type(value) is str


def _are_labels(labels: Mapping[Any, Any]) -> bool:
    return all(type(text) is str for item in labels.items() for text in item)


class Part(NamedTuple):
    """What one process adds to an answer: the `worker` is its stable number, "" for a process that serves by itself."""

    worker: str
    generation: int
    families: list[Family]


class _Group:
    """The samples of one label set of a counter, a histogram or a summary, added up."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.values: dict[tuple[str, Labels], float] = {}
        self.exemplars: dict[tuple[str, Labels], list[Any]] = {}

    def copy(self) -> _Group:
        copy = _Group(self.generation)
        copy.values, copy.exemplars = self.values.copy(), self.exemplars.copy()
        return copy

    def add(self, name: str, labels: Labels, value: float, exemplar: list[Any] | None) -> None:
        key = name, labels
        self.values[key] = self.values.get(key, 0) + value
        if exemplar is not None and (exemplar[2] or 0) >= (self.exemplars.get(key, [{}, 0, 0])[2] or 0):
            self.exemplars[key] = exemplar


Variant = tuple[Labels, tuple[str, ...]]
"""A label set, and the bounds of its buckets: code of two generations may have other ones."""


class _Sums:
    """One family of a type in SUMMED."""

    def __init__(self, head: Family) -> None:
        self.head = head
        self.groups: dict[Variant, _Group] = {}

    @property
    def size(self) -> int:
        return sum(len(group.values) for group in self.groups.values())

    def samples(self) -> Iterator[Sample]:
        """Those of a label set together, their buckets in order (OpenMetrics)."""
        sets = [labels for labels, _ in self.groups]
        several = len(set(sets)) < len(sets)
        first = {labels: place for place, labels in reversed(list(enumerate(sets)))}
        # A worker that was started by a signal has other code in the same generation.
        used: Counter[tuple[Labels, int]] = Counter()
        for (group_labels, _), group in sorted(self.groups.items(), key=lambda item: first[item[0][0]]):
            used[group_labels, group.generation] += 1
            name = f"{PREFIX}generation" if "generation" in dict(group_labels) else "generation"
            nth = used[group_labels, group.generation]
            more = {name: f"{group.generation}.{nth}" if nth > 1 else str(group.generation)} if several else {}
            for key, value in sorted(group.values.items(), key=_place):
                name, labels = key
                sample = [name, {**dict(labels), **more}, as_value(value)]
                yield [*sample, group.exemplars[key]] if key in group.exemplars else sample


class Totals:
    """Counters, histograms and summaries of some processes, added up. They never decrease."""

    def __init__(self) -> None:
        self._families: dict[str, _Sums] = {}
        self.left_out = 0
        """Samples for which there was no room."""

    def add(self, families: Iterable[Family], generation: int) -> None:
        """Add what a process of that generation of the code has counted. Raises ValueError for a malformed value."""
        room = MAX_SAMPLES - sum(sums.size for sums in self._families.values())
        for one in families:
            if one["type"] not in SUMMED:
                continue
            sums = self._families.get(one["name"])
            if sums is None or sums.head["type"] != one["type"]:
                # In the newer code the name means another thing.
                sums = self._families[one["name"]] = _Sums({**one, "samples": []})
            variants = _variants(one["samples"])
            for name, labels, value, *exemplar in one["samples"]:
                if "quantile" in labels:
                    # Those of several processes have no sum.
                    continue
                variant = variants[_group_labels(labels)]
                if variant not in sums.groups:
                    if room <= 0:
                        self.left_out += 1
                        continue
                    sums.groups[variant] = _Group(generation)
                group = sums.groups[variant]
                group.generation = min(group.generation, generation)
                before = len(group.values)
                group.add(name, tuple(sorted(labels.items())), number_of(value), exemplar[0] if exemplar else None)
                room -= len(group.values) - before

    def copy(self) -> Totals:
        """Other totals with what has been added up to now."""
        copy = Totals()
        copy.left_out = self.left_out
        for name, sums in self._families.items():
            copy._families[name] = _Sums(sums.head)
            copy._families[name].groups = {variant: group.copy() for variant, group in sums.groups.items()}
        return copy

    def export(self) -> Iterator[tuple[Family, int]]:
        """Families to `add` again, each of one generation."""
        for sums in self._families.values():
            by_generation: dict[int, list[Sample]] = {}
            for group in sums.groups.values():
                samples = by_generation.setdefault(group.generation, [])
                for key, value in group.values.items():
                    sample = [key[0], dict(key[1]), as_value(value)]
                    samples.append([*sample, group.exemplars[key]] if key in group.exemplars else sample)
            for generation, samples in sorted(by_generation.items()):
                yield {**sums.head, "samples": samples}, generation

    def pack(self) -> str:
        """As `pack`, for another process that goes on."""
        return pack({**one, "generation": generation} for one, generation in self.export())

    @classmethod
    def unpacked(cls, text: str) -> Totals:
        """What `pack` has packed. Raises ValueError if it is malformed."""
        totals = cls()
        families, totals.left_out = unpack(text)
        for one in families:
            generation = one.pop("generation", 1)
            totals.add([one], generation if type(generation) is int else 1)
        return totals

    def families(self) -> Iterator[Family]:
        """The families with their sums."""
        for sums in self._families.values():
            yield {**sums.head, "samples": list(sums.samples())}


def merged(past: Totals, parts: Iterable[Part]) -> list[Family]:
    """The families of the processes that serve, the oldest first, with the totals of those that have ended."""
    sums, others = past.copy(), dict[str, Family]()
    for part in parts:
        sums.add(part.families, part.generation)
        for one in part.families:
            if one["type"] not in SUMMED:
                _add_state(others, one, part.worker)
    summed = {one["name"]: one for one in sums.families()}
    # A name that is a gauge in the newest code, and was a counter, is what it is now.
    return [*(one for name, one in summed.items() if name not in others), *map(_in_order, others.values())]


def _add_state(families: dict[str, Family], one: Family, worker: str) -> None:
    """Add what is true of one process at this moment."""
    known = families.get(one["name"])
    if known is None or known["type"] != one["type"]:
        known = families[one["name"]] = {**one, "samples": []}
    rule: str = {"info": "last", "stateset": "max", "gaugehistogram": "sum"}.get(one["type"]) or one["aggregate"]
    if rule == "each":
        known["samples"] += [[name, _labelled(labels, worker), *rest] for name, labels, *rest in one["samples"]]
        return
    samples = {(sample[0], tuple(sorted(sample[1].items()))): sample for sample in known["samples"]}
    for sample in one["samples"]:
        key = sample[0], tuple(sorted(sample[1].items()))
        if key in samples and rule != "last":
            values = number_of(samples[key][2]), number_of(sample[2])
            value = sum(values) if rule == "sum" else max(values) if rule == "max" else min(values)
            sample = [sample[0], sample[1], as_value(value), *sample[3:]]
        samples[key] = sample
    known["samples"] = list(samples.values())


def _labelled(labels: Mapping[str, str], worker: str) -> dict[str, str]:
    if not worker:
        return dict(labels)
    return {**labels, "flask_ctl_worker" if "worker" in labels else "worker": worker}


def _in_order(one: Family) -> Family:
    """The samples of a label set together, as OpenMetrics wants it; the order is else that of the processes."""
    groups: dict[Labels, list[Sample]] = {}
    for sample in one["samples"]:
        groups.setdefault(_group_labels(sample[1], one["name"] if one["type"] == "stateset" else ""), []).append(sample)
    return {**one, "samples": [sample for group in groups.values() for sample in group]}


def _group_labels(labels: Mapping[str, str], state: str = "") -> Labels:
    return tuple(sorted((name, value) for name, value in labels.items() if name not in ("le", "quantile", state)))


def _variants(samples: Iterable[Sample]) -> dict[Labels, Variant]:
    bounds: dict[Labels, list[str]] = {}
    for _, labels, *_ in samples:
        found = bounds.setdefault(_group_labels(labels), [])
        if "le" in labels:
            found.append(labels["le"])
    return {labels: (labels, tuple(sorted(found))) for labels, found in bounds.items()}


def _place(item: tuple[tuple[str, Labels], float]) -> tuple[bool, float]:
    bound = dict(item[0][1]).get("le")
    try:
        return bound is None, 0.0 if bound is None else float(bound)
    except ValueError:
        return bound is None, math.inf
