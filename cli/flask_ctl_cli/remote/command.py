"""One command line on many hosts: run side by side, shown in the order of the hosts, with one exit code for all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import click

from flask_ctl import ControlError, printable, render_message

from ..group import load_command
from ..many import ORDER, Answer, first_of, print_answers
from ..merging import merged
from ..output import print_json, result_text, write
from ..selection import Target
from ..settings import Settings
from .client import error_of
from .ssh import Host, NotBegun, NotKnown, follow, parse_hosts, run

NOT_THERE = ("fleet", "help", "keygen", "rollout", "run", "shell")
"""Commands of this machine alone."""

ITEMS = ("events", "logs")
"""Commands that print items; the others print a result again and again."""

MAX_LINES = 10_000
"""Of a document that comes in several lines from a command that prints a line for each message."""


class HostAnswer:
    """What a host has answered: a document with its exit code, or a problem of ssh."""

    def __init__(self, host: str, code: int, document: Any = None, problem: str = "") -> None:
        if code not in ORDER:
            code, problem = 1, problem or f"it has ended with exit code {code}"
        self.host, self.code, self.document, self.problem = host, code, document, problem

    def as_json(self) -> list[dict[str, Any]]:
        """An item for each instance that has answered there, else one for the host."""
        if self.problem:
            error = {"code": None, "message": self.problem, "data": None}
            return [{"host": self.host, "exit": self.code, "error": error}]
        if _is_list_of_answers(self.document):
            return [{"host": self.host, **item} for item in self.document]
        if _is_error(self.document):
            return [{"host": self.host, **self.document}]
        return [{"host": self.host, "exit": self.code, "result": self.document}]


def run_on_hosts(settings: Settings) -> NoReturn:
    """Run the given command line on the hosts of --on, and print the answers; ends with the gravest exit code.

    1 stands for a host that was not reached, and for one whose result is not known.
    """
    hosts, name = parse_hosts(settings.on or ""), settings.command_words[0]
    if name in NOT_THERE:
        raise click.UsageError(f"{name} is for this machine: it can't be combined with --on")
    settings.json = settings.json or "--json" in settings.command_words
    settings.quiet = settings.quiet or not {"--quiet", "-q"}.isdisjoint(settings.command_words)
    words = [*settings.common_words, *settings.command_words]
    code = (_follow_all if _is_stream(settings.command_words) else _run_all)(hosts, words, name, settings)
    raise click.exceptions.Exit(code)


def without_hosts(words: Sequence[str]) -> list[str]:
    """The words without --on and its value."""
    left, skip = [], False
    for word in words:
        if not skip and word != "--on" and not word.startswith("--on="):
            left.append(word)
        skip = not skip and word == "--on"
    return left


def _is_stream(words: Sequence[str]) -> bool:
    """Whether a command line is one of those that print until they are ended; none of the app's own commands does."""
    from ..main import COMMANDS

    name, *rest = words
    if (name := name.replace("_", "-")) not in COMMANDS:
        return False
    # Of its own command, as click has bundled options (-fn 20) and values that look like one.
    with load_command(name).make_context(
        name, rest, parent=click.get_current_context(), resilient_parsing=True
    ) as context:
        return bool(context.params.get("follow")) or context.params.get("watch") is not None


def _run_all(hosts: Sequence[Host], words: Sequence[str], name: str, settings: Settings) -> int:
    answers: dict[str, HostAnswer] = {}

    def ask(host: Host) -> None:
        try:
            document, code = run(host, words)
            answers[host.name] = HostAnswer(host.name, code, document)
        except NotBegun as error:
            answers[host.name] = HostAnswer(host.name, 1, problem=f"unreachable, nothing was done: {error}")
        except NotKnown as error:
            answers[host.name] = HostAnswer(host.name, 1, problem=f"the outcome is unknown: {error}")

    side_by_side(ask, hosts)
    found = [answers[host.name] for host in hosts if host.name in answers]
    if settings.json:
        print_json([item for answer in found for item in answer.as_json()])
    else:
        rows = [_as_answer(item) for answer in found for item in answer.as_json()]
        print_answers(rows, lambda result: _text(name, result), settings.quiet)
    return first_of(answer.code for answer in found)


