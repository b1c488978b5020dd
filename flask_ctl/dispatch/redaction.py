"""Parameters, bounded and without secrets, and texts without secrets: fit to be logged and shown."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Union

from .commands import Command

Params = Union[list[Any], Mapping[str, Any]]

MAX_TEXT = 200
"""Characters of one value, of a name, of an error: a peer may send a megabyte."""

MAX_PARAMETERS = 20
"""Parameters of one command, for the same reason."""

MASK = "***"
"""What stands for a secret."""

_PARTS = "auth cookie credential key passphrase passwd password private pwd secret session signature token"
_SECRET_PARTS = frozenset(_PARTS.split())
_SECRET_WORDS = {"dbpass", "jwt", "otp", "pass", "pgpass", "pin", "pw", "sig"}

_TOKENS = "sk_live_ sk_test_ rk_live_ rk_test_ whsec_ ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ npm_ hf_ AKIA ASIA sk-"
"""Beginnings of tokens whose next characters are letters and digits."""

_ODD_TOKENS = "sk-proj- sk-ant- glpat- xoxb- xoxp- xoxa- xoxs- xapp- AIza pypi-Ag SG. eyJ"
"""Those that go on with a hyphen or an underscore, too; the last one is that of a JSON Web Token (RFC 7519)."""

_WEBHOOKS = "hooks.slack.com/services/ discord.com/api/webhooks/ discordapp.com/api/webhooks/ api.telegram.org/bot"
"""Beginnings of addresses whose path is a secret."""

_PLURALS = tuple(part + "s" for part in _SECRET_PARTS)
"""The ends of names that count, if the value is a number: ``max_tokens=512``."""

_KINDS_OF_ERROR = ("Error", "Exception", "Interrupt", "Warning")
"""The ends of names before a colon that are no secret: ``KeyError: 'user'``."""


def masked(command: Command | None, params: Params) -> dict[str, Any]:
    """The parameters by name. A value is masked if its name is that of a secret, or none that the command has."""
    known = [] if command is None else command.parameter_names
    named = _named(known, params)
    shown = {
        cut(name): MASK if is_secret(name) or name not in known else _shown(value)
        for name, value in list(named.items())[:MAX_PARAMETERS]
    }
    return shown if len(named) <= MAX_PARAMETERS else {**shown, "…": f"{len(named) - MAX_PARAMETERS} more"}


def secrets_of(command: Command, params: Params) -> list[str]:
    """The texts that are masked, as they are and as Python quotes them: an error's message may repeat them."""
    named = _named(command.parameter_names, params)
    values = [value for name, value in list(named.items())[:MAX_PARAMETERS] if is_secret(name)]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    texts = [str(item) for item in flat if isinstance(item, (str, int, float)) and str(item)]
    return [*texts, *(repr(text)[1:-1] for text in texts)]


def is_secret(name: str) -> bool:
    """Whether a parameter of that name is likely to hold a secret."""
    name = name.lower()
    return any(part in name for part in _SECRET_PARTS) or not _SECRET_WORDS.isdisjoint(name.split("_"))


def masked_text(text: str) -> str:
    """The text with ``***`` in place of each value that follows the name of a secret, and of the user in a URL.

    It knows ``name=value``, also in query strings and command lines, ``name -> value``, ``name: value``, where it masks
    the rest of the line, as of a header, or the next, indented one, JSON, elements of XML, what Python prints of
    dictionaries and pairs, private keys in PEM, JSON Web Tokens, and tokens and webhooks of some services, whose
    beginning it leaves. In doubt it masks. The time is in proportion to the length, whatever the text is.
    """
    find = _patterns()
    text = find.userinfo.sub(f"://{MASK}@", find.password.sub(_without_password, text))
    if cut_url := find.cut_url.match(text, max(0, text.rfind("://"))):
        text = f"{text[: cut_url.start()]}://{MASK}@"
    text = find.token.sub(rf"\1{MASK}", text)
    # Of the same length: only this letter becomes two.
    lower = text.replace("\u0130", "i").lower()
    pieces, at = [], 0
    while found := find.name.search(lower, at):
        start, end = found.end(), find.end_of_value(text, found)
        pieces += [text[at:start], MASK if end > start else ""]
        at = end
    return "".join([*pieces, text[at:]])


