"""What a server remembers of its reloads, and shows to every observer in `status` and `history`."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from harness import Pending, Program, Serve, run_cli, until
from manyworkers import hub, kill
from servers import SERVERS

from flask_ctl import ControlError, NotRunning, ReloadFailed, ServerDied, TimedOut, render_result
from flask_ctl.client.confirm import Confirmation
from flask_ctl.dispatch.redaction import MAX_TEXT
from flask_ctl.lifecycle.history import MAX_ENTRIES, Code, History
from flask_ctl.system.revision import git_commit

CODE = Code("/srv/1", None)

REFUSED = "the new code was refused: it ended with exit code 1 before it served: "

ERRORS = {
    "KeyError: 'user'": "KeyError: 'user'",
    "OperationalError: password=hunter2": "OperationalError: password=***",
    "can't connect to postgresql://shop:hunter2@db/shop": "can't connect to postgresql://***@db/shop",
    "x" * 65536: "x" * (MAX_TEXT - len(REFUSED)) + "\u2026",
}


@pytest.mark.parametrize("line", ERRORS, ids=lambda line: line[:20])
def test_the_error_of_a_reload_is_kept_short_and_without_secrets(line: str) -> None:
    history = History()
    history.refused({"pid": 1}, 0.1, REFUSED + line, CODE)
    assert history.last_reload is not None
    assert history.last_reload["error"] == REFUSED + ERRORS[line]
    assert not history.last_reload["ok"]


def test_the_last_generations_are_kept_over_reloads() -> None:
    history = History()
    history.started(CODE)
    history.started(CODE)
    history.refused({"uid": 0}, 0.5, "no", CODE)
    following = History()
    following.restore_state(history.export_state())
    following.started(Code("/srv/2", "abc"))
    following.reloaded({"uid": 0}, 0.7, 1, Code("/srv/2", "abc"))
    following.lost(2)
    kept = [(entry["generation"], entry["outcome"], entry["directory"], entry["cut"]) for entry in following.entries]
    assert kept == [(1, "started", "/srv/1", 0), (1, "failed", "/srv/1", 0), (2, "reloaded", "/srv/2", 3)]
    assert following.entries[0]["at"] == history.started_at
    for _ in range(MAX_ENTRIES):
        following.reloaded({"uid": 0}, 0.1, 0, CODE)
    assert len(following.entries) == MAX_ENTRIES


# The commit


def git(directory: pathlib.Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always", *words]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(short_path: pathlib.Path) -> pathlib.Path:
    directory = short_path / "repository"
    directory.mkdir()
    git(directory, "init", "--quiet", "--initial-branch", "main")
    git(directory, "commit", "--quiet", "--allow-empty", "--message", "one")
    return directory


ARRANGE: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "a branch": lambda directory: directory,
    "a directory in it": lambda directory: directory / "shop",
    "a branch with a slash": lambda directory: (git(directory, "switch", "-qc", "fix/a"), directory)[1],
    "a detached head": lambda directory: (git(directory, "switch", "-q", "--detach"), directory)[1],
    "packed references": lambda directory: (git(directory, "pack-refs", "--all"), directory)[1],
    "a worktree": lambda directory: (git(directory, "worktree", "add", "-q", "../other"), directory.parent / "other")[
        1
    ],
}


@pytest.mark.parametrize("arrange", ARRANGE.values(), ids=ARRANGE)
def test_the_commit_is_what_git_says(repository: pathlib.Path, arrange: Callable[[pathlib.Path], pathlib.Path]) -> None:
    (repository / "shop").mkdir()
    assert git_commit(str(arrange(repository))) == git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("head", ["", "ref: refs/heads/none", "ref: ../../secret", "abc", "\0" * 2000])
def test_a_head_that_names_no_commit_is_none(repository: pathlib.Path, head: str) -> None:
    (repository / ".git" / "HEAD").write_text(head)
    assert git_commit(str(repository)) is None


def test_what_another_user_has_put_there_is_not_read(repository: pathlib.Path) -> None:
    os.unlink(repository / ".git" / "HEAD")
    os.mkfifo(repository / ".git" / "HEAD")
    assert git_commit(str(repository)) is None
    shutil.rmtree(repository / ".git")
    assert git_commit(str(repository)) is None
    assert git_commit("/nowhere") is None
    if os.geteuid() == 0:
        git(repository, "init", "--quiet")
        git(repository, "commit", "--quiet", "--allow-empty", "--message", "one")
        assert git_commit(str(repository))
        os.chown(repository / ".git", 65534, 65534)
        assert git_commit(str(repository)) is None


# Real servers


def outcomes(entries: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(entry["generation"], entry["outcome"]) for entry in entries]


@pytest.mark.full
def test_each_generation_has_its_directory_commit_and_author(serve: Serve, program: Program) -> None:
    git(program.directory, "init", "--quiet")
    git(program.directory, "commit", "--quiet", "--allow-empty", "--message", "one")
    server = serve("flask-ctl run", cwd=program.directory)
    first = git(program.directory, "rev-parse", "HEAD")
    git(program.directory, "commit", "--quiet", "--allow-empty", "--message", "two")
    program.edit("broken", "raise RuntimeError('no')")
    with pytest.raises(ReloadFailed):
        server.reload()
    program.edit("new")
    done = run_cli("reload", "--confirm", "0.1", "-s", server.socket)
    assert (done.returncode, "too little traffic to judge the new code: 0 errors in 0 requests in" in done.stdout) == (
        0,
        True,
    )
    with server.client() as client:
        answer = client.history()
    entries = answer["history"]
    assert outcomes(entries) == [(1, "started"), (1, "failed"), (2, "reloaded")]
    assert [entry["commit"] for entry in entries] == [first, first, git(program.directory, "rev-parse", "HEAD")]
    assert {entry["directory"] for entry in entries} == {os.path.realpath(program.directory)}
    assert "RuntimeError: no" in entries[1]["error"]
    assert entries[2]["by"]["uid"] == os.getuid()
    # With new code that fails more often than the code before it:
    reload = Pending.call(lambda: run_cli("reload", "--json", "--confirm", "2", "-s", server.socket))
    until(lambda: server.status()["generation"] == 3, "the new code")
    while not reload.done:
        assert server.get("/boom")[0] == 500
    done = reload.result()
    result = json.loads(done.stdout)
    assert (done.returncode, result["confirmed"]["ok"]) == (6, False)
    assert result["confirmed"]["after"]["rate"] > 0.5
    assert result["confirmed"]["before"]["errors"] == 0
    assert f"generation 2 was loaded from {entries[2]['directory']}" in render_result("reload", result)
    assert run_cli("reload", "--confirm", "1", "--config", "-s", server.socket).returncode == 2

    with server.client() as client:
        answer = client.history()
    done = run_cli("history", "-s", server.socket)
    assert done.stdout == render_result("history", answer)
    assert json.loads(run_cli("history", "--json", "-s", server.socket).stdout) == answer


def test_a_new_hub_knows_it_too(start: Serve) -> None:
    server = start(SERVERS["gunicorn sync, 1 worker"])
    server.reload()
    with server.client() as client:
        before = client.history()["history"]
        assert outcomes(before) == [(1, "started"), (2, "reloaded")]
        kill(hub(server))
        assert client.history()["history"] == before


# reload --confirm


def counted(total: int, errors: int, generation: int = 2, pid: int = 7) -> dict[str, Any]:
    """What `status` answers."""
    requests = {"total": total, "errors": errors, "in_flight": 0}
    return {"pid": pid, "generation": generation, "directory": f"/srv/{generation}", "requests": requests}


# What `status` answers before the reload, at its end, and at the end; and whether it is confirmed.
RATES: list[tuple[list[Any], Any]] = [
    ([counted(100, 0, 1), counted(110, 0), counted(210, 1)], True),
    ([counted(100, 0, 1), counted(110, 0), counted(210, 2)], False),
    ([counted(100, 5, 1), counted(110, 6), counted(210, 12)], True),
    ([counted(100, 5, 1), counted(110, 6), counted(210, 13)], False),
    ([counted(0, 0, 1), counted(0, 0), counted(0, 0)], None),
    ([counted(100, 9, 1), counted(100, 9), counted(100, 9)], None),
    ([counted(0, 0, 1), counted(0, 0), counted(1, 1)], False),
    ([counted(100, 0, 1), counted(100, 0), NotRunning("gone")], ServerDied),
    ([counted(100, 0, 1), ServerDied("died")], ServerDied),
    ([counted(100, 0, 1), counted(100, 0), TimedOut("silent")], ControlError),
    ([counted(100, 0, 1), counted(100, 0), counted(100, 0, 3)], ControlError),
    ([counted(100, 0, 1), counted(100, 0), counted(100, 0, 2, pid=8)], ControlError),
    ([TimedOut("silent")], ControlError),
]


@pytest.mark.parametrize(("answers", "expected"), RATES)
def test_the_rate_of_errors_may_rise_by_so_much(answers: list[Any], expected: Any) -> None:
    left = list(answers)

    def status() -> Any:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    reloaded = {"pid": 7, "generation": 2, "cut": 0}

    def watch() -> dict[str, Any]:
        return Confirmation(status, 0.001, 0.01).watch(reloaded, None)

    if expected in (True, False, None):
        result = watch()
        assert result["ok"] is expected
        assert (result["before"]["generation"], result["before"]["directory"]) == (1, "/srv/1")
    else:
        with pytest.raises(ControlError) as error:
            watch()
        assert type(error.value) is expected
        if len(answers) > 1:
            assert error.value.data["reload"] == reloaded


def test_an_answer_that_is_missing_meanwhile_does_not_end_the_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr("flask_ctl.client.confirm.time", clock)
    answers = [counted(100, 0, 1), TimedOut("silent"), counted(110, 0), TimedOut("silent")]

    def status() -> Any:
        answer = answers.pop(0) if answers else counted(210, 1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def on_progress(told: Mapping[str, Any]) -> None:
        assert told["phase"] == "confirm"

    confirmation = Confirmation(status, 4.0, 0.01)
    result = confirmation.watch({"pid": 7, "generation": 2, "old_left": 3}, on_progress)
    assert (result["ok"], result["after"]) == (True, {"requests": 100, "errors": 1, "rate": 0.01, "old_left": 3})
    told = render_result("reload", {"pid": 7, "generation": 2, "cut": 0, "elapsed": 1.0, "confirmed": result})
    figures = "1 error in 100 requests (1.00%) in 4.0 s, before 0 in 100 (0.00%)"
    assert told.splitlines()[1] == f"confirmed: {figures}, with those that 3 old workers finished"
