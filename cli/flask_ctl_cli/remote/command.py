"""One command line on many hosts: run side by side, shown in the order of the hosts, with one exit code for all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from flask_ctl import ControlError, render_message

from ..many import Answer, first_of, print_answers
from ..output import print_json, result_text, write
from ..selection import Target
from ..settings import Settings
from .client import error_of
from .ssh import Host, NotBegun, NotKnown, follow, parse_hosts, run

NOT_THERE = ("fleet", "help", "keygen", "rollout", "run", "shell")
"""Commands of this machine alone."""

STREAMS = ("--follow", "-f", "--watch")
"""Options of commands that print until they are ended."""


class HostAnswer:
    """What a host has answered: a document with its exit code, or a problem of ssh."""

    def __init__(self, host: str, code: int, document: Any = None, problem: str = "") -> None:
        self.host, self.code, self.document, self.problem = host, code, document, problem

    def as_json(self) -> list[dict[str, Any]]:
        """An item for each instance that has answered there, else one for the host."""
        if self.problem:
            error = {"code": None, "message": self.problem, "data": None}
            return [{"host": self.host, "exit": self.code, "error": error}]
        if _is_list_of_answers(self.document):
            return [{"host": self.host, **item} for item in self.document]
        if isinstance(self.document, dict) and self.document.keys() == {"error", "exit"}:
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
    follows = any(word in STREAMS or word.startswith("--watch=") for word in words)
    code = (_follow_all if follows else _run_all)(hosts, words, name, settings)
    raise click.exceptions.Exit(code)


def without_hosts(words: Sequence[str]) -> list[str]:
    """The words without --on and its value."""
    left, skip = [], False
    for word in words:
        if not skip and word != "--on" and not word.startswith("--on="):
            left.append(word)
        skip = not skip and word == "--on"
    return left


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
    codes: dict[str, int] = {}
    printing = threading.Lock()

    def listen(host: Host) -> None:
        try:
            with follow(host, words) as lines:
                for line in lines:
                    with printing:
                        write(_line(host.name, name, line, settings.json))
            codes[host.name] = 0
        except (NotBegun, NotKnown) as error:
            codes[host.name] = 1
            settings.say(f"{host.name}: {error}")

    try:
        side_by_side(listen, hosts)
    except KeyboardInterrupt:
        return 0
    return first_of(codes.values())


def _line(host: str, name: str, line: str, as_json: bool) -> str:
    try:
        message = json.loads(line)
    except ValueError:
        return f"{host}  {line}"
    if as_json:
        told = message if isinstance(message, dict) else {"result": message}
        return json.dumps({"host": host, **told}) + "\n"
    if isinstance(message, dict) and "end" in message:
        return f"{host}  — {message['end']} —\n"
    try:
        return "".join(f"{host}  {text}\n" for text in render_message(name, message).splitlines())
    except (KeyError, TypeError, ValueError):
        return f"{host}  {line}"


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
