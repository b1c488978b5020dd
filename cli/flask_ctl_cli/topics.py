"""What `help` explains besides commands: exit codes, error codes of the protocol, and settings."""

from __future__ import annotations

from typing import Any

EXIT_CODES = {
    0: "done: every request in flight was finished, and the process has ended",
    1: "the server refused the command, or the command failed, or the outcome is not known; the message is on stderr",
    2: "wrong usage; or it is not clear which instance is meant; or `--kill-after` can't be used at this address; or"
    " nothing would start the app again (`restart`)",
    3: "nothing is running there; the message lists the paths that were tried",
    4: "timed out: the server still runs, and the message names threads that keep it alive; of a reload: the old code"
    " still serves all requests",
    5: "permission denied",
    6: "done, but requests were cut, or hooks or threads were left unfinished; or a process was killed or died,"
    " or the error rate has risen (`reload --confirm`)",
    7: "reload refused: the old code still serves; the new code's traceback is on stderr",
    8: "the server does not speak this protocol",
    130: "interrupted by Ctrl-C; the server continues with the command",
}
"""The reference in docs/ is generated from these texts; the README's table has the same."""

ERROR_CODES = {
    -32700: "the message is not JSON, or not UTF-8",
    -32600: "the message is JSON, but not a request",
    -32601: "there is no such command; `data.commands` lists the names of all commands",
    -32602: "a parameter is wrong or missing; `data.parameter` is its name, if it has one",
    -32603: "the command failed; for an exception in the app's code the message is its type and text",
    -32001: "not supported here",
    -32002: "conflicts with an operation under way",
    -32003: "permission denied; `data` has the `role` of the peer and the role that the command `needs`, or after too"
    " many refusals `retry_after` in seconds",
    -32004: "reload failed; `data.traceback` is the new code's output, `data.directory` the directory where it was"
    " loaded",
    -32005: "timed out; of a reload `data` has the number of requests `in_flight`, the oldest of them in `requests`,"
    " and the names of the `threads` that kept the old code from ending",
    -32006: 'the server was reloaded before it answered; `data` is `{"may_have_run": true}`',
    -32007: "the server died before the command was done: sent by a hub, whose own process lives on for a moment;"
    ' `data` is `{"outcome": "died"}`',
}
"""The texts of the table of errors in docs/protocol.md, which a test compares."""


def meaning_of(topic: str) -> tuple[str, int, str] | None:
    """Kind, number and meaning of the code that a text gives; None if the text is not a number.

    An error code may be given without its sign. Raises ValueError, whose text lists all codes, for an unknown number.
    """
    if not topic.removeprefix("-").isdecimal():
        return None
    number = int(topic)
    if number in EXIT_CODES:
        return "exit code", number, EXIT_CODES[number]
    if -abs(number) in ERROR_CODES:
        return "error code", -abs(number), ERROR_CODES[-abs(number)]
    known = f"exit codes are {_listed(EXIT_CODES)}, error codes {_listed(ERROR_CODES)}"
    raise ValueError(f"{number} is not a code; {known}")


def described_settings(topic: str) -> list[dict[str, Any]]:
    """Name, default and meaning of each setting that a text names, in any case; `settings` names all of them."""
    from flask_ctl import SETTINGS

    wanted = topic.upper()
    return [
        {"name": setting.name, "default": setting.default, "means": setting.meaning}
        for setting in SETTINGS
        if wanted in ("SETTINGS", setting.name)
    ]


def _listed(codes: dict[int, str]) -> str:
    return ", ".join(map(str, codes))
