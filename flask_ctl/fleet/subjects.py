"""The names of things at a NATS server: subjects, headers, buckets. Instances and operators agree on them.

A request to one instance goes to ``flask_ctl.ROLE.APP.INSTANCE``, where ROLE is what its sender may do: the permissions
of the server's accounts separate roles, and app from app. ``flask_ctl.observe.APP._all`` reaches all of an app.
"""

from __future__ import annotations

import hashlib
import re

from ..dispatch.commands import Role

PREFIX = "flask_ctl"

ALL = "_all"
"""In the place of an instance: every one."""

SERVICE = "flask-ctl"
"""The name of the micro service (ADR-32), the same for all instances of all apps."""

PRESENCE = "flask_ctl_presence"
"""The bucket with a record for each instance, renewed by it."""

LEASES = "flask_ctl_leases"
"""The bucket with the operators at work, by app."""

ROLLOUTS = "flask_ctl_rollouts"
"""The bucket with the records of rollouts."""

ID = "Flask-Ctl-Id"
"""Of a request: a command with an id that was seen is not run again."""

FENCE = "Flask-Ctl-Fence"
"""Of a request: the revision of the lease under which it is sent; a lower one than seen before is refused."""

LIFE = "Flask-Ctl-Life"
"""Of a request: the `life` of the presence that it is meant for; another one of the same name refuses it."""

USER = "Flask-Ctl-User"
"""Of a request: who sends it, as the sender says."""

INSTANCE = "Flask-Ctl-Instance"
"""Of an answer: the instance."""

PART = "Flask-Ctl-Part"
"""Of a message that is too long for the server: ``2/3``. The parts follow one another."""

KEEP = "Flask-Ctl-Keep"
"""Of a message without content: the caller still wants what comes at this reply subject."""

ERROR, ERROR_CODE = "Nats-Service-Error", "Nats-Service-Error-Code"
"""Of an answer that is an error: ADR-32."""

_OTHER = re.compile(r"[^A-Za-z0-9_-]")


def token(name: str) -> str:
    """The name as one token of a subject, and of a key: one with other characters gets a sum of its bytes, too."""
    text = _OTHER.sub("_", name)
    if text == name and name not in ("", ALL):
        return name
    return f"{text}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def subject_of(role: Role, app: str, instance: str) -> str:
    """Where an instance of an app receives the requests of senders with a role; `instance` may be ALL."""
    return f"{PREFIX}.{role}.{token(app)}.{instance if instance == ALL else token(instance)}"


def key_of(app: str, instance: str) -> str:
    """The key of the instance's presence."""
    return f"{token(app)}.{token(instance)}"
