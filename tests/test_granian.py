"""granian: one socket for the master and all its workers."""

from __future__ import annotations

import pytest
from manyworkers import Load
from servers import SERVERS


@pytest.mark.parametrize("keep", [False, True], ids=["", "keep-alive"])
def test_many_reloads_under_load_lose_nothing(start, program, keep):
    # The time for a new worker to serve before granian ends the old one.
    server = start(SERVERS["granian"], "--respawn-interval", "2")
    with Load(server.address, clients=2, keep=keep) as load:
        for number in range(2, 6):
            program.edit(f"v{number}")
            assert server.reload()["generation"] == number
    assert (load.lost, load.refused) == ([], 0)
    assert load.bodies[-1] == "v5"
