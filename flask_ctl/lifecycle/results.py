"""What the built-in commands answer, as JSON Schema (draft-07). Later servers may add members to it."""

from __future__ import annotations

from typing import Any

from ..dispatch.commands import ROLES
from ..dispatch.parameters import JSONSchema

STRING: JSONSchema = {"type": "string"}
INTEGER: JSONSchema = {"type": "integer"}
BOOLEAN: JSONSchema = {"type": "boolean"}
SECONDS: JSONSchema = {"type": "number", "minimum": 0}
COUNT: JSONSchema = {"type": "integer", "minimum": 0}
TIME: JSONSchema = {"type": "string", "format": "date-time"}
PEER: JSONSchema = {
    "type": "object",
    "description": "who asked: uid, gid, pid, key, signal, or via, account and user, as far as known",
}


def _or_null(schema: JSONSchema) -> JSONSchema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list_of(schema: JSONSchema) -> JSONSchema:
    return {"type": "array", "items": schema}


def _object(required: dict[str, JSONSchema], **optional: JSONSchema) -> JSONSchema:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


KIND_OF_REQUEST: dict[str, JSONSchema] = {"method": STRING, "route": _or_null(STRING)}

REQUESTS = {
    "in_flight": COUNT,
    "oldest": _or_null(SECONDS),
    "oldest_request": _or_null(_object(KIND_OF_REQUEST)),
    "total": COUNT,
    "errors": COUNT,
}

WORKER = _object(
    {"pid": INTEGER, "state": STRING, "generation": INTEGER, "rss": _or_null(COUNT), "last_seen": SECONDS, **REQUESTS},
)

CUT_REQUEST = _object({**KIND_OF_REQUEST, "age": SECONDS, "worker": INTEGER})

LAST_RELOAD = _object(
    {
        "ok": BOOLEAN,
        "at": TIME,
        "by": PEER,
        "elapsed": SECONDS,
        "generation": INTEGER,
        "error": _or_null(STRING),
        "cut": COUNT,
    },
    cut_requests=_list_of(CUT_REQUEST),
)

GENERATION = _object(
    {
        "generation": INTEGER,
        "outcome": {"enum": ["started", "reloaded", "failed"]},
        "at": TIME,
        "by": _or_null(PEER),
        "elapsed": _or_null(SECONDS),
        "error": _or_null(STRING),
        "cut": COUNT,
        "directory": STRING,
        "commit": _or_null(STRING),
    }
)

SUPERVISOR = _object(
    {
        "kind": {"enum": ["systemd", "supervisor", "runit", "pm2", "kubernetes", "container", "reloader"]},
        "restart": {"type": "string", "description": "the policy as far as the process knows it"},
    },
    unit=STRING,
    user=BOOLEAN,
    process=STRING,
    id=STRING,
    url=STRING,
    service=_or_null(STRING),
    pod=STRING,
)

STOPPING = _object(
    {
        "mode": STRING,
        "since": TIME,
        "deadline": _or_null(TIME),
        "by": PEER,
        "deadline_by": _or_null(PEER),
        "waiting_for": _list_of(STRING),
    }
)


REQUEST = _object(
    {**KIND_OF_REQUEST, "age": SECONDS, "worker": INTEGER},
    path=STRING,
    query=STRING,
    client=_or_null(STRING),
    id=_or_null(STRING),
    thread=_or_null(STRING),
    thread_id=_or_null(INTEGER),
    greenlet=_or_null(STRING),
)

EXCEPTION = _object(
    {
        "worker": INTEGER,
        "id": STRING,
        "type": STRING,
        "message": STRING,
        "count": COUNT,
        "first": TIME,
        "last": TIME,
        "origin": {"enum": ["request", "thread", "hook"]},
        "route": _or_null(STRING),
        "method": _or_null(STRING),
        "where": _or_null(STRING),
        "traceback": STRING,
    }
)
STREAM = _object({"subscription": INTEGER, "seq": COUNT, "epoch": STRING}, generation=INTEGER)

FRAME = _object({"file": STRING, "line": _or_null(INTEGER), "function": STRING, "source": _or_null(STRING)})

