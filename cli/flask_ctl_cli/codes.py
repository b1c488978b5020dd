"""What the numbers mean: exit codes, and the error codes of the protocol."""

from __future__ import annotations

EXIT_CODES = {
    0: "done: every request in flight was finished, and the process is gone",
    1: "the server refused or failed the command, or the outcome is not known; the message is on stderr",
    2: "wrong usage, or it isn't clear which instance is meant; or `--kill-after` can't be used there",
    3: "nothing is running there; the paths tried are listed",
    4: "timed out: the server is still there, and threads that keep it alive are named; of a reload: the old code still"
    " serves everybody",
    5: "permission denied",
    6: "done, but requests were cut; or a process was killed, or died on the way",
    7: "reload refused: the old code still serves; the new code's traceback is on stderr",
    8: "what answered does not speak this protocol",
    130: "interrupted by Ctrl-C; what the server was asked for goes on",
}
"""As the README has them."""

ERROR_CODES = {
    -32700: "the message is not JSON, or not UTF-8",
    -32600: "the message is JSON, but no request",
    -32601: "there is no such command; `data.commands` are the names of those that there are",
    -32602: "a parameter is wrong or missing; `data.parameter` is its name, where it has one",
    -32603: "the command failed; for an exception in the app's code the message is its type and text",
    -32001: "not supported here",
    -32002: "conflicts with what is under way",
    -32003: "permission denied; `data` has the `role` of the peer and what the command `needs`, or after too many"
    " refusals `retry_after` in seconds",
    -32004: "reload failed; `data.traceback` is the new code's output",
    -32005: "timed out; of a reload `data` has the requests `in_flight` and the `threads` that were waited for",
    -32006: "the server died before it was done: from a hub, whose own process goes on for a moment; `data` is"
    ' `{"outcome": "died"}`',
}
"""As docs/protocol.md has them."""


def meaning_of(topic: str) -> tuple[str, int, str] | None:
    """Kind, number and meaning of a code that is written as text; None for what is no number.

    Raises ValueError, with what there is, for a number that is no code. An error code may lack its sign.
    """
    if not topic.removeprefix("-").isdecimal():
        return None
    number = int(topic)
    if number in EXIT_CODES:
        return "exit code", number, EXIT_CODES[number]
    if -abs(number) in ERROR_CODES:
        return "error code", -abs(number), ERROR_CODES[-abs(number)]
    raise ValueError(f"{number} is no code; exit codes are {_listed(EXIT_CODES)}, error codes {_listed(ERROR_CODES)}")


def _listed(codes: dict[int, str]) -> str:
    return ", ".join(map(str, codes))
