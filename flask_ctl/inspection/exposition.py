"""Families of metrics as text for Prometheus, by prometheus_client (the extra ``metrics``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import ConfigurationError
from .metrics import Family, number_of

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def exposition(families: Iterable[Mapping[str, Any]], accept: str = "") -> tuple[bytes, str]:
    """The text for the families of ``ControlClient.metrics()``, and its Content-Type.

    OpenMetrics 1.0 if a client with that header Accept prefers it, else the text format of Prometheus. Raises
    ConfigurationError without prometheus_client.
    """
    try:
        # Takes 60 ms: only who shows metrics loads it.
        import prometheus_client.exposition
        import prometheus_client.openmetrics.exposition
    except ImportError:
        raise ConfigurationError(
            "metrics are shown by prometheus_client, which is not installed: pip install 'flask-ctl[metrics]'"
        ) from None
    registry: Any = _Registry(families)
    if prefers_openmetrics(accept):
        encode: Any = prometheus_client.openmetrics.exposition.generate_latest
        return encode(registry), OPENMETRICS
    return prometheus_client.exposition.generate_latest(registry), TEXT


def prefers_openmetrics(accept: str) -> bool:
    """Whether a header Accept prefers OpenMetrics 1.0 to plain text (RFC 9110, section 12.5.1)."""
    openmetrics = plain = 0.0
    specific = False
    for item in accept.split(","):
        kind, *parameters = (part.strip() for part in item.lower().split(";"))
        given = dict(part.partition("=")[::2] for part in parameters)
        quality = _quality(given.get("q", "1"))
        version = given.get("version", "").strip('"')
        if kind == "application/openmetrics-text" and version in ("", "1.0.0"):
            openmetrics = max(openmetrics, quality)
        elif kind == "text/plain" and version in ("", "0.0.4"):
            plain, specific = max(plain, quality), True
        elif kind in ("*/*", "text/*") and not specific:
            plain = max(plain, quality)
    return openmetrics > 0 and openmetrics >= plain


def _quality(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


class _Registry:
    """Has the families as prometheus_client's own objects."""

    def __init__(self, families: Iterable[Mapping[str, Any]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Any]:
        from prometheus_client.metrics_core import Metric
        from prometheus_client.samples import Exemplar

        for family in self._families:
            metric = Metric(family["name"], family["help"], family["type"], _unit(family))
            for name, labels, value, *exemplar in family["samples"]:
                shown = Exemplar(exemplar[0][0], number_of(exemplar[0][1]), exemplar[0][2]) if exemplar else None
                metric.add_sample(name, labels, number_of(value), exemplar=shown)
            yield metric


def _unit(family: Mapping[str, Any] | Family) -> str:
    """The unit; one that the name does not end in would be added to it, and not to the samples."""
    unit: str = family["unit"]
    return unit if family["name"].endswith(f"_{unit}") else ""