STACK = _object(
    {
        "worker": INTEGER,
        "thread": _or_null(STRING),
        "thread_id": _or_null(INTEGER),
        "greenlet": _or_null(STRING),
        "request": _or_null({"type": "object"}),
        "frames": _list_of(FRAME),
        "left_out": _or_null(_object({"after": COUNT, "frames": COUNT})),
        "note": STRING,
    }
)

UNANSWERED = _object({"worker": INTEGER, "error": STRING}, stuck={"type": "object"})

DRAIN = _object(
    {
        "state": STRING,
        "pid": INTEGER,
        "changed": BOOLEAN,
        "in_flight": COUNT,
        "failed_checks": COUNT,
        "hooks_run": COUNT,
        "hooks_failed": _list_of(STRING),
        "unanswered": _list_of(UNANSWERED),
    }
)

ONLY_IN = _list_of({**INTEGER, "description": "pids; missing if it is the same in every process"})

DESCRIPTION = _object(
    {
        "app": STRING,
        "pid": INTEGER,
        "directory": _or_null(_object({"path": STRING, "loaded": STRING, "now": STRING})),
        "commit": _or_null(STRING),
        "programs": _list_of(
            _object(
                {
                    "command": STRING,
                    "executable": STRING,
                    "python": STRING,
                    "virtual_environment": _or_null(STRING),
                    "flags": _list_of(STRING),
                },
                workers=ONLY_IN,
            )
        ),
        "settings": _list_of(
            _object(
                {"name": STRING, "value": {}, "origin": {"enum": ["default", "config", "environment", "argument"]}},
                workers=ONLY_IN,
            )
        ),
        "left_out": COUNT,
        "limits": _list_of(
            _object(
                {
                    "limit": {"enum": ["descriptors", "threads", "backlog", "memory"]},
                    "of": STRING,
                    "used": _or_null(COUNT),
                    "allowed": _or_null(COUNT),
                },
                worker=INTEGER,
            )
        ),
        "processes": _list_of(
            _object(
                {
                    "worker": INTEGER,
                    "memory": _object({"rss": _or_null(COUNT), "peak": _or_null(COUNT), "blocks": COUNT}),
                    "gc": _object(
                        {
                            "enabled": BOOLEAN,
                            "thresholds": _list_of(COUNT),
                            "counts": _list_of(COUNT),
                            "collections": _list_of(COUNT),
                            "collected": COUNT,
                            "uncollectable": COUNT,
                            "frozen": COUNT,
                        }
                    ),
                }
            )
        ),
        "unanswered": _list_of(UNANSWERED),
    }
)

ROUTE = _object(
    {"rule": STRING, "methods": _or_null(_list_of(STRING)), "endpoint": STRING, "host": _or_null(STRING)},
    workers=ONLY_IN,
)

FINDING = _object(
    {"check": STRING, "severity": {"enum": ["problem", "note"]}, "message": STRING, "remedy": STRING},
    workers=_list_of(INTEGER),
)

LOG_LEVELS = _object(
    {
        "loggers": _list_of(_object({"logger": STRING, "level": STRING, "note": STRING, "workers": _list_of(INTEGER)})),
        "leases": _list_of(_object({"logger": STRING, "level": STRING, "since": TIME, "until": TIME, "by": PEER})),
        "unanswered": _list_of(UNANSWERED),
    }
)

LOG_FILE = {"worker": INTEGER, "file": STRING}

REOPENED = _object(
    {
        "files": _list_of(_object(LOG_FILE)),
        "failed": _list_of(_object({**LOG_FILE, "error": STRING})),
        "unanswered": _list_of(UNANSWERED),
    }
)

SAMPLE: JSONSchema = {
    "type": "array",
    "description": "the sample's name, labels, value, and perhaps an exemplar (labels, value, Unix time or null)",
    "minItems": 3,
    "maxItems": 4,
}

METRICS = _object(
    {
        "families": _list_of(
            _object(
                {
                    "name": STRING,
                    "type": STRING,
                    "help": STRING,
                    "unit": STRING,
                    "aggregate": STRING,
                    "samples": _list_of(SAMPLE),
                }
            )
        ),
        "unanswered": _list_of(UNANSWERED),
    }
)