def side_by_side(act: Callable[[Host], Any], hosts: Sequence[Host]) -> None:
    """Call `act` for each, at the same time. Ctrl-C does not wait for what has not come."""
    threads = [threading.Thread(target=act, args=(host,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _follow_all(hosts: Sequence[Host], words: Sequence[str], name: str, settings: Settings) -> int:
    codes: list[int] = []
    try:
        for item in merged([partial(_messages, host, words) for host in hosts]):
            if isinstance(item, HostAnswer):
                codes.append(item.code)
                _print_end(item, settings.json)
            else:
                write(_shown(*item, name, settings.json))
    except KeyboardInterrupt:
        return 0
    return first_of(codes)


def _messages(host: Host, words: Sequence[str]) -> Iterator[tuple[str, Any] | HostAnswer]:
    """Each message of a host with the host's name; at the end its exit code, with an error or a problem if any."""
    error = None
    try:
        with follow(host, words) as lines:
            for message in _documents(lines):
                if _is_error(message):
                    error = message
                else:
                    yield host.name, message
            yield HostAnswer(host.name, lines.code, error)
    except NotBegun as problem:
        yield HostAnswer(host.name, 1, problem=f"unreachable, nothing was done: {problem}")
    except NotKnown as problem:
        yield HostAnswer(host.name, 1, problem=str(problem))


def _documents(lines: Iterable[str]) -> Iterator[Any]:
    """The JSON documents of lines, each of one line, or of several, as errors are; other lines as text."""
    open_ones: list[str] = []
    for line in lines:
        open_ones.append(line)
        begins = open_ones[0].rstrip() == "{"
        if begins and line.rstrip() != "}" and len(open_ones) < MAX_LINES:
            continue
        yield from _parsed(open_ones)
        open_ones = []
    yield from _parsed(open_ones)


def _parsed(lines: Sequence[str]) -> Iterator[Any]:
    if lines:
        try:
            yield json.loads("".join(lines))
        except ValueError:
            yield from lines


def _print_end(answer: HostAnswer, as_json: bool) -> None:
    if not answer.problem and answer.document is None:
        return
    [told] = answer.as_json()
    if as_json:
        write(json.dumps(told) + "\n")
    else:
        click.echo(f"Error: {answer.host}: {printable(str(told['error']['message']))}", err=True)


def _shown(host: str, message: Any, name: str, as_json: bool) -> str:
    if as_json:
        told = message if isinstance(message, dict) else {"result": message}
        return json.dumps({"host": host, **told}) + "\n"
    if isinstance(message, dict) and "end" in message:
        return f"{host}  — {printable(str(message['end']), keep='')} —\n"
    if isinstance(message, str):
        text = printable(message)
    elif name in ITEMS:
        try:
            text = render_message(name, message)
        except (KeyError, TypeError, ValueError):
            text = json.dumps(message)
    else:
        text = _text(name, message)
    return "".join(f"{host}  {line}\n" for line in text.splitlines())


def _is_error(document: Any) -> bool:
    return isinstance(document, dict) and document.keys() == {"error", "exit"}


def _is_list_of_answers(document: Any) -> bool:
    return isinstance(document, list) and all(isinstance(item, dict) and "exit" in item for item in document)


def _as_answer(item: dict[str, Any]) -> Answer:
    """As of an instance here, whose name has the host before it."""
    name = f"{item['host']}/{item['name']}" if item.get("name") else item["host"]
    target = Target(item.get("socket") or item["host"], None, name, item.get("pid"))
    error: ControlError | None = error_of(item) if "error" in item else None
    return Answer(target, item["exit"], item.get("result"), error)


def _text(name: str, result: Any) -> str:
    try:
        return result_text(name.replace("-", "_"), result)
    except ControlError:
        return json.dumps(result, indent=2)
