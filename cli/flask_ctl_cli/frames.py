"""The traceback of a refused reload, without the frames of Python and of packages."""

from __future__ import annotations

import os
import re

_FRAME = re.compile(
    r'^  File "(?P<file>[^"\n]+)", line \d+, in .*\n(?: {4}.*\n|  \[Previous line repeated .*\n)*', re.MULTILINE
)
"""One frame: its file, its source line and the marks below it. A syntax error has no "in": it is always shown."""

_PACKAGE = re.compile(r"/(?:site|dist)-packages/|/lib/python3[\d.]*/|/<frozen ")
"""Of a path: a virtual environment may lie in the app's directory, which may be the root directory."""


def without_foreign_frames(text: str, directory: str) -> str:
    """The output of new code, with only those frames of its tracebacks whose files lie below the app's `directory`.

    The last line counts the others. The text is unchanged if no frame lies there.
    """

    def is_ours(frame: re.Match[str]) -> bool:
        file = os.path.normpath(os.path.join(directory, frame["file"]))
        return file.startswith(directory.rstrip("/") + "/") and not _PACKAGE.search(file)

    text = text.rstrip() + "\n"
    frames = list(_FRAME.finditer(text))
    hidden = sum(not is_ours(frame) for frame in frames)
    if not directory or hidden in (0, len(frames)):
        return text
    shown = _FRAME.sub(lambda frame: frame[0] if is_ours(frame) else "", text)
    return f"{shown}({hidden} {'frame' if hidden == 1 else 'frames'} outside of {directory} hidden; --json has all)\n"
