"""The app's own commands: options and values from the server's description (JSON Schema)."""

from __future__ import annotations

from typing import Any

import click

from .output import print_result
from .settings import settings


class Constant(click.Choice):  # type: ignore[type-arg]
    """One of some constants, exactly as it is written; the value keeps its JSON type."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__([str(value) for value in values])
        self._values = {str(value): value for value in values}

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


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without the null that it may allow: on a command line that is an option left out."""
    return next((inner for inner in schema.get("anyOf", []) if inner.get("type") != "null"), schema)


def _type(schema: dict[str, Any]) -> click.ParamType[Any]:
    if "enum" in schema:
        return Constant(schema["enum"])
    return _TYPES.get(schema.get("type", ""), click.STRING)


def _items(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a list's items; None for what is no list."""
    return _plain(schema.get("items", {})) if schema.get("type") == "array" else None


def parse_values(name: str, description: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    """JSON values for parameters that were typed. Raises click.UsageError."""
    schemas, required = _parameters(description)
    known = ", ".join(schemas) or "none"
    if unknown := texts.keys() - schemas.keys():
        raise click.UsageError(f"{name} has no parameter {min(unknown)!r}; it has: {known}")
    if missing := required - texts.keys():
        raise click.UsageError(f"{name} needs {min(missing)}=VALUE; its parameters are: {known}")
    return {key: _parse(key, _plain(schemas[key]), text) for key, text in texts.items()}


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
    plain, flag = _plain(schema), name.replace("_", "-")
    items = _items(plain)
    words = f"--{flag}/--no-{flag}" if plain.get("type") == "boolean" else f"--{flag}"
    return click.Option(
        [words, name],
        type=_type(plain if items is None else items),
        multiple=items is not None,
        default=None,
        required=required,
        help=_help(schema.get("default"), is_list=items is not None),
    )


def _help(default: Any, *, is_list: bool) -> str | None:
    notes = ["Can be given several times."] if is_list else []
    if default not in (None, "", []):
        notes.append(f"[default: {default}]")
    return "  ".join(notes) or None


def may_change(name: str) -> bool:
    """Whether a command may do more than to look; of the app's own nobody knows."""
    return name not in ("commands", "ping", "status")


def worker_option() -> click.Option:
    """A new --worker option, whose value goes with the parameters to the server."""
    return click.Option(["--worker", "_pid"], type=click.IntRange(min=1), metavar="PID", help="Ask this worker only.")


def custom_command(name: str, description: dict[str, Any], kind: type[click.Command]) -> click.Command:
    """The click command for one of the app's own."""

    def run(**values: Any) -> None:
        given: dict[str, Any] = {
            key: list(v) if isinstance(v, tuple) else v for key, v in values.items() if v not in (None, ())
        }
        with settings().client(operate=may_change(name)) as client:
            print_result(name, client.call(name, **given), as_json=settings().json)

    schemas, required = _parameters(description)
    options: list[click.Parameter] = [_option(key, schema, key in required) for key, schema in schemas.items()]
    if "worker" not in schemas:
        options.append(worker_option())
    return kind(name.replace("_", "-"), params=options, callback=run, help=description.get("summary"))