FLEET = _object(
    {
        "servers": _list_of(STRING),
        "instance": STRING,
        "account": _or_null(STRING),
        "roles": _list_of({"enum": list(ROLES)}),
        "problem": _or_null(STRING),
    }
)

RESULTS: dict[str, Any] = {
    "ping": _object({"pong": BOOLEAN, "protocol": INTEGER, "pid": INTEGER, "version": STRING}, hub=INTEGER),
    "status": _object(
        {
            "protocol": INTEGER,
            "pid": INTEGER,
            "parent": _or_null(INTEGER),
            "app": STRING,
            "cwd": STRING,
            "directory": STRING,
            "root_path": STRING,
            "state": {"enum": ["starting", "running", "draining", "reloading", "stopping"]},
            "generation": INTEGER,
            "started_at": TIME,
            "reloaded_at": _or_null(TIME),
            "uptime": SECONDS,
            "server": _object(
                {"name": STRING, "version": STRING, "listeners": _list_of(STRING)}, activated=_list_of(STRING)
            ),
            "requests": _object(REQUESTS),
            "process": {"type": "object"},
            "versions": {"type": "object", "additionalProperties": STRING},
            "workers": _list_of(WORKER),
            "last_reload": _or_null(LAST_RELOAD),
            "stopping": _or_null(STOPPING),
            "control": _object({"restarts": COUNT, "sockets": _list_of(STRING)}, hub=INTEGER),
        },
        workers_expected=COUNT,
        draining=_or_null(_object({"since": TIME, "by": PEER, "in_flight": COUNT, "failed_checks": COUNT})),
        supervisor=_or_null(SUPERVISOR),
        service_manager=_or_null(
            _object({"told_by": INTEGER, "is_main": _or_null(BOOLEAN), "watchdog": _or_null(SECONDS)})
        ),
        fleet=FLEET,
    ),
    "stop": _object(
        {
            "outcome": {"enum": ["drained", "forced"]},
            "drained": COUNT,
            "cut": COUNT,
            "elapsed": SECONDS,
            "pid": INTEGER,
            "embedded": BOOLEAN,
        },
        hooks={"const": "unfinished"},
        activated=_list_of(STRING),
        died=COUNT,
        cut_requests=_list_of(CUT_REQUEST),
        supervisor=_or_null(SUPERVISOR),
    ),
    "reload": _object(
        {"generation": INTEGER, "cut": COUNT, "elapsed": SECONDS, "pid": INTEGER, "directory": STRING},
        hooks={"const": "unfinished"},
        hooks_run=COUNT,
        cut_requests=_list_of(CUT_REQUEST),
        old_left=COUNT,
        threads_left=_list_of(STRING),
    ),
    "describe": DESCRIPTION,
    "routes": _object({"routes": _list_of(ROUTE), "left_out": COUNT, "unanswered": _list_of(UNANSWERED)}),
    "doctor": _object({"findings": _list_of(FINDING), "unanswered": _list_of(UNANSWERED)}),
    "log_level": LOG_LEVELS,
    "reopen_logs": REOPENED,
    "drain": DRAIN,
    "resume": DRAIN,
    "workers": _object(
        {
            "workers": _list_of(INTEGER),
            "started": _list_of(INTEGER),
            "ended": _list_of(INTEGER),
            "cut": COUNT,
            "elapsed": SECONDS,
        }
    ),
    "metrics": METRICS,
    "history": _object({"history": _list_of(GENERATION)}),
    "requests": _object({"requests": _list_of(REQUEST), "left_out": COUNT, "unanswered": _list_of(UNANSWERED)}),
    "events": STREAM,
    "logs": STREAM,
    "profile": _object({"subscription": INTEGER, "seq": COUNT}),
    "cancel": _object({"cancelled": BOOLEAN}),
    "exceptions": _object({"exceptions": _list_of(EXCEPTION), "unanswered": _list_of(UNANSWERED)}),
    "stacks": _object(
        {
            "stacks": _list_of(STACK),
            "left_out": COUNT,
            "notes": _list_of(STRING),
            "unanswered": _list_of(UNANSWERED),
        }
    ),
    "commands": {"type": "object", "additionalProperties": {"type": "object"}},
}
"""The schema of each command's result."""
