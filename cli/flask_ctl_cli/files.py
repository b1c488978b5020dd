"""Files that a command writes for other programs."""

from __future__ import annotations

import contextlib
import os


def replace_file(path: str, content: bytes) -> None:
    """A reader sees all of it, or what was there before. Raises OSError."""
    temporary = f"{path}.{os.urandom(4).hex()}.new"
    # Never a file, or a link, that another user has put there: in /tmp everybody may. Its mode is that of any new file.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
