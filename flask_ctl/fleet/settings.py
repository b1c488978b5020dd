"""Where the NATS servers are, what authenticates a client there, and what an app tells of itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigurationError

SCHEMES = ("nats", "tls", "ws", "wss")
MAX_LABELS = 32
MAX_LABEL = 256
"""Characters of a label's name, and of its value."""

PASSWORDS = "; in a user and a password /, @, : and , are written as %2F, %40, %3A and %2C"

_PORT = 4222


@dataclass(frozen=True)
class Broker:
    """NATS servers of one cluster, and what authenticates us there; paths are of files."""

    servers: list[str] = field(repr=False)
    """URLs, which may hold a user and a password."""
    credentials: str | None = None
    """With a JWT and an NKEY, as `nsc` writes it."""
    nkey: str | None = None
    """With the seed of an NKEY."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: str | None = None
    """With the certificates of authorities that the servers' certificates are checked by."""
    certificate: str | None = None
    """Our own certificate, and its key."""
    key: str | None = None
    inbox: str = "_INBOX"
    """The prefix of the subjects at which answers are received."""

    @property
    def wants_tls(self) -> bool:
        """Whether a server without TLS is refused."""
        secure = any(urlsplit(url).scheme in ("tls", "wss") for url in self.servers)
        return secure or self.ca is not None or self.certificate is not None

    def shown(self) -> list[str]:
        """The URLs without what is secret in them."""
        return [without_secret(url) for url in self.servers]


@dataclass(frozen=True)
class FleetSettings:
    """An app's CTL_FLEET and what belongs to it."""

    broker: Broker
    operate: bool = False
    """Whether inspecting and operating are allowed without TLS, or without authentication."""
    labels: dict[str, str] = field(default_factory=dict)


def fleet_from_config(setting: Callable[[str], Any]) -> FleetSettings | None:
    """The settings of an app; None without CTL_FLEET. Raises ConfigurationError that names the wrong one.

    `setting` gives the value of CTL_FLEET, CTL_FLEET_CREDENTIALS and so on, or None.
    """
    if not setting("CTL_FLEET"):
        return None
    operate = setting("CTL_FLEET_OPERATE")
    if not isinstance(operate, bool):
        raise ConfigurationError(f"CTL_FLEET_OPERATE has to be True or False, not {operate!r}")
    return FleetSettings(broker_from(setting, "CTL_FLEET"), operate, _labels(setting("CTL_FLEET_LABELS")))


def broker_from(setting: Callable[[str], Any], prefix: str) -> Broker:
    """The broker of the settings whose names begin with `prefix`. Raises ConfigurationError."""

    def text(name: str) -> str | None:
        value = setting(f"{prefix}_{name}")
        if value is None or (isinstance(value, str) and value):
            return value
        raise ConfigurationError(f"{prefix}_{name} has to be a text, not {type(value).__name__}")

    def path(name: str) -> str | None:
        value = text(name)
        return None if value is None else os.path.abspath(os.path.expanduser(value))

    if not setting(prefix):
        raise ConfigurationError(f"no address of NATS servers is given: name them by --nats or {prefix}")
    broker = Broker(
        servers_of(setting(prefix), prefix if prefix == "CTL_FLEET" else f"--nats or {prefix}"),
        path("CREDENTIALS"),
        path("NKEY"),
        text("USER"),
        text("PASSWORD"),
        path("CA"),
        path("CERTIFICATE"),
        path("KEY"),
        text("INBOX") or "_INBOX",
    )
    given = [name for name in ("credentials", "nkey", "user") if getattr(broker, name) is not None]
    if len(given) > 1:
        names = " and ".join(f"{prefix}_{name.upper()}" for name in given)
        raise ConfigurationError(f"{names} exclude each other: give one")
    if (broker.user is None) != (broker.password is None):
        raise ConfigurationError(f"{prefix}_USER and {prefix}_PASSWORD belong together")
    if (broker.certificate is None) != (broker.key is None):
        raise ConfigurationError(f"{prefix}_CERTIFICATE and {prefix}_KEY belong together")
    return broker


def servers_of(value: Any, name: str) -> list[str]:
    """The URLs in a text, where commas part them, or in a list. Raises ConfigurationError for anything else."""
    urls = value.split(",") if isinstance(value, str) else value
    if not isinstance(urls, (list, tuple)) or not all(isinstance(url, str) for url in urls) or not urls:
        raise ConfigurationError(f"{name} has to be a URL such as nats://broker:4222, or a list of them")
    try:
        return [_server(url.strip()) for url in urls]
    except ValueError:
        # A part of a wrong URL may be a part of a password.
        shown = "what it has" if any("@" in url for url in urls) else repr(urls[0] if len(urls) == 1 else list(urls))
        raise ConfigurationError(
            f"{name}: {shown} is no URL such as nats://broker:4222{PASSWORDS if '@' in str(value) else ''}"
        ) from None


def without_secret(url: str) -> str:
    """The URL without user and password, whatever is in them."""
    before, separator, after = url.rpartition("@")
    return (
        after if separator and "://" not in before else f"{before.partition('://')[0]}://{after}" if separator else url
    )


def _server(url: str) -> str:
    """The URL with scheme and port. Raises ValueError."""
    url = url if "://" in url else f"nats://{url}"
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname or parts.port == 0:
        raise ValueError
    if parts.query or parts.fragment or parts.path.strip("/"):
        raise ValueError
    if parts.port or parts.scheme in ("ws", "wss"):
        return url
    return parts._replace(netloc=f"{parts.netloc}:{_PORT}").geturl()


def _labels(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > MAX_LABELS:
        raise ConfigurationError(f'CTL_FLEET_LABELS has to be a dict such as {{"zone": "a"}}, of {MAX_LABELS} at most')
    for name, label in value.items():
        if not isinstance(name, str) or not isinstance(label, str) or not name or "=" in name:
            raise ConfigurationError(f"CTL_FLEET_LABELS: {name!r} and {label!r} have to be texts, the name without =")
        if max(len(name), len(label)) > MAX_LABEL:
            raise ConfigurationError(f"CTL_FLEET_LABELS: {name[:40]!r} is longer than {MAX_LABEL} characters")
    return dict(value)
