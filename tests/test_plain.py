"""Plain-text commands, as people type them into `nc`."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_ctl import CommandError
from flask_ctl.protocol.plain import MAX_PLAIN, is_plain, parse_assignment, parse_plain

properties = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("line", [b"status", b"stop grace=5", b'"quoted"', b"1", b"null", b"(", b"\xff"], ids=repr)
def test_a_line_that_begins_no_object_or_array_is_plain(line: bytes) -> None:
    assert is_plain(line)


@pytest.mark.parametrize("line", [b"{", b"[", b'{"jsonrpc":"2.0"}', b"[]"], ids=repr)
def test_a_line_that_begins_an_object_or_array_is_json(line: bytes) -> None:
    assert not is_plain(line)


@pytest.mark.parametrize(
    ("line", "name", "parameters"),
    [
        ("status", "status", {}),
        ("stop grace=5", "stop", {"grace": "5"}),
        ("  stop \t grace=5 ", "stop", {"grace": "5"}),
        ("clear-cache", "clear_cache", {}),
        ("x dry-run=yes", "x", {"dry_run": "yes"}),
        ("x key=a-b", "x", {"key": "a-b"}),
        ("x key=a=b", "x", {"key": "a=b"}),
        ("x key=", "x", {"key": ""}),
        ('x key="a b"', "x", {"key": "a b"}),
        ("x 'key=a b'", "x", {"key": "a b"}),
        (r"x key=a\ b", "x", {"key": "a b"}),
        ("x key=ä", "x", {"key": "ä"}),
        ("x key=#1", "x", {"key": "#1"}),
        ("x key=$HOME;ls", "x", {"key": "$HOME;ls"}),
        ("x key=1 key=2", "x", {"key": "2"}),
        ("''", "", {}),
    ],
)
def test_a_command_is_a_name_and_assignments(line: str, name: str, parameters: dict[str, str]) -> None:
    assert parse_plain(line.encode()) == (name, parameters)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\xff", -32700),
        (b"x key='open", -32700),
        (b'x "open', -32700),
        (b"x key=\\", -32700),
        (b"", -32600),
        (b" \t", -32600),
        (b"stop fast", -32600),
        (b"stop =5", -32600),
        (b"stop =", -32600),
        (b"x ''", -32600),
        (b"x key=" + b"v" * MAX_PLAIN, -32600),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_can_not_be_read_is_refused_with_its_code(line: bytes, code: int) -> None:
    with pytest.raises(CommandError) as caught:
        parse_plain(line)
    assert caught.value.code == code


def test_a_word_that_is_no_assignment_is_quoted_in_the_message() -> None:
    with pytest.raises(CommandError, match="'fast' is not of the form key=value"):
        parse_assignment("fast")


@properties
@given(st.binary() | st.text(alphabet="ab='\"\\ -#\n").map(str.encode))
def test_any_bytes_are_a_command_or_an_error_of_the_peer(line: bytes) -> None:
    with contextlib.suppress(CommandError):
        name, parameters = parse_plain(line)
        assert isinstance(name, str)
        assert all(parameters)
