"""The directory in which the program is started again: that of the next release, not that of the running one.

Each release often has its own directory, and a symlink is switched to the current one. The kernel resolves the symlink
when a process changes to it, so only the unresolved name leads to the next release. That name comes from an option, a
setting, or the shell (``$PWD``). systemd sets no PWD, and a shell that it starts only knows the resolved name. In that
case the symlinks nearby that led here at the start are remembered. If one of them has been switched, a reload is
refused instead of loading the old release again.
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
"""The most directory entries that are checked."""

REMEDY = f"stop it, and start it with {ENVIRONMENT}={{link}}, or by flask-ctl run --directory {{link}}"


def current_directory() -> str:
    """The working directory, an empty string if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


@dataclass(frozen=True)
class StartDirectory:
    """Where this process image was started, and where the next one will be. Sent to the hub as JSON."""

    path: str
    """Where the next image will be started, symlinks unresolved."""
    real: str
    """Where this image was started, symlinks resolved."""
    links: list[list[str]] = field(default_factory=list)
    """Symlinks that led here at the start, but are not followed; each with the rest of the path below it."""
    remedy: str = REMEDY
    """What the user has to do for a link to be followed; ``{link}`` is replaced."""

    def check(self) -> None:
        """Raises ReloadFailed if a link leads to another directory than the one where the next image would start."""
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
    """The directory in which the process was started, and its names at that time."""

    def __init__(self, pwd: str | None) -> None:
        try:
            self.real = os.getcwd()
        except OSError:
            # It has been removed.
            self.real = pwd or os.sep
        self.name = _other_name(pwd, self.real)
        """The shell's name for it, if that contains symlinks; else None."""
        self._links = [] if self.name else links_to(self.real)

    def for_program(self, given: str | None = None) -> StartDirectory:
        """For a program that this process executes again: in the `given` directory, else in the shell's."""
        path = given or self.name
        return StartDirectory(self.real, self.real, self._links) if path is None else StartDirectory(path, self.real)

    def for_server(
        self, path: str, given: str | None = None, *, remedy: str, real: str | None = None
    ) -> StartDirectory:
        """For a server that always loads the code from `path`, which now resolves to `real`."""
        real = os.path.realpath(path) if real is None else real
        name = given or self.name
        return StartDirectory(path, real, self._links if name is None else [[name, ""]], remedy)


def directory_given(setting: Any) -> str | None:
    """The directory from FLASK_CTL_DIRECTORY, else from a setting of the app; it has to be absolute.

    Raises ConfigurationError for a relative path: in the next release's directory it would lead elsewhere.
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
    """``[link, rest]`` for each symlink near a resolved directory: ``link/rest`` is the directory.

    In its parent and grandparent to itself (`rest` is empty), in its grandparent to its parent.
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
    # A directory that is gone or unreadable has no links to remember.
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        yield from entries


def _other_name(pwd: str | None, real: str) -> str | None:
    """The shell's name of the working directory, None if it is the resolved one."""
    try:
        if pwd and os.path.isabs(pwd) and pwd != real and os.path.samefile(pwd, real):
            return pwd
    except OSError:
        # $PWD does not exist.
        return None
    return None
