"""The directory in which the program is started anew: where the next release is, and not where this one was.

A release is often a directory of its own, and a symlink that is switched leads to the current one. The kernel
resolves it when a process goes there, so only the name of the directory, symlinks unresolved, leads to the next
release. Somebody has to give that name: an option, a setting, or the shell by ``$PWD``. systemd sets none, and a shell
that it starts knows no more than the resolved one. Then the symlinks nearby that led here at the start are remembered,
so that a reload is refused, and does not load the old release once more, when one of them has been switched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigurationError, ReloadFailed

ENVIRONMENT = "FLASK_CTL_DIRECTORY"

MAX_ENTRIES = 1000
"""Entries of the directories nearby that are looked at."""

REMEDY = f"stop it, and start it with {ENVIRONMENT}={{link}}, or by flask-ctl run --directory {{link}}"


def current_directory() -> str:
    """The working directory, empty if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


@dataclass(frozen=True)
class StartDirectory:
    """Where this image was started, and where the next one will be. The hub gets it as JSON."""

    path: str
    """Where the next one will be, symlinks unresolved."""
    real: str
    """Where this one was started, resolved."""
    links: list[list[str]] = field(default_factory=list)
    """Symlinks that led here, but are not followed, each with the rest of the way behind it."""
    remedy: str = REMEDY
    """What has to be done for a link to be followed."""

    def check(self) -> None:
        """Raises ReloadFailed if one of the links leads elsewhere than the next image would be started."""
        would_be = os.path.realpath(self.path)
        for link, rest in self.links:
            if not os.path.lexists(link):
                continue
            name = os.path.join(link, rest) if rest else link
            target = os.path.realpath(name)
            if target != would_be:
                raise ReloadFailed(
                    f"the code would be loaded from {would_be} again, but {link} leads to {target} by now:"
                    f" {self.remedy.format(link=name)}",
                    {"traceback": "", "directory": would_be, "link": link, "target": target},
                )


class Origin:
    """The directory of the process when it was started, and the names that it had then."""

    def __init__(self, pwd: str | None) -> None:
        try:
            self.real = os.getcwd()
        except OSError:
            # Removed meanwhile.
            self.real = pwd or os.sep
        self.name = _other_name(pwd, self.real)
        """Its name for the shell, if there are symlinks on that way; else None."""
        self._links = [] if self.name else links_to(self.real)

    def for_program(self, given: str | None = None) -> StartDirectory:
        """For a program that this process executes anew: in the directory that was `given`, else in the shell's."""
        path = given or self.name
        return StartDirectory(self.real, self.real, self._links) if path is None else StartDirectory(path, self.real)

    def for_server(
        self, path: str, given: str | None = None, *, remedy: str, real: str | None = None
    ) -> StartDirectory:
        """For a server that loads the code from `path`, now resolved to `real`, and follows no other name."""
        real = os.path.realpath(path) if real is None else real
        name = given or self.name
        return StartDirectory(path, real, self._links if name is None else [[name, ""]], remedy)


def directory_given(setting: Any) -> str | None:
    """The directory by FLASK_CTL_DIRECTORY, else by a setting of the app. Raises ConfigurationError if it is relative.

    From the next release's directory it would lead elsewhere.
    """
    given = os.environ.get(ENVIRONMENT) or setting
    if not given:
        return None
    try:
        path = os.fsdecode(given)
    except TypeError:
        path = ""
    if not os.path.isabs(path):
        raise ConfigurationError(f"{ENVIRONMENT} and CTL_DIRECTORY are absolute paths, not {given!r}")
    return path


def links_to(directory: str) -> list[list[str]]:
    """Symlinks in the parent and the grandparent of a resolved directory that lead to it, or to its own parent.

    Each with the rest of the way to the directory.
    """
    parent = os.path.dirname(directory)
    places = dict.fromkeys([parent, os.path.dirname(parent)])
    found = []
    entries = itertools.chain.from_iterable(map(_entries, places))
    for entry in itertools.islice(entries, MAX_ENTRIES):
        try:
            is_link = entry.is_symlink()
        except OSError:
            continue
        if not is_link:
            continue
        target = os.path.realpath(entry.path)
        if target == directory:
            found.append([entry.path, ""])
        elif target == parent and os.path.dirname(entry.path) != parent:
            found.append([entry.path, os.path.basename(directory)])
    return found


def _entries(place: str) -> Iterator[os.DirEntry[str]]:
    # One that may not be read, or is gone, holds no link that we could remember.
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        yield from entries


def _other_name(pwd: str | None, real: str) -> str | None:
    """The shell's name of the working directory, if it is another one than the resolved."""
    try:
        if pwd and os.path.isabs(pwd) and pwd != real and os.path.samefile(pwd, real):
            return pwd
    except OSError:
        # What the variable names is gone, or was never there.
        return None
    return None
