"""What comes from several sources at the same time, as one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

MAX_WAITING = 10_000
"""Items that wait to be taken; then the sources wait."""


class _End(NamedTuple):
    """A source has no more, or has failed."""

    failure: Exception | None = None


def merged(sources: Sequence[Callable[[], Iterable[T]]]) -> Iterator[T]:
    """What comes from each source, each read by a thread of its own, until all have ended. Raises what one raises."""
    items: queue.Queue[T | _End] = queue.Queue(MAX_WAITING)

    def read(source: Callable[[], Iterable[T]]) -> None:
        try:
            for item in source():
                items.put(item)
            items.put(_End())
        except Exception as error:
            # A fault of this program must not leave the others waiting.
            items.put(_End(error))

    for source in sources:
        # They do not keep the program from ending, at Ctrl-C or when nothing more can be written.
        threading.Thread(target=read, args=(source,), daemon=True).start()
    left = len(sources)
    while left:
        item = items.get()
        if not isinstance(item, _End):
            yield item
        elif item.failure is not None:
            raise item.failure
        else:
            left -= 1
