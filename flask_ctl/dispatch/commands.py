"""Commands: a name, a role, a scope, and parameters that are read from a function's signature."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import INVALID_PARAMS, METHOD_NOT_FOUND, CommandError
from ..protocol.jsonrpc import encode
from .parameters import JSONSchema, ParameterType, parameter_type, result_schema

Role = Literal["observe", "inspect", "operate"]
"""What a peer may do, the least first; each role includes the ones before it.

A peer that observes gets figures; one that inspects also gets what may hold personal data, such as logs and addresses.
"""

ROLES: tuple[Role, ...] = typing.get_args(Role)
ImpactLevel = Literal["low", "medium", "high"]
Scope = Literal["each", "one"]

_RESERVED = """
    call cancel commands config describe doctor drain events exceptions fleet health help history keygen log_level logs
    ls memory metrics pause ping profile progress reload reopen_logs requests restart resume rollout routes run settings
    shell stacks status stop supervisor top undo wait workers
"""
RESERVED_COMMANDS = frozenset(_RESERVED.split())
"""Names that the command line has, or will have, for itself."""

RESERVED_PARAMETERS = frozenset({"socket", "timeout", "json", "quiet", "help"})
"""Options that every command has on the command line; so does whatever begins with an underscore."""


def invalid_parameter(name: str, problem: str) -> CommandError:
    """The error for a parameter that is wrong: -32602, with its name in `data`."""
    return CommandError(f"{name}: {problem}", {"parameter": name}, code=INVALID_PARAMS)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a command."""

    name: str
    type: ParameterType
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def schema(self) -> JSONSchema:
        schema = self.type.schema()
        default = getattr(self.default, "value", self.default)
        if not self.required and _is_json(default):
            schema["default"] = default
        return schema


@dataclass(frozen=True)
class Impact:
    """How much a command disturbs the server that runs it, and a sentence that says in what way."""

    level: ImpactLevel = "low"
    note: str = ""


