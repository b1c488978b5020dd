"""Commands from functions: names, parameters, and how a call's parameters find them."""

from __future__ import annotations

import enum
import math
from typing import Annotated, Any, Literal, Optional

import pytest

from flask_ctl import CommandError
from flask_ctl.dispatch.commands import (
    RESERVED_COMMANDS,
    RESERVED_PARAMETERS,
    CommandRegistry,
    Impact,
    command_from,
    invalid_parameter,
)
from flask_ctl.dispatch.replies import Call


class Colour(enum.Enum):
    RED = "red"


def clear(prefix: str, limit: int = 10, *, dry: bool = False, colour: Optional[Colour] = None) -> dict[str, Any]:
    """Forget what the cache holds.

    More than the first line is not shown.
    """
    return {}


def nothing() -> None: ...


CLEAR = command_from(clear)
NOTHING = command_from(nothing)


def test_a_function_gives_its_name_and_the_first_line_of_its_docstring() -> None:
    assert (CLEAR.name, CLEAR.summary, CLEAR.role, CLEAR.scope) == (
        "clear",
        "Forget what the cache holds.",
        "operate",
        "each",
    )
    assert NOTHING.summary == ""


def test_a_command_describes_its_parameters_as_json_schema() -> None:
    assert CLEAR.describe() == {
        "summary": "Forget what the cache holds.",
        "role": "operate",
        "impact": "low",
        "impact_note": "",
        "scope": "each",
        "parameters": {
            "type": "object",
            "properties": {
                "prefix": {"type": "string"},
                "limit": {"type": "integer", "default": 10},
                "dry": {"type": "boolean", "default": False},
                "colour": {"anyOf": [{"enum": ["red"]}, {"type": "null"}], "default": None},
            },
            "required": ["prefix"],
            "additionalProperties": False,
        },
        "result": {"type": "object"},
    }


@pytest.mark.parametrize(
    ("default", "shown"),
    [(1.5, {"default": 1.5}), (Colour.RED, {"default": "red"}), (math.inf, {}), (object(), {})],
    ids=["a number", "a member of an Enum", "infinity", "an object"],
)
def test_a_default_is_shown_if_it_is_json(default: Any, shown: dict[str, Any]) -> None:
    def command(value: Colour = default) -> None: ...

    schema = command_from(command).describe()["parameters"]
    assert schema["properties"]["value"] == {"enum": ["red"], **shown}
    assert schema["required"] == []


def test_name_role_and_scope_can_be_given() -> None:
    command = command_from(nothing, name="other", role="observe", scope="one")
    assert (command.name, command.role, command.scope) == ("other", "observe", "one")


@pytest.mark.parametrize("name", ["class", "Ä", "x1", "clear_cache"])
def test_any_identifier_can_be_a_name(name: str) -> None:
    assert command_from(nothing, name=name).name == name


@pytest.mark.parametrize("name", ["_hidden", "__call__", "clear-cache", "a b", "1st", "a.b", "a\n", "{", "="])
def test_what_is_no_public_identifier_can_not_be_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="can't be a command"):
        command_from(nothing, name=name)


@pytest.mark.parametrize("name", sorted(RESERVED_COMMANDS))
def test_a_name_that_the_command_line_needs_is_reserved_but_for_the_built_in_commands(name: str) -> None:
    def builtin(call: Call) -> None: ...

    with pytest.raises(ValueError, match=f"{name!r} is reserved"):
        command_from(nothing, name=name)
    assert command_from(builtin, name=name, builtin=True).name == name


def test_the_names_of_the_contract_are_reserved() -> None:
    contract = "run ping status stop reload call commands requests stacks exceptions logs events describe routes"
    contract += " profile metrics top ls wait restart workers drain resume log_level reopen_logs doctor history shell"
    contract += " help supervisor pause undo rollout fleet keygen config memory cancel health progress"
    assert set(contract.split()) <= RESERVED_COMMANDS
    assert {"socket", "timeout", "json", "quiet", "help"} == RESERVED_PARAMETERS


