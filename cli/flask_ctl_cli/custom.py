"""The app's own commands: options and values from the server's description (JSON Schema)."""

from __future__ import annotations

from typing import Any

import click

from .output import print_result


class SchemaChoice(click.Choice):  # type: ignore[type-arg]
    """One of some constants; the value keeps its JSON type."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__([str(value) for value in values])
        self._values = {str(value): value for value in values}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._values[str(super().convert(value, param, ctx))]


_TYPES: dict[str, click.ParamType] = {
    "string": click.STRING,
    "integer": click.INT,
    "number": click.FLOAT,
    "boolean": click.BOOL,
}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without the null that it may allow: on a command line that is an option left out."""
    return next((inner for inner in schema.get("anyOf", []) if inner.get("type") != "null"), schema)


def _type(schema: dict[str, Any]) -> click.ParamType:
    if "enum" in schema:
        return SchemaChoice(schema["enum"])
    return _TYPES.get(schema.get("type", ""), click.STRING)


def convert(name: str, schema: dict[str, Any], text: str) -> Any:
    """The JSON value that `text` stands for. Raises click.BadParameter."""
    schema = _plain(schema)
    items = schema.get("items") if schema.get("type") == "array" else None
    try:
        if items is not None:
            return [_type(items).convert(item, None, None) for item in text.split(",") if text]
        return _type(schema).convert(text, None, None)
    except click.BadParameter as error:
        raise click.BadParameter(f"{name}: {error.message}") from None


def _option(name: str, schema: dict[str, Any], required: bool) -> click.Option:
    plain, flag = _plain(schema), "--" + name.replace("_", "-")
    help = f"[default: {schema['default']}]" if schema.get("default") is not None else None
    if plain.get("type") == "boolean":
        return click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, required=required, help=help)
    is_list = plain.get("type") == "array"
    return click.Option(
        [flag, name],
        type=_type(plain["items"] if is_list else plain),
        multiple=is_list,
        default=None,
        required=required,
        help=help,
    )


def custom_command(name: str, description: dict[str, Any], kind: type[click.Command]) -> click.Command:
    """The click command for one of the app's own."""
    parameters = description.get("parameters", {})
    required = set(parameters.get("required", []))

    def run(**values: Any) -> None:
        from .group import settings

        given = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items() if v not in (None, ())}
        with settings().client() as client:
            print_result(name, client.call(name, **given), as_json=settings().json)

    options = [_option(key, schema, key in required) for key, schema in parameters.get("properties", {}).items()]
    return kind(name.replace("_", "-"), params=options, callback=run, help=description.get("summary"))
