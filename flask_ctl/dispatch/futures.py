"""Futures that follow other Futures. The steps run in the thread that completes the first one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..system.native import new_future


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