@pytest.mark.parametrize("name", [*sorted(RESERVED_PARAMETERS), "_progress", "_", "__x"])
def test_a_reserved_parameter_is_a_value_error(name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def command({name}: str): ...", namespace)
    with pytest.raises(ValueError, match=f"parameter name {name!r} is reserved"):
        command_from(namespace["command"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"role": "admin"}, "role is observe, inspect or operate, not 'admin'"),
        ({"role": None}, "role is observe, inspect or operate, not None"),
        ({"scope": "all"}, "scope is each or one, not 'all'"),
        ({"impact": Impact("huge")}, "impact is low, medium or high, not 'huge'"),  # type: ignore[arg-type]
    ],
)
def test_another_role_scope_or_impact_is_a_value_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"nothing: {message}"):
        command_from(nothing, **given)


def test_a_command_tells_its_impact() -> None:
    described = command_from(nothing, impact=Impact("high", "it empties the cache")).describe()
    assert (described["impact"], described["impact_note"]) == ("high", "it empties the cache")


def test_a_parameter_needs_an_annotation() -> None:
    def command(a: int, b) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(TypeError, match="the parameter 'b' needs an annotation"):
        command_from(command)


@pytest.mark.parametrize(
    "signature", ["*args: int", "**options: int", "a: int, *args: int", "a: int, /", "*, a: int, **more: int"]
)
def test_a_parameter_needs_a_name(signature: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def command({signature}): ...", namespace)
    with pytest.raises(TypeError, match="has to have a name"):
        command_from(namespace["command"])


@pytest.mark.parametrize(
    "annotation", ["bytes", "dict", "int | str", "Nowhere", "enum.Nothing", "int |", "'int |'", "1"]
)
def test_an_annotation_that_is_not_understood_is_a_type_error_at_registration(annotation: str) -> None:
    namespace: dict[str, Any] = {"enum": enum}
    exec(
        f"from __future__ import annotations\ndef command(a): ...\ncommand.__annotations__['a'] = {annotation!r}",
        namespace,
    )
    with pytest.raises(TypeError):
        command_from(namespace["command"])


def test_what_annotated_adds_to_a_type_is_ignored() -> None:
    def command(a: Annotated[int, ["unhashable"]]) -> None: ...

    assert command_from(command).bind([1]) == {"a": 1}


def test_a_method_and_a_coroutine_function_can_be_commands() -> None:
    class Cache:
        def clear(self, prefix: str) -> None: ...

        async def fill(self, size: int) -> None: ...

    assert command_from(Cache().clear).bind(["x"]) == {"prefix": "x"}
    assert command_from(Cache().fill).bind([1]) == {"size": 1}


BOUND: dict[str, tuple[Any, dict[str, Any]]] = {
    "by name": ({"prefix": "a"}, {"prefix": "a"}),
    "by name, in any order": ({"dry": True, "prefix": "a", "limit": 1}, {"prefix": "a", "limit": 1, "dry": True}),
    "by position": (["a"], {"prefix": "a"}),
    "by position, keyword-only ones too": (["a", 1, True], {"prefix": "a", "limit": 1, "dry": True}),
    "null where it is allowed": ({"prefix": "a", "colour": None}, {"prefix": "a", "colour": None}),
    "an enum": ({"prefix": "a", "colour": "red"}, {"prefix": "a", "colour": Colour.RED}),
}


@pytest.mark.parametrize(("params", "arguments"), BOUND.values(), ids=BOUND)
def test_parameters_become_keyword_arguments(params: Any, arguments: dict[str, Any]) -> None:
    assert CLEAR.bind(params) == arguments


UNBOUND: dict[str, tuple[Any, str, str]] = {
    "a missing one": ({}, "prefix", "prefix: is missing"),
    "a missing one by position": ([], "prefix", "prefix: is missing"),
    "an unknown one": ({"prefix": "a", "x": 1}, "x", "x: clear has no such parameter"),
    "a misspelt one": ({"prefix": "a", "Limit": 1}, "Limit", "it has: prefix, limit, dry, colour"),
    "a wrong type": ({"prefix": 1}, "prefix", "prefix: must be a string, not an integer"),
    "a wrong type by position": (["a", "b"], "limit", "limit: must be an integer, not a string"),
    "null where it is not allowed": ({"prefix": None}, "prefix", "prefix: must be a string, not null"),
    "no choice": ({"prefix": "a", "colour": "blue"}, "colour", "colour: must be one of red"),
    "an empty name": ({"prefix": "a", "": 1}, "", "clear has no such parameter"),
}


@pytest.mark.parametrize(("params", "parameter", "message"), UNBOUND.values(), ids=UNBOUND)
def test_parameters_that_do_not_fit_are_32602_and_name_the_parameter(params: Any, parameter: str, message: str) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        CLEAR.bind(params)
    assert (caught.value.code, caught.value.data) == (-32602, {"parameter": parameter})


def test_too_many_positional_parameters_are_32602() -> None:
    with pytest.raises(CommandError, match="clear takes at most 4 parameters") as caught:
        CLEAR.bind(["a", 1, True, None, 5])
    assert caught.value.code == -32602


def test_a_command_without_parameters_says_so() -> None:
    with pytest.raises(CommandError, match="nothing has no such parameter; it has: none"):
        NOTHING.bind({"x": 1})


def test_the_name_of_an_unknown_parameter_is_cut_in_the_message() -> None:
    with pytest.raises(CommandError) as caught:
        NOTHING.bind({"x" * 1_000_000: 1})
    assert len(caught.value.message) < 200
    assert caught.value.data == {"parameter": "x" * 80}


def test_typed_parameters_are_read_by_their_types() -> None:
    texts = {"prefix": "1", "limit": "5", "dry": "yes", "colour": "red"}
    assert CLEAR.bind_text(texts) == {"prefix": "1", "limit": 5, "dry": True, "colour": Colour.RED}


@pytest.mark.parametrize(
    ("texts", "parameter"),
    [({}, "prefix"), ({"prefix": "a", "limit": "x"}, "limit"), ({"prefix": "a", "_progress": "1"}, "_progress")],
    ids=["missing", "not a number", "unknown"],
)
def test_typed_parameters_that_do_not_fit_are_32602_too(texts: dict[str, str], parameter: str) -> None:
    with pytest.raises(CommandError) as caught:
        CLEAR.bind_text(texts)
    assert (caught.value.code, caught.value.data) == (-32602, {"parameter": parameter})


def test_invalid_parameter_is_the_error_that_commands_raise_themselves() -> None:
    error = invalid_parameter("grace", "must be 0 or more seconds")
    assert (error.code, error.message) == (-32602, "grace: must be 0 or more seconds")
    assert error.data == {"parameter": "grace"}


def test_a_builtin_command_takes_the_call_before_its_parameters() -> None:
    def ping(call: Call, text: Literal["a"] = "a") -> None: ...

    assert [parameter.name for parameter in command_from(ping, name="ping", builtin=True).parameters] == ["text"]


def test_a_registry_gives_commands_by_name_and_in_order() -> None:
    registry = CommandRegistry([CLEAR, NOTHING])
    assert registry.get("clear") is CLEAR
    assert list(registry) == [CLEAR, NOTHING]


def test_a_name_can_be_taken_once() -> None:
    with pytest.raises(ValueError, match="there is a command 'clear' already"):
        CommandRegistry([CLEAR, command_from(nothing, name="clear")])


@pytest.mark.parametrize(
    "name", ["", "Clear", "clear ", "cleär", "\ud800", "x" * 1_000_000], ids=lambda n: ascii(n[:9])
)
def test_an_unknown_name_is_32601_and_the_known_ones_are_listed(name: str) -> None:
    with pytest.raises(CommandError, match="there are: clear, nothing") as caught:
        CommandRegistry([NOTHING, CLEAR]).get(name)
    assert (caught.value.code, caught.value.data) == (-32601, {"commands": ["clear", "nothing"]})
    assert len(caught.value.message) < 200
