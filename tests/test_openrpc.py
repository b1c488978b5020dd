"""`rpc.discover`: the OpenRPC document of a server describes what the server does."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from harness import PYTHON, Server, first_quick, run_cli
from servers import SERVERS

from flask_ctl.dispatch.commands import CommandRegistry, command_from
from flask_ctl.dispatch.openrpc import DISCOVER, describe
from flask_ctl.dispatch.parameters import JSONSchema, result_schema
from flask_ctl.lifecycle.results import RESULTS

CONTENT: JSONSchema = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "required": {"type": "boolean"},
        "schema": {"type": ["object", "boolean"]},
    },
    "required": ["name", "schema"],
    "additionalProperties": False,
}
OPENRPC: JSONSchema = {
    "type": "object",
    "properties": {
        "openrpc": {"const": "1.3.2"},
        "info": {
            "type": "object",
            "properties": {"title": {"type": "string"}, "version": {"type": "string"}},
            "required": ["title", "version"],
            "additionalProperties": False,
        },
        "methods": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "summary": {"type": "string"},
                    "paramStructure": {"enum": ["by-position", "by-name", "either"]},
                    "params": {"type": "array", "items": CONTENT},
                    "result": CONTENT,
                },
                "patternProperties": {"^x-": {}},
                "required": ["name", "params", "result"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["openrpc", "info", "methods"],
    "additionalProperties": False,
}
"""What the specification requires of the members that we use."""


def greet(name: str, times: int = 1) -> str:
    """Greet NAME."""
    return f"hello {name}" * times


def documented(server: Server) -> dict[str, Any]:
    """The methods of a server's document by name; the document is valid."""
    document = server.call(DISCOVER)
    jsonschema.validate(document, OPENRPC)
    for method in document["methods"]:
        for content in [*method["params"], method["result"]]:
            jsonschema.Draft7Validator.check_schema(content["schema"])
    return {method["name"]: method for method in document["methods"]}


def test_a_method_has_the_parameters_of_its_function_and_their_defaults() -> None:
    document = describe("shop", "1.0", CommandRegistry([command_from(greet, role="observe")]))
    jsonschema.validate(document, OPENRPC)
    assert document["info"] == {"title": "shop", "version": "1.0"}
    assert document["methods"] == [
        {
            "name": "greet",
            "summary": "Greet NAME.",
            "paramStructure": "either",
            "params": [
                {"name": "name", "required": True, "schema": {"type": "string"}},
                {"name": "times", "required": False, "schema": {"type": "integer", "default": 1}},
            ],
            "result": {"name": "result", "schema": {"type": "string"}},
            "x-role": "observe",
            "x-scope": "each",
        }
    ]


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (None, {"type": "null"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (dict[str, Any], {"type": "object"}),
        (dict, {"type": "object"}),
        (list, {"type": "array"}),
        (tuple[int, str], {"type": "array"}),
        (Any, {}),
        (Server, {}),
    ],
)
def test_a_return_annotation_is_json_schema_as_far_as_it_says_something(annotation: Any, schema: JSONSchema) -> None:
    assert result_schema(annotation) == schema


@pytest.mark.parametrize("name", first_quick(["gunicorn sync", "werkzeug"]))
def test_every_answer_of_a_server_is_what_its_document_says(start: Any, name: str) -> None:
    server = start(SERVERS[name])
    methods = documented(server)
    assert set(methods) >= set(RESULTS) | {"greet"}
    assert DISCOVER not in methods
    answers = {
        "ping": server.call("ping"),
        "commands": server.call("commands"),
        "greet": server.call("greet", name="ann"),
        "reload": server.reload(),
        "status": server.status(),
    }
    with server.client() as client:
        answers["stop"] = client.call("stop")
    for method, answer in answers.items():
        jsonschema.validate(answer, methods[method]["result"]["schema"])


def test_the_document_is_for_people_too(serve: Any) -> None:
    server = serve(command=[*PYTHON, "-c", "import sample; sample.app.run(port=0)"])
    assert json.loads(run_cli("call", DISCOVER, "-s", server.socket).stdout)["openrpc"] == "1.3.2"
