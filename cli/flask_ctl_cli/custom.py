"""The app's own commands as click commands: options and values by the server's description (JSON Schema)."""

from __future__ import annotations

from typing import Any

import click

from flask_ctl import printable

from .many import for_each
from .output import confirm, print_result
from .settings import ControlCommand, owner_option, selection_options, settings


class Enumeration(click.Choice):  # type: ignore[type-arg]
    """One of the values of an ``enum``, compared as text and case-sensitively; the result keeps its JSON type."""

    def __init__(self, values: list[Any]) -> None:
        self._values = {printable(str(value), keep=""): value for value in values}
        super().__init__(list(self._values))

    def normalize_choice(self, choice: Any, ctx: click.Context | None) -> str:
        return str(choice)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self._values:
            return self._values[value]
        return self.fail(f"{value!r} is not one of {', '.join(self._values)}.", param, ctx)


_TYPES: dict[str, click.ParamType[Any]] = {
    "string": click.STRING,
    "integer": click.INT,
    "number": click.FLOAT,
    "boolean": click.BOOL,
}


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without an alternative ``null``: on a command line null is an option left out."""
    return next((inner for inner in schema.get("anyOf", []) if inner.get("type") != "null"), schema)


def _type(schema: dict[str, Any]) -> click.ParamType[Any]:
    if "enum" in schema:
        return Enumeration(schema["enum"])
    return _TYPES.get(schema.get("type", ""), click.STRING)


def _items(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a list's items; None if `schema` is not a list's."""
    return without_null(schema.get("items", {})) if schema.get("type") == "array" else None


def parse_values(name: str, description: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    """JSON values of parameters that were given as text. Raises click.UsageError for unknown, missing and bad ones."""
    schemas, required = _parameters(description)
    known = ", ".join(schemas) or "none"
    if unknown := texts.keys() - schemas.keys():
        raise click.UsageError(f"{name} has no parameter {min(unknown)!r}; it has: {known}")
    if missing := required - texts.keys():
        raise click.UsageError(f"{name} needs {min(missing)}=VALUE; its parameters are: {known}")
    return {key: _parse(key, without_null(schemas[key]), text) for key, text in texts.items()}


def _parameters(description: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    parameters = description.get("parameters", {})
    return parameters.get("properties", {}), set(parameters.get("required", []))


def _parse(name: str, schema: dict[str, Any], text: str) -> Any:
    items = _items(schema)
    try:
        if items is not None:
            return [_type(items).convert(item, None, None) for item in text.split(",") if text]
        return _type(schema).convert(text, None, None)
    except click.BadParameter as error:
        raise click.UsageError(f"{name}: {error.message}") from None


def _option(name: str, schema: dict[str, Any], required: bool) -> click.Option:
    inner, flag = without_null(schema), name.replace("_", "-")
    items = _items(inner)
    words = f"--{flag}/--no-{flag}" if inner.get("type") == "boolean" else f"--{flag}"
    return click.Option(
        [words, name],
        type=_type(inner if items is None else items),
        multiple=items is not None,
        default=None,
        required=required,
        help=_help(schema.get("default"), is_list=items is not None),
    )


def _help(default: Any, *, is_list: bool) -> str | None:
    notes = ["Can be given several times."] if is_list else []
    if default not in (None, "", []):
        notes.append(printable(f"[default: {default}]", keep=""))
    return "  ".join(notes) or None


YES_HELP = "Do not ask before a command of high impact; without a terminal nothing asks."


def may_change(name: str) -> bool:
    """Whether a command may have side effects, as every command of the app's own may."""
    return name not in ("commands", "ping", "status")


def worker_option() -> click.Option:
    """A new --worker option, whose value is sent to the server with the parameters."""
    return click.Option(
        ["--worker", "_pid"], type=click.IntRange(min=1), metavar="PID", help="Run only in this worker."
    )


def call_command(name: str, given: dict[str, Any]) -> None:
    """Have the selected instances run a command, and print the result."""
    if settings().selects_many:
        for_each(name, lambda client: client.call(name, **given))
    with settings().client(operate=may_change(name)) as client:
        print_result(name, client.call(name, **given), as_json=settings().json)


def custom_command(name: str, description: dict[str, Any], kind: type[ControlCommand]) -> click.Command:
    """The click command of class `kind` for a command of the app's own, by the server's `description`."""
    asks = description.get("impact") == "high"

    def run(**values: Any) -> None:
        if asks:
            confirm(name, description, yes=values.pop("_yes", False))
        given: dict[str, Any] = {
            key: list(v) if isinstance(v, tuple) else v for key, v in values.items() if v not in (None, ())
        }
        call_command(name, given)

    schemas, required = _parameters(description)
    options: list[click.Parameter] = [_option(key, schema, key in required) for key, schema in schemas.items()]
    if "worker" not in schemas:
        options.append(worker_option())
    # A parameter of that name takes precedence; `call` has the option then.
    if asks and "yes" not in schemas:
        options.append(click.Option(["--yes", "_yes"], is_flag=True, help=YES_HELP))
    # As those, which are ours only where no parameter has the name.
    options += [option for option in [*selection_options(), owner_option()] if option.opts[0][2:] not in schemas]
    return kind(
        name.replace("_", "-"),
        params=options,
        callback=run,
        help=printable(description.get("summary") or ""),
        role=description.get("role", "operate"),
        impact=description.get("impact", "low"),
        impact_note=printable(description.get("impact_note") or "", keep=""),
    )
