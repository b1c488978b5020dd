"""Workers that end after a number of requests: there may be a moment without one, and everything is answered."""

from __future__ import annotations

import pytest
from harness import Serve, until
from manyworkers import Load
from servers import SERVERS


@pytest.mark.parametrize(
    ("name", "times"),
    [("gunicorn sync, 1 worker", 40), pytest.param("gunicorn sync", 40, marks=pytest.mark.full)],
)
def test_status_commands_and_reloads_are_answered_while_workers_come_and_go(
    start: Serve, name: str, times: int
) -> None:
    server = start(SERVERS[name], "--max-requests", "20")
    first = {worker["pid"] for worker in server.status()["workers"]}
    with Load(server.address, clients=1) as load:
        for number in range(times):
            status = server.status()
            assert status["server"]["name"] == "gunicorn"
            assert status["workers_expected"] == SERVERS[name].workers
            if number % 10 == 0:
                assert all(
                    "result" in answer or "has ended" in str(answer) for answer in server.call("greet", name="x")
                )
            if number % 40 == 0:
                assert server.reload()["cut"] == 0
        load.stop()
    assert not load.lost

    def counted() -> tuple[int, int]:
        requests = server.status()["requests"]
        return requests["in_flight"], requests["total"]

    # A client has its answer before its request has ended. The last counts of a worker that ends come with its end.
    until(lambda: counted() == (0, len(load.bodies)), "all are counted")
    status = server.status()
    assert status["generation"] == 1 + times // 40
    assert not first & {worker["pid"] for worker in status["workers"]}
