"""Futures that follow other Futures. The steps run in the thread that completes the first one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from ..errors import TimedOut
from ..system.native import is_patched, new_future

T = TypeVar("T")

POLL = 0.005
"""Seconds between two looks of a greenlet."""


def then(future: Future[Any], step: Callable[[Any], Any]) -> Future[Any]:
    """A Future of what `step` returns, or raises, for the other's result. An exception of the other is passed on."""
    following: Future[Any] = new_future()

    def done(future: Future[Any]) -> None:
        try:
            following.set_result(step(future.result()))
        except Exception as error:
            following.set_exception(error)

    future.add_done_callback(done)
    return following


def chain(future: Future[Any], step: Callable[[], Future[Any]]) -> Future[Any]:
    """A Future of what the Future of `step` gets, which is called when the other is done. Exceptions are passed on."""
    following: Future[Any] = new_future()

    def pass_on(future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            following.set_result(future.result())
        else:
            following.set_exception(error)

    def go_on(future: Future[Any]) -> None:
        try:
            future.result()
            step().add_done_callback(pass_on)
        except Exception as error:
            following.set_exception(error)

    future.add_done_callback(go_on)
    return following


def settled(future: Future[T], on_error: Callable[[BaseException], T]) -> Future[T]:
    """A Future that always gets a result: the other's, or what `on_error` makes of its exception."""
    following: Future[T] = new_future()

    def done(future: Future[T]) -> None:
        try:
            result = future.result()
        except BaseException as error:
            result = on_error(error)
        following.set_result(result)

    future.add_done_callback(done)
    return following


def gather(futures: Sequence[Future[T]]) -> Future[list[T]]:
    """A Future of the results of settled ones, in their order, once the last of them is done."""
    gathered: Future[list[T]] = new_future()
    if not futures:
        gathered.set_result([])
    # Futures are done in several threads; `next` of a count is one step, so that only one of them is the last.
    left = itertools.count(len(futures) - 1, -1)

    def done(_future: Future[T]) -> None:
        if next(left) == 0:
            gathered.set_result([future.result() for future in futures])

    for future in futures:
        future.add_done_callback(done)
    return gathered


def wait_in_app(future: Future[T], timeout: float) -> T:
    """In a thread or greenlet of the app's: the result, or TimedOut after so many seconds. Other greenlets go on."""
    deadline = time.monotonic() + timeout
    while is_patched() and not future.done() and time.monotonic() < deadline:
        time.sleep(POLL)
    try:
        # Not the built-in one before Python 3.11.
        return future.result(max(0.0, deadline - time.monotonic()))
    except FutureTimeout:
        raise TimedOut(f"there was no answer within {timeout:g} s") from None
