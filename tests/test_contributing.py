"""The recipes of CONTRIBUTING.md work as they are written there."""

from __future__ import annotations

import os
import pathlib
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from harness import PYTHON, Pending, Serve, until
from wires import GUARD, Peer, StreamTalk, Wire, memory_wire, request

from flask_ctl import CommandError

PAGE = (pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def recipe(title: str) -> str:
    """The code of a recipe."""
    _, _, section = PAGE.partition(f"\n### {title}\n")
    [code] = re.finditer(r"```python\n(.*?)```", re.split(r"\n##+ ", section)[0], re.DOTALL)
    return code[1]


@pytest.fixture
def peer(tmp_path: pathlib.Path) -> Iterator[Peer]:
    """A control server in this process."""
    peer = Peer(memory_wire(tmp_path, 0))
    yield peer
    peer.close()


def test_a_command_is_listed_and_called(peer: Peer) -> None:
    exec(recipe("Add a command"), {"registry": peer.registry})
    with peer.client() as client:
        assert client.call("uptime", unit="minutes")["minutes"] > 0
        with pytest.raises(CommandError, match="unit"):
            client.call("uptime", unit="years")


def test_a_transport_answers() -> None:
    namespace: dict[str, Any] = {}
    exec(recipe("Add a transport"), namespace)
    name = f"flask-ctl-{os.getpid()}"

    def talk() -> StreamTalk:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"\0{name}")
        return StreamTalk(sock)

    peer = Peer(Wire(namespace["AbstractListener"](name, GUARD), None, {}, talk))
    with peer.raw() as connection:
        connection.send(request("ping"))
        assert connection.receive()["result"]["pong"] is True
        peer.server.close()
        assert connection.ended()
    peer.close()


PROGRAM = """
import sample
from wsgiref.simple_server import make_server
make_server("127.0.0.1", 0, sample.app).serve_forever()
"""


def test_a_server_is_found_and_drained(serve: Serve, tmp_path: pathlib.Path) -> None:
    info = tmp_path / "wsgiref_adapter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wsgiref-adapter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flask_ctl.adapters]\nwsgiref = wsgiref_adapter\n")
    (tmp_path / "wsgiref_adapter.py").write_text(recipe("Add a server"))
    server = serve(command=[*PYTHON, "-c", PROGRAM], env={"PYTHONPATH": str(tmp_path)})
    assert server.status()["server"]["name"] == "wsgiref"
    held = server.begin("/hold/a")
    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "the stop")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0