def cut(text: str) -> str:
    """The text, or its first MAX_TEXT characters and ``…``."""
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


class _Patterns:
    """How `masked_text` finds names and values.

    No pattern repeats a group, and none can fail after it has read far: that would take quadratic time, or much memory.
    """

    def __init__(self) -> None:
        # Literal first characters, without IGNORECASE, are what the engine skips to quickly.
        parts = "|".join(sorted(_SECRET_PARTS - {"auth", "key", "token"}))
        words = "|".join(rf"{word}(?<![^\W_]{word})(?![^\W_])" for word in sorted(_SECRET_WORDS))
        self.userinfo = re.compile(r"://[^\s/?#\"'<>]*@")
        # Passwords are not always quoted as a URL needs it. It matches without the "@", so that it does not fail late.
        self.password = re.compile(r"://[^\s/?#\"'<>:\[]*:[^\s\"']*")
        # At the end of the text, which may have been cut; but not a port.
        self.cut_url = re.compile(r"://[^\s/?#\"'<>:\[]*:(?!\d*(?:[/?#]|\Z))[^\s\"'@]+\Z")
        beginnings = [
            *(rf"{one}(?<![^\W_]{one})(?=[A-Za-z0-9]{{12}})" for one in _TOKENS.split()),
            *(rf"{one}(?<![^\W_]{one})(?=[\w-]{{12}})" for one in map(re.escape, _ODD_TOKENS.split())),
            *map(re.escape, _WEBHOOKS.split()),
        ]
        self.token = re.compile(rf"({'|'.join(beginnings)})[\w./-]+(?::[\w-]+)?")
        self.name = re.compile(
            r"(?P<pem>-----begin [a-z ]{0,20}private key-----)|(?P<scheme>bearer[ \t]+(?=[^\s:=]))|"
            rf"(?P<name>(?:auth(?!or(?!i))|key(?!board|word)|token(?!iz)|{parts}|{words})[\w.-]*)"
            # The quote at the end of a name, or the bracket of a form's field; then what stands before a value.
            r"(?P<quote>\\*[\"'])?\]?(?P<separator>"
            r"\s*(?:[:=!]?=+>?|(?:-?>|:)(?:[ \t]*\r?\n(?=[ \t]))?|%3d|%3a)[ \t]*(?:\s*(?=\\*[\"']))?|"
            r"(?<=[\"'])\s*,\s*(?=[bru]?\\*[\"'])|[ \t]+(?=[^\s=:-]))?"
        )
        self.option = re.compile(r"(?:^|[\s\"'])--?[\w-]*$")
        self.tag = re.compile(r"<(/?)[\w:.-]*\Z")
        self.host = re.compile(r"://[\w.-]*$")
        self.telling = re.compile(r"(?:none|null|true|false|\*\*\*)(?![^\s,;&)}\]\"'])", re.IGNORECASE)
        self.count = re.compile(r"\d{1,6}(?![^\s,;&)}\]\"'])")
        self.opening_quote = re.compile(r"[bruf]{0,2}(\\*)(\"\"\"|'''|[\"'])", re.IGNORECASE)
        self.quotes = re.compile(r"[\"']|\\.", re.DOTALL)
        self.opening_bracket = re.compile(r"[\w.]{0,100}[\[({<]")
        self.brackets = re.compile(r"[\[({<\])}>\"']|\\.", re.DOTALL)
        self.authentication = re.compile(r"(?:bearer|basic|digest|negotiate|token)[ \t]+", re.IGNORECASE)
        self.after_word = re.compile(r"[\s&;]|[\"'<>](?=[,:}\])\s&;]|\Z)|\Z")
        self.after_item = re.compile(r"[\s,}\])]|\Z")
        self.after_element = re.compile(r"[<\r\n]|\Z")
        self.after_line = re.compile(r"[\r\n]|\Z")

    def end_of_value(self, text: str, found: re.Match[str]) -> int:
        """Where the value ends that begins where the name has been `found`; its beginning if there is none to mask."""
        start = found.end()
        if found["pem"]:
            end = text.find("-----END", start)
            return len(text) if end < 0 else end
        if found["scheme"]:
            return self._trimmed(text, start, self.after_word)
        name, separator = text[found.start("name") : found.end("name")], (found["separator"] or "").strip()
        before = text[max(0, found.start() - 40) : found.start()]
        if not separator and (not found["separator"] or not self.option.search(before)):
            return start
        if separator == ":" and (name.endswith(_KINDS_OF_ERROR) or self.host.search(before)):
            return start
        tag = self.tag.search(before) if separator == ">" else None
        if separator == ">" and (tag or found["quote"]):
            # What follows "<class 'Token'>" or "</token>" is no value.
            return self._end(text, start, self.after_element) if tag and not tag[1] else start
        if self.telling.match(text, start) or (name.lower().endswith(_PLURALS) and self.count.match(text, start)):
            return start
        if quote := self.opening_quote.match(text, start):
            return self._end_of_quoted(text, quote)
        if found["quote"] is None and (separator == ":" or "cookie" in name.lower() or "authoriz" in name.lower()):
            return self._end(text, start, self.after_line)
        if bracket := self.opening_bracket.match(text, start):
            return self._end_of_nested(text, bracket)
        if found["quote"]:
            return self._end(text, start, self.after_item)
        if authentication := self.authentication.match(text, start):
            return self._trimmed(text, authentication.end(), self.after_word)
        return self._trimmed(text, start, self.after_word)

    def _end(self, text: str, start: int, after: re.Pattern[str]) -> int:
        found = after.search(text, start)
        return found.start() if found else len(text)

    def _trimmed(self, text: str, start: int, after: re.Pattern[str]) -> int:
        """The end without the punctuation of what is around the value."""
        word = text[start : self._end(text, start, after)]
        return start + len(word.rstrip("\"'>)]},.") or word)

    def _end_of_quoted(self, text: str, quote: re.Match[str]) -> int:
        """The end of the text, if the quotes have none, as in a text that has been cut."""
        if quote[1]:
            end = text.find(quote[1] + quote[2], quote.end())
            return len(text) if end < 0 else end + len(quote[1] + quote[2])
        for found in self.quotes.finditer(text, quote.end()):
            if found[0] == quote[2][0] and text.startswith(quote[2], found.start()):
                return found.start() + len(quote[2])
        return len(text)

    def _end_of_nested(self, text: str, bracket: re.Match[str]) -> int:
        """The end of the text, if the brackets are never closed."""
        depth, quote = 1, ""
        for found in self.brackets.finditer(text, bracket.end()):
            mark = found[0]
            if quote or mark in "\"'":
                quote = "" if mark == quote else quote or mark
            elif mark in "[({<":
                depth += 1
            elif mark in "])}>":
                depth -= 1
                if not depth:
                    return found.end()
        return len(text)


def _without_password(found: re.Match[str]) -> str:
    """A URL with ``***`` in place of what is before its last ``@``."""
    _, at, rest = found[0].rpartition("@")
    return f"://{MASK}@{rest}" if at else found[0]


@functools.cache
def _patterns() -> _Patterns:
    return _Patterns()


def _named(names: list[str], params: Params) -> Mapping[str, Any]:
    if isinstance(params, Mapping):
        return params
    return {names[n] if n < len(names) else str(n + 1): value for n, value in enumerate(params)}


def _shown(value: Any) -> Any:
    """A JSON value, or the beginning of its text."""
    if isinstance(value, list):
        value = [_flat(item) for item in value[:MAX_TEXT]]
    value = _flat(value) if isinstance(value, Mapping) else value
    text = value if isinstance(value, str) else json.dumps(value)
    return value if len(text) <= MAX_TEXT else cut(text)


def _flat(item: Any) -> Any:
    # No command takes objects, or arrays of arrays; what they hold could be secret, and go deep.
    if isinstance(item, (list, Mapping)):
        return "…"
    return cut(item) if isinstance(item, str) else item
