"""The git commit of a directory, read from git's files (gitrepository-layout(5)) without its program."""

from __future__ import annotations

import contextlib
import os
import re
import stat

MAX_DEPTH = 40
"""Directories above that may hold the repository."""

MAX_REF, MAX_PACKED_REFS = 1024, 1 << 20
"""Bytes that are read of a small file, and of the file of all packed references."""

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REF = re.compile(r"refs/[^\0\n]*")


def git_commit(directory: str) -> str | None:
    """The commit that is checked out in a directory, by its full name; None if that is no part of a repository.

    As with git, a repository that belongs to another user than the caller, root or the owner of the directory does not
    count: anyone may have put one into a shared directory above.
    """
    try:
        owners = {os.geteuid(), 0, os.stat(directory).st_uid}
    except (OSError, AttributeError):
        return None
    place = directory
    for _ in range(MAX_DEPTH):
        found = os.path.join(place, ".git")
        with contextlib.suppress(OSError):
            return _commit(_repository(found)) if os.stat(found).st_uid in owners else None
        if place == os.path.dirname(place):
            return None
        place = os.path.dirname(place)
    return None


def _repository(found: str) -> str:
    """The directory of a repository; of a linked worktree or a submodule a file names it."""
    if os.path.isdir(found):
        return found
    name = _read(found, MAX_REF).strip().removeprefix("gitdir: ")
    return os.path.join(os.path.dirname(found), name)


def _commit(repository: str) -> str | None:
    head = _read(os.path.join(repository, "HEAD"), MAX_REF).strip()
    if _COMMIT.fullmatch(head):
        return head
    ref = head.removeprefix("ref: ")
    if not _REF.fullmatch(ref) or ".." in ref:
        return None
    common = os.path.join(repository, _read(os.path.join(repository, "commondir"), MAX_REF).strip())
    for place in (repository, common):
        commit = _read(os.path.join(place, ref), MAX_REF).strip()
        if _COMMIT.fullmatch(commit):
            return commit
    for line in _read(os.path.join(common, "packed-refs"), MAX_PACKED_REFS).splitlines():
        commit, _, name = line.partition(" ")
        if name == ref and _COMMIT.fullmatch(commit):
            return commit
    return None


def _read(path: str, limit: int) -> str:
    """The text of a regular file, "" if it can't be read."""
    try:
        # The other end of a FIFO may never come.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError):
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return os.read(descriptor, limit).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