@dataclass(frozen=True)
class Command:
    """Something that a server does when asked.

    A built-in command's function takes the call before its parameters, and must not block.
    """

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    summary: str = ""
    role: Role = "operate"
    scope: Scope = "each"
    builtin: bool = False
    result: JSONSchema = field(default_factory=dict)
    impact: Impact = Impact()

    @property
    def parameter_names(self) -> list[str]:
        return [parameter.name for parameter in self.parameters]

    def bind(self, params: list[Any] | Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for JSON parameters, by name or by position. Raises CommandError -32602."""
        if isinstance(params, list):
            if len(params) > len(self.parameters):
                raise CommandError(f"{self.name} takes at most {len(self.parameters)} parameters", code=INVALID_PARAMS)
            params = {parameter.name: value for parameter, value in zip(self.parameters, params)}
        return self._bind(params, "check")

    def bind_text(self, params: Mapping[str, str]) -> dict[str, Any]:
        """Keyword arguments for parameters that were typed. Raises CommandError -32602."""
        return self._bind(params, "parse")

    def describe(self) -> dict[str, Any]:
        """Summary, role, impact, scope, and JSON Schema of parameters and result, as `commands` answers them."""
        return {
            "summary": self.summary,
            "role": self.role,
            "impact": self.impact.level,
            "impact_note": self.impact.note,
            "scope": self.scope,
            "parameters": {
                "type": "object",
                "properties": {parameter.name: parameter.schema() for parameter in self.parameters},
                "required": [parameter.name for parameter in self.parameters if parameter.required],
                "additionalProperties": False,
            },
            "result": self.result,
        }

    def result_schema(self) -> JSONSchema:
        """JSON Schema of what a caller gets; a command in several workers has a result from each."""
        return self.result

    def _bind(self, params: Mapping[str, Any], convert: Literal["check", "parse"]) -> dict[str, Any]:
        arguments = {}
        unknown = set(params)
        for parameter in self.parameters:
            unknown.discard(parameter.name)
            if parameter.name in params:
                try:
                    arguments[parameter.name] = getattr(parameter.type, convert)(params[parameter.name])
                except ValueError as error:
                    raise invalid_parameter(parameter.name, str(error)) from None
            elif parameter.required:
                raise invalid_parameter(parameter.name, "is missing")
        if unknown:
            known = ", ".join(parameter.name for parameter in self.parameters) or "none"
            raise invalid_parameter(min(unknown)[:80], f"{self.name} has no such parameter; it has: {known}")
        return arguments


def command_from(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    role: Role = "operate",
    scope: Scope = "each",
    builtin: bool = False,
    result: JSONSchema | None = None,
    impact: Impact | None = None,
) -> Command:
    """The command that a function is; its docstring's first line is the summary.

    `result` is JSON Schema of what it returns, by default that of the return annotation.

    Raises TypeError for a parameter whose annotation can't be understood, ValueError for a reserved or illegal name.
    """
    name = name or function.__name__
    if not name.isidentifier() or name.startswith("_"):
        raise ValueError(f"{name!r} can't be a command: use a Python name without a leading underscore")
    impact = impact or Impact()
    for what, value, known in (
        ("role", role, ROLES),
        ("scope", scope, typing.get_args(Scope)),
        ("impact", impact.level, typing.get_args(ImpactLevel)),
    ):
        if value not in known:
            raise ValueError(f"{name}: {what} is {', '.join(known[:-1])} or {known[-1]}, not {value!r}")
    hints = _hints(function)
    parameters = tuple(_parameters(function, hints, skip=1 if builtin else 0))
    if not builtin:
        _refuse_reserved(name, parameters)
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    if result is None:
        result = result_schema(hints["return"]) if "return" in hints else {}
    return Command(name, function, parameters, summary, role, scope, builtin, result, impact)


def _refuse_reserved(name: str, parameters: Iterable[Parameter]) -> None:
    if name in RESERVED_COMMANDS:
        raise ValueError(f"the command name {name!r} is reserved; give another by name=")
    for parameter in parameters:
        if parameter.name in RESERVED_PARAMETERS or parameter.name.startswith("_"):
            raise ValueError(f"{name}: the parameter name {parameter.name!r} is reserved")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, AttributeError, SyntaxError) as error:
        raise TypeError(f"{function.__name__}: an annotation can't be resolved: {error}") from None


def _parameters(function: Callable[..., Any], hints: dict[str, Any], skip: int) -> Iterator[Parameter]:
    for parameter in list(inspect.signature(function).parameters.values())[skip:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{function.__name__}: {parameter} can't be a parameter: it has to have a name")
        if parameter.name not in hints:
            raise TypeError(f"{function.__name__}: the parameter {parameter.name!r} needs an annotation")
        yield Parameter(parameter.name, parameter_type(hints[parameter.name]), parameter.default)


def _is_json(value: Any) -> bool:
    try:
        encode(value)
    except (TypeError, ValueError):
        return False
    return True


class CommandRegistry:
    """Commands by name."""

    def __init__(self, commands: Iterable[Command] = ()) -> None:
        self._commands: dict[str, Command] = {}
        for command in commands:
            self.add(command)

    def add(self, command: Command) -> None:
        """Raises ValueError if the name is taken."""
        if command.name in self._commands:
            raise ValueError(f"there is a command {command.name!r} already")
        self._commands[command.name] = command

    def find(self, name: str) -> Command | None:
        """The command of that name, None if there is none."""
        return self._commands.get(name)

    def get(self, name: str) -> Command:
        """Raises CommandError -32601, with the known names in `data`, for an unknown name."""
        try:
            return self._commands[name]
        except KeyError:
            known = sorted(self._commands)
            message = f"there is no command {name[:80]!r}; there are: {', '.join(known)}"
            raise CommandError(message, {"commands": known}, code=METHOD_NOT_FOUND) from None

    def __iter__(self) -> Iterator[Command]:
        return iter(self._commands.values())
