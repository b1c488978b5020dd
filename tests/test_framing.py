"""A stream of bytes, cut into lines."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_ctl import RemoteProtocolError
from flask_ctl.protocol.framing import MAX_FRAME, LineBuffer

properties = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

STREAMS = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b" ", b"\t", b"\r", b"{}", b"ping", b"\x00", b"\xff"])
).map(b"".join)


def lines_of(pieces: list[bytes], limit: int = MAX_FRAME) -> tuple[list[bytes], bytes]:
    """The lines of the pieces, fed one by one, and what the end of the stream completes."""
    buffer = LineBuffer(limit)
    return [line for piece in pieces for line in buffer.feed(piece)], buffer.rest()


@pytest.mark.parametrize(
    ("pieces", "lines", "rest"),
    [
        pytest.param([], [], b"", id="nothing"),
        pytest.param([b""], [], b"", id="no bytes"),
        pytest.param([b"one\n"], [b"one"], b"", id="one line"),
        pytest.param([b"one\ntwo\n"], [b"one", b"two"], b"", id="two at once"),
        pytest.param([b"o", b"n", b"e", b"\n"], [b"one"], b"", id="byte by byte"),
        pytest.param([b"one\nt", b"wo\nthr", b"ee"], [b"one", b"two"], b"three", id="torn, without an end"),
        pytest.param([b"one\r\ntwo\r\n"], [b"one", b"two"], b"", id="CRLF"),
        pytest.param([b"one\r", b"\ntwo\r"], [b"one"], b"two", id="torn CRLF"),
        pytest.param([b"\n\n\r\n  \t\n"], [], b"", id="empty lines"),
        pytest.param([b"\none\n\n\ntwo\n"], [b"one", b"two"], b"", id="empty lines between"),
        pytest.param([b"  one two\t \n"], [b"one two"], b"", id="white space around"),
        pytest.param([b" \r"], [], b"", id="white space without an end"),
        pytest.param([b"\x00\xff\n"], [b"\x00\xff"], b"", id="any byte"),
        pytest.param([b"a\x0bb\x0cc\x1cd\xc2\x85e\n"], [b"a\x0bb\x0cc\x1cd\xc2\x85e"], b"", id="only LF ends a line"),
    ],
)
def test_lines_are_cut_wherever_the_pieces_were_torn(pieces: list[bytes], lines: list[bytes], rest: bytes) -> None:
    assert lines_of(pieces) == (lines, rest)


@properties
@given(STREAMS)
def test_a_split_at_any_byte_gives_the_same_lines(stream: bytes) -> None:
    expected = lines_of([stream])
    for cut in range(len(stream) + 1):
        assert lines_of([stream[:cut], stream[cut:]]) == expected
    assert lines_of([bytes([byte]) for byte in stream]) == expected


@properties
@given(st.binary())
def test_no_line_is_empty_or_holds_a_newline(stream: bytes) -> None:
    lines, rest = lines_of([stream])
    assert all(lines)
    assert not any(b"\n" in line for line in [*lines, rest])


@properties
@given(STREAMS, st.integers(0, 12))
def test_a_line_over_the_limit_is_refused_however_it_arrives(stream: bytes, limit: int) -> None:
    too_long = any(len(line) > limit for line in stream.split(b"\n"))
    for pieces in ([stream], [bytes([byte]) for byte in stream]):
        if too_long:
            with pytest.raises(RemoteProtocolError, match=f"longer than {limit} bytes"):
                lines_of(pieces, limit)
        else:
            lines_of(pieces, limit)


@pytest.mark.parametrize("ended", [True, False], ids=["with its end", "before its end"])
def test_a_line_of_the_limit_passes_and_one_byte_more_does_not(ended: bool) -> None:
    end = b"\n" if ended else b""
    assert b"x" * 10 in (LineBuffer(10).feed(b"x" * 10 + end) or [b"x" * 10])
    with pytest.raises(RemoteProtocolError):
        LineBuffer(10).feed(b"x" * 11 + end)


def test_a_line_of_one_mebibyte_passes_in_pieces() -> None:
    buffer = LineBuffer()
    for _ in range(16):
        assert buffer.feed(b"x" * (MAX_FRAME // 16)) == []
    assert buffer.feed(b"\n") == [b"x" * MAX_FRAME]


def test_a_line_that_never_ends_is_refused_as_soon_as_it_is_too_long() -> None:
    buffer = LineBuffer()
    buffer.feed(b"x" * MAX_FRAME)
    with pytest.raises(RemoteProtocolError):
        buffer.feed(b"x")


def test_partial_tells_whether_a_line_has_begun() -> None:
    buffer = LineBuffer()
    assert not buffer.partial
    buffer.feed(b"one\ntw")
    assert buffer.partial
    buffer.feed(b"o\n")
    assert not buffer.partial


def test_the_rest_is_given_once() -> None:
    buffer = LineBuffer()
    buffer.feed(b"ping")
    assert (buffer.rest(), buffer.rest()) == (b"ping", b"")
