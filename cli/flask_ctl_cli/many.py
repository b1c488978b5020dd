"""A command for many instances: asked side by side, shown in order, with one exit code for all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

import click

from flask_ctl import ControlClient, ControlError, ReloadFailed, printable

from .output import change_code, exit_code_of, print_change, print_json, result_text, traceback_of, write
from .selection import Target, targets
from .settings import Settings, settings

MAX_AT_ONCE = 64
"""The most instances that are asked at the same time."""

TARGET_TIMEOUT = 300.0
"""Seconds for one instance of a fleet, or of a rollout, without --timeout: it may hang, or have died unheard."""

ORDER = (1, 8, 5, 4, 6, 7, 3, 2, 0)
"""Exit codes, the gravest first: that of a command for many is the first that occurred."""

Ask = Callable[[ControlClient], Any]
"""Sends the command, and returns the result."""


class Addressee(Protocol):
    """An instance that a command is for, as `Target` is one."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def socket(self) -> str: ...
    def client(self, settings: Settings) -> ControlClient:
        """A client for it, as the options want it. Raises ControlError."""
        ...

    def described(self) -> str:
        """A few words for a person."""
        ...

    def as_json(self) -> dict[str, Any]:
        """What tells it from others."""
        ...


class Answer:
    """What one instance has answered: a result or an error, and the exit code."""

    def __init__(self, target: Addressee, code: int, result: Any = None, error: ControlError | None = None) -> None:
        self.target, self.code, self.result, self.error = target, code, result, error
        self.heading = "Error"
        """Before the message of the error."""

    def as_json(self) -> dict[str, Any]:
        target = self.target.as_json()
        if self.error is None:
            return {**target, "exit": self.code, "result": self.result}
        error = {"code": self.error.code, "message": self.error.message, "data": self.error.data}
        return {**target, "exit": self.code, "error": error}


def for_each(
    method: str,
    ask: Ask,
    *,
    code: Callable[[Any], int] = lambda result: 0,
    text: Callable[[Any], str] | None = None,
    chosen: Sequence[Target] | None = None,
    at_once: int = MAX_AT_ONCE,
    quiet: bool = False,
) -> NoReturn:
    """Have each selected instance do it, or each `chosen` one, and print the results; ends with the exit code.

    `code` gives the exit code of a result. `text` makes the text of a result, by default the one of `method`. With
    `quiet` only errors and JSON are printed.
    """
    given = settings()
    answers = ask_each(ask, targets(given) if chosen is None else chosen, code, at_once)
    if given.json:
        print_json([answer.as_json() for answer in answers])
    else:
        print_answers(answers, text or (lambda result: result_text(method, result)), quiet)
    raise click.exceptions.Exit(first_of(answer.code for answer in answers))


def change(method: str, ask: Ask, *, quiet: bool | None = None) -> None:
    """Have the selected instance, or each of them, do what each process of a server has to do, and print the result.

    Ends with exit code 4 if a process has not confirmed it, 6 if a part failed. By default `quiet` is the option.
    """
    given = settings()
    quiet = given.quiet if quiet is None else quiet
    if given.selects_many:
        for_each(method, ask, code=change_code, chosen=targets(given, whole_server=True), quiet=quiet)
    with given.client(operate=True) as client:
        result = ask(client)
    print_change(method, result, as_json=given.json, quiet=quiet)


def ask_each(
    ask: Ask,
    chosen: Sequence[Addressee],
    code: Callable[[Any], int] = lambda result: 0,
    at_once: int = MAX_AT_ONCE,
    error_code: Callable[[ControlError], int] = exit_code_of,
) -> list[Answer]:
    """The answers of these, in their order. `code` and `error_code` give the exit codes."""
    given = settings()
    found: dict[int, Answer] = {}
    failures: list[BaseException] = []
    left = list(reversed(list(enumerate(chosen))))

    def work() -> None:
        while left:
            try:
                number, target = left.pop()
            except IndexError:
                return
            try:
                with target.client(given) as client:
                    result = ask(client)
                found[number] = Answer(target, code(result), result)
            except ControlError as error:
                found[number] = Answer(target, error_code(error), error=error)
            except BaseException as error:
                failures.append(error)

    # They do not keep the program from ending at Ctrl-C.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(chosen)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [found[number] for number in sorted(found)]


def first_of(codes: Any) -> int:
    """The exit code for all, of those that occurred."""
    return min(codes, key=ORDER.index, default=0)


def print_answers(answers: list[Answer], text: Callable[[Any], str], quiet: bool) -> None:
    """A table, if each has one line to say; else one below the other, each with a heading."""
    rows: list[tuple[str, str, Answer, str]] = []
    for answer in answers:
        if isinstance(answer.error, ReloadFailed):
            click.echo(f"{printable(answer.target.described(), keep='')}:\n{traceback_of(answer.error)}", err=True)
        if answer.error is not None:
            said = f"{answer.heading}: {printable(answer.error.message)}"
        else:
            said = text(answer.result)
        if answer.error is not None or not quiet:
            name = printable(answer.target.name, keep="") or "-"
            rows.append((name, str(answer.target.pid or "-"), answer, said.rstrip()))
    if not rows:
        return
    if any("\n" in said for *_, said in rows):
        parts = []
        for name, pid, answer, said in rows:
            socket = printable(answer.target.socket, keep="")
            parts.append(f"== {name}, pid {pid}, {socket}\n{_body(said)}\n")
        write("\n".join(parts))
        return
    names, pids = max(len(name) for name, *_ in rows), max(len(pid) for _, pid, *_ in rows)
    write("".join(f"{name:{names}}  {pid:>{pids}}  {said or '-'}\n" for name, pid, _, said in rows))


def _body(said: str) -> str:
    """No line of it looks like the heading of another instance."""
    return "\n".join(f" {line}" if line.startswith("==") else line for line in said.split("\n"))
