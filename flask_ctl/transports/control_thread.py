"""The side thread: it owns the control sockets, and answers what arrives there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ..dispatch.replies import ReplyTo
from ..errors import ConfigurationError
from ..system.fork import Step, in_child
from ..system.native import threading
from ..system.reserve import reserve
from .base import Handler, Listener
from .reactor import Reactor
from .stream import FLUSH_TIMEOUT

TICK = 2.0
"""Seconds between two looks at what is overdue; a removed socket file is back within that time."""

MAX_BACKOFF = 5.0
"""Seconds before another try, at the most, if the control thread fails again and again."""

logger = logging.getLogger("flask_ctl")


class ControlServer:
    """Serves some listeners from one daemon thread, from `start` to `close`.

    If the thread's loop fails it is logged and counted in `restarts`; the connections are lost, the addresses are not.
    """

    def __init__(self, name: str = "flask-ctl") -> None:
        self.restarts = 0
        self.on_restart: Callable[[], Any] = lambda: None
        """Called on the control thread after a failure, when it goes on."""
        self._name = name
        self._listeners: list[tuple[Listener, Handler]] = []
        self._chores: list[tuple[Callable[[], Any], float]] = []
        self._reactor = Reactor()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._close_lock = threading.Lock()
        self._thread_has_ended = False
        self._released = False
        self._reserved = False

    @property
    def endpoints(self) -> list[str]:
        """The addresses at which clients connect."""
        return [listener.endpoint for listener, _ in self._listeners if not listener.connects_out]

    def start(self, listeners: Sequence[tuple[Listener, Handler]]) -> None:
        """Open every listener, then serve. Raises ConfigurationError, with nothing left open, if one can't be."""
        try:
            for listener, handler in listeners:
                self.open(listener, handler)
        except ConfigurationError:
            self.close()
            raise
        self.serve()

    def open(self, listener: Listener, handler: Handler) -> None:
        """Open one more listener, before `serve`. Raises ConfigurationError, and leaves the others open."""
        listener.open()
        self._listeners.append((listener, handler))

    def on_tick(self, chore: Callable[[], Any], interval: float = TICK) -> None:
        """Before `serve`: have the thread do it every TICK, or at another interval of seconds."""
        self._chores.append((chore, interval))

    def add(self, listener: Listener, handler: Handler) -> None:
        """On the control thread: open one more listener, and serve it. Raises like `open`."""
        self.open(listener, handler)
        listener.attach(self._reactor, handler)
        self._reactor.every(TICK, listener.tick)

    def serve(self) -> None:
        """Start the thread."""
        reserve.open()
        self._reserved = True
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        in_child(Step.DESCRIPTORS, self.abandon)

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call on the control thread, in order. Any thread and any signal handler may ask."""
        self._reactor.call_soon(function, *arguments)

    def call_later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> None:
        """On the control thread: call there after so many seconds."""
        self._reactor.call_later(seconds, function, *arguments)

    def flush(self) -> None:
        """From another thread: wait until the clients have what was answered up to now, or FLUSH_TIMEOUT has passed."""
        if self._thread_has_ended:
            # `close` hands over what these calls write.
            self.finish_calls()
            return
        flushed = threading.Event()

        def flush() -> None:
            for listener, _ in self._listeners:
                listener.flush(FLUSH_TIMEOUT)
            flushed.set()

        # In two steps: the answer to the call that is being handled is queued only when it has returned.
        self.call_soon(self.call_soon, flush)
        flushed.wait(FLUSH_TIMEOUT)

    def finish(self, exit_process: Callable[[], Any]) -> None:
        """On the control thread: hand over the last answers, remove the socket files, end the process."""
        self._flush_and_close()
        exit_process()

    def close(self) -> None:
        """Hand over the last answers, give up the addresses, end the thread; more than once is fine."""
        self._end_thread()
        self._release()

    def end_thread(self) -> None:
        """End the thread; whatever was to be called there is called, and its state belongs to the caller's thread."""
        self._end_thread()
        self._thread_has_ended = True
        self.finish_calls()

    def finish_calls(self) -> None:
        """After `end_thread`: make the calls that have been asked for since."""
        try:
            self._reactor.finish_calls()
        except Exception:
            self.restarts += 1
            logger.exception("a call on the control thread failed when the thread had ended")

    def export_state(self) -> list[dict[str, Any]]:
        """After `end_thread`: the state of each control socket, which the next image of this process inherits."""
        states = [_exported(listener) for listener, _ in self._listeners]
        self._release()
        return [state for state in states if state is not None]

    def answer_caller(self, reply: Callable[[ReplyTo], bytes]) -> None:
        """Give the reply that the previous image owed to the caller of the reload."""
        for listener, _ in self._listeners:
            self.call_soon(listener.answer_caller, reply)

    def abandon(self) -> None:
        """In a forked child, which has no such thread: close its copies of our descriptors."""
        for listener, _ in self._listeners:
            listener.abandon()
        self._listeners = []
        self._thread = None
        self._released = True
        self._reactor.close()

    def _end_thread(self) -> None:
        self._closing.set()
        self._reactor.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        backoff = 0.05
        while not self._closing.is_set():
            try:
                if self.restarts:
                    self._renew()
                    self.on_restart()
                self._attach()
                self._reactor.run()
                return
            except Exception:
                self.restarts += 1
                logger.exception("the control thread failed; it is being restarted")
            self._closing.wait(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF)

    def _attach(self) -> None:
        for listener, handler in self._listeners:
            listener.attach(self._reactor, handler)
            self._reactor.every(TICK, listener.tick)
        for chore, interval in self._chores:
            if interval == TICK:
                self._reactor.every(TICK, chore)
            else:
                self._repeat(chore, interval)

    def _repeat(self, chore: Callable[[], Any], interval: float) -> None:
        self._reactor.call_later(interval, self._repeat, chore, interval)
        chore()

    def _renew(self) -> None:
        for listener, _ in self._listeners:
            listener.detach()
        self._reactor.renew()

    def _flush_and_close(self) -> None:
        for listener, _ in self._listeners:
            listener.flush(FLUSH_TIMEOUT)
            listener.close()

    def _release(self) -> None:
        with self._close_lock:
            if not self._released:
                self._released = True
                self._flush_and_close()
                self._reactor.close()
                if self._reserved:
                    reserve.close()


def _exported(listener: Listener) -> dict[str, Any] | None:
    """What a listener leaves; the reload goes on without it, and the next image opens it anew, if that fails."""
    try:
        return listener.export_state()
    except Exception:
        logger.exception("%s can't be handed over; its clients get no answer", listener.endpoint)
        return None
