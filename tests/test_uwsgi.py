"""uWSGI: one socket for the master and all its workers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from harness import Program, Serve
from manyworkers import workers
from servers import SERVERS, Row, uwsgi

from flask_ctl import CommandError

UWSGI = SERVERS["uwsgi"]
OTHERS = {
    "lazy-apps, threads": uwsgi("--lazy-apps", "--threads", "2", "--module", "sample:app"),
    "decorators": uwsgi("--import", "uwsgidecorators", "--module", "sample:app"),
}


def test_mules_are_no_workers(start: Serve) -> None:
    assert len(start(UWSGI, "--mule").status()["workers"]) == 2


@pytest.mark.full
@pytest.mark.parametrize("row", OTHERS.values(), ids=OTHERS)
def test_a_reload_brings_the_new_code(start: Serve, program: Program, row: Row) -> None:
    server = start(row)
    before = workers(server)
    program.edit("new")
    assert server.reload()["generation"] == 2
    assert server.get("/version") == (200, b"new")
    assert not set(workers(server)) & set(before)
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


def test_an_app_that_uses_the_server_has_a_preflight_all_the_same(start: Serve, program: Program) -> None:
    server = start(UWSGI)
    program.edit("new", "import uwsgi\nuwsgi.register_signal(17, '', print)\nassert uwsgi.masterpid() > 0")
    assert server.reload()["generation"] == 2


def test_where_it_would_not_find_itself_again_a_reload_is_refused(start: Serve) -> None:
    server = start(replace(UWSGI, env={}))
    before = workers(server)
    with pytest.raises(CommandError, match="start it with PYTHONPATH=") as refusal:
        server.reload()
    assert refusal.value.code == -32001
    assert workers(server) == before
