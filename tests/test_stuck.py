"""What the kernel tells of a process that does not answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Child, as_user, until

from flask_ctl.system import stuck
from flask_ctl.system.stuck import why_silent

PROGRAM = """
import ctypes, os, sys, threading, time

def tick():
    while True:
        time.sleep(0.01)

for _ in range(3):
    threading.Thread(target=tick, daemon=True).start()
lock = threading.Lock()
lock.acquire()
threading.Thread(target=lock.acquire, daemon=True).start()
{before}
print(threading.get_native_id(), flush=True)
sys.stdin.readline()
{act}
"""

HELD = {
    "sleeps": ("ctypes.PyDLL(None).sleep(3600)", {"computes": False, "system_call": "clock_nanosleep"}),
    "computes": ("sys.set_int_max_str_digits(0); str(1 << 400_000_000)", {"computes": True}),
}
"""C calls that keep the GIL, and what is seen of their thread."""


@pytest.fixture
def run() -> Iterator[Any]:
    children = []

    def run(act: str, before: str = "") -> Child:
        children.append(Child(sys.executable, "-c", PROGRAM.format(act=act, before=before)))
        children[-1].thread = int(children[-1].stdout.readline())  # type: ignore[attr-defined]
        children[-1].say("go")
        return children[-1]

    yield run
    for child in children:
        child.kill()
        child.communicate()


def found(child: Any, state: str) -> Any:
    """What is told of a process once it is in a state."""

    def look() -> Any:
        told = why_silent([child.pid])[child.pid]
        return told if told["state"] == state else None

    return until(look, state)


@pytest.mark.parametrize(("act", "thread"), HELD.values(), ids=HELD)
def test_the_thread_that_holds_the_interpreter_is_named(run: Any, act: str, thread: dict[str, Any]) -> None:
    child = run(act)
    told = until(lambda: (one := found(child, "held"))["waiting"] >= 3 and one["threads"] and one, "all three wait")
    [culprit] = told["threads"]
    assert culprit["thread_id"] == child.thread
    assert culprit.items() >= thread.items()
    assert (
        f"for the interpreter's lock (the GIL), which a C call seems to hold, perhaps that of thread {child.thread} ("
        in (told["text"])
    )
    assert told["text"].endswith(f": py-spy dump --pid {child.pid}")
    assert told["command"] == f"py-spy dump --pid {child.pid}"


def test_a_process_whose_interpreter_is_free_is_not_called_stuck(run: Any) -> None:
    child = run("sys.stdin.readline()")
    told = found(child, "free")
    assert told["waiting"] == 0
    assert told["text"].startswith(f"pid {child.pid}: no thread was seen to wait for the interpreter's lock (the GIL)")


def test_a_process_under_sigstop_was_stopped_by_a_signal(run: Any) -> None:
    child = run("sys.stdin.readline()")
    child.send_signal(signal.SIGSTOP)
    told = found(child, "stopped")
    assert told["threads"] == []
    assert told["text"] == f"pid {child.pid} was stopped by a signal; SIGCONT lets it go on"
    child.send_signal(signal.SIGCONT)


TRACER = """
import ctypes, sys, os
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
for thread in os.listdir(f"/proc/{pid}/task"):
    # PTRACE_ATTACH
    assert libc.ptrace(16, int(thread), None, None) == 0, ctypes.get_errno()
print("attached", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may always trace a process")
def test_of_a_process_that_a_debugger_has_stopped_the_debugger_is_named(run: Any) -> None:
    child = run("sys.stdin.readline()")
    with Child(sys.executable, "-c", TRACER, str(child.pid)) as tracer:
        assert tracer.stdout.readline() == "attached\n"
        assert f"pid {child.pid} was stopped by pid {tracer.pid}, which traces it" in found(child, "stopped")["text"]
        tracer.communicate("\n")


def test_on_a_machine_whose_system_calls_are_not_known_the_kernel_functions_tell(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stuck, "_SYSTEM_CALLS", {})
    child = run("sys.stdin.readline()")
    told = found(child, "free")
    assert {thread["system_call"] for thread in told["threads"]} <= {""}


def test_of_a_process_that_has_ended_nothing_is_told() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert why_silent([ended.pid]) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_that_has_changed_its_user_can_be_traced_by_root_only(run: Any) -> None:
    child = run("ctypes.PyDLL(None).sleep(3600)", "os.setgid(65534); os.setuid(65534)")
    told = found(child, "held")
    assert told["run_as"] == "root (the process has changed its user, so its own can't trace it)"
    assert f"its stacks, as {told['run_as']}: py-spy dump --pid {child.pid}" in told["text"]
    unseen = json.loads(as_user(65534, 65534, (), lambda: json.dumps(why_silent([child.pid])[child.pid]).encode()))
    assert (unseen["state"], unseen["threads"], unseen["run_as"]) == ("unknown", [], told["run_as"])
    assert unseen["text"].startswith(f"uid 65534 may not see where the threads of pid {child.pid} wait; its stacks")
