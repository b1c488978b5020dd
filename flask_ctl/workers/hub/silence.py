"""Why a worker does not answer a question about itself."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ...errors import TimedOut
from ...inspection.questions import Answer
from ...system.native import new_future, start_thread
from ...system.stuck import why_silent


def explained(answers: Future[list[Answer]], call_soon: Callable[..., Any]) -> Future[list[Answer]]:
    """The answers, in which each TimedOut says what the kernel knows of the worker, also as ``data["stuck"]``.

    Asking the kernel takes a moment, in a thread of its own, which `call_soon` leaves.
    """
    result: Future[list[Answer]] = new_future()

    def go_on(done: Future[list[Answer]]) -> None:
        answered = done.result()
        silent = [pid for pid, value in answered if isinstance(value, TimedOut)]
        if silent:
            try:
                start_thread(lambda: call_soon(result.set_result, _explain(answered, why_silent(silent))))
                return
            except RuntimeError:
                """The system has no threads left: the answers stay as they are."""
        result.set_result(answered)

    answers.add_done_callback(go_on)
    return result


def _explain(answers: list[Answer], found: dict[int, dict[str, Any]]) -> list[Answer]:
    return [
        Answer(pid, TimedOut(f"{value.message}: {found[pid]['text']}", {"stuck": found[pid]}))
        if pid in found and isinstance(value, TimedOut)
        else Answer(pid, value)
        for pid, value in answers
    ]
