"""What the built-in commands answer, as JSON Schema (draft-07). Later servers may add members to it."""

from __future__ import annotations

from typing import Any

from ..dispatch.parameters import JSONSchema

STRING: JSONSchema = {"type": "string"}
INTEGER: JSONSchema = {"type": "integer"}
BOOLEAN: JSONSchema = {"type": "boolean"}
SECONDS: JSONSchema = {"type": "number", "minimum": 0}
COUNT: JSONSchema = {"type": "integer", "minimum": 0}
TIME: JSONSchema = {"type": "string", "format": "date-time"}
PEER: JSONSchema = {"type": "object", "description": "who asked: uid, gid, pid, key or signal, as far as known"}


def _or_null(schema: JSONSchema) -> JSONSchema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list_of(schema: JSONSchema) -> JSONSchema:
    return {"type": "array", "items": schema}


def _object(required: dict[str, JSONSchema], **optional: JSONSchema) -> JSONSchema:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


REQUESTS = {"in_flight": COUNT, "oldest": _or_null(SECONDS), "total": COUNT, "errors": COUNT}

WORKER = _object(
    {"pid": INTEGER, "state": STRING, "generation": INTEGER, "rss": _or_null(COUNT), "last_seen": SECONDS, **REQUESTS},
)

LAST_RELOAD = _object(
    {
        "ok": BOOLEAN,
        "at": TIME,
        "by": PEER,
        "elapsed": SECONDS,
        "generation": INTEGER,
        "error": _or_null(STRING),
        "cut": COUNT,
    }
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
            "state": {"enum": ["starting", "running", "reloading", "stopping"]},
            "generation": INTEGER,
            "started_at": TIME,
            "reloaded_at": _or_null(TIME),
            "uptime": SECONDS,
            "server": _object({"name": STRING, "version": STRING, "listeners": _list_of(STRING)}),
            "requests": _object(REQUESTS),
            "process": {"type": "object"},
            "versions": {"type": "object", "additionalProperties": STRING},
            "workers": _list_of(WORKER),
            "last_reload": _or_null(LAST_RELOAD),
            "stopping": _or_null(STOPPING),
            "control": _object({"restarts": COUNT, "sockets": _list_of(STRING)}, hub=INTEGER),
        },
        workers_expected=COUNT,
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
        died=COUNT,
    ),
    "reload": _object(
        {"generation": INTEGER, "cut": COUNT, "elapsed": SECONDS, "pid": INTEGER, "directory": STRING},
        hooks={"const": "unfinished"},
        hooks_run=COUNT,
        old_left=COUNT,
        threads_left=_list_of(STRING),
    ),
    "commands": {"type": "object", "additionalProperties": {"type": "object"}},
}
"""The schema of each command's result."""
