"""One contract for every transport: what a control server owes its clients, well-behaved or not."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import pytest
from harness import TIMEOUT, Pending, Program, Serve, Server, Site, first_quick, get, is_connected, until
from wires import WIRES, Peer, request

from flask_ctl import CommandError, ControlClient, ServerReloaded, TimedOut
from flask_ctl.dispatch.limits import MAX_CONNECTIONS, MAX_PENDING
from flask_ctl.protocol.framing import MAX_FRAME
from flask_ctl.system.handover import Handover


@pytest.fixture(params=WIRES)
def peer(request: pytest.FixtureRequest, short_path: pathlib.Path, free_port: int) -> Iterator[Peer]:
    peer = Peer(WIRES[request.param](short_path, free_port))
    yield peer
    peer.close()


def receive(talk: Any, count: int) -> dict[Any, Any]:
    """The next so many answers, by their ids."""
    answers = [talk.receive() for _ in range(count)]
    assert len({answer["id"] for answer in answers}) == count
    return {answer["id"]: answer for answer in answers}


def test_a_command_is_answered(peer: Peer) -> None:
    with peer.client() as client:
        assert client.call("echo", text="hello") == "hello"


def test_a_connection_is_kept_for_any_number_of_commands(peer: Peer) -> None:
    with peer.client() as client:
        assert [client.call("echo", text=str(n)) for n in range(100)] == [str(n) for n in range(100)]


def test_commands_sent_at_once_are_all_answered(peer: Peer) -> None:
    with peer.raw() as talk:
        sender = threading.Thread(target=lambda: talk.send(*(request("echo", n, text=str(n)) for n in range(500))))
        sender.start()
        sender.join()
        answers = receive(talk, 500)
    assert [answers[n]["result"] for n in range(500)] == [str(n) for n in range(500)]


def test_a_batch_is_answered_as_one(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(b"[" + request("ping", 1) + b"," + request("echo", 2, text="x") + b"]")
        assert [answer["id"] for answer in talk.receive()] == [1, 2]


def test_a_notification_is_not_answered(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(b'{"jsonrpc":"2.0","method":"ping"}', request("echo", 7, text="x"))
        assert talk.receive()["id"] == 7


def test_a_batch_of_notifications_is_not_answered(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(b'[{"jsonrpc":"2.0","method":"ping"}]', request("echo", 7, text="x"))
        assert talk.receive()["id"] == 7


def test_progress_comes_to_who_asked_for_it(peer: Peer) -> None:
    """The id says of what. It is no answer, so none of it is queued for a client that does not read."""
    with peer.raw() as talk:
        talk.send(request("steps", 1, count=3), request("steps", "a", count=3, _progress=True))
        messages = [talk.receive() for _ in range(5)]
    told = [message["params"] for message in messages if message.get("method") == "progress"]
    assert told == [{"id": "a", "step": step} for step in range(3)]
    assert {message["id"]: message["result"] for message in messages if "result" in message} == {1: 3, "a": 3}


@pytest.mark.parametrize("size", [1, 65536, MAX_FRAME - 100])
def test_big_results_arrive_whole(peer: Peer, size: int) -> None:
    with peer.client() as client:
        assert client.call("big", size=size) == "x" * size


def test_big_commands_arrive_whole(peer: Peer) -> None:
    text = "x" * (MAX_FRAME - 100)
    with peer.client() as client:
        assert client.call("echo", text=text) == text


def test_a_result_over_the_limit_is_an_error(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(request("big", size=MAX_FRAME))
        assert talk.receive()["error"]["code"] == -32603


@pytest.mark.parametrize(
    ("garbage", "code"),
    [
        (b"{nonsense", -32700),
        (b'{"jsonrpc":"2.0","method":"\xff"}', -32700),
        (b"[" * 100_000, -32700),
        (b"[]", -32600),
        (b'{"jsonrpc":"1.0","method":"ping","id":1}', -32600),
        (b'{"jsonrpc":"2.0","method":5,"id":1}', -32600),
        (b'{"jsonrpc":"2.0","method":"nope","id":1}', -32601),
        (b'{"jsonrpc":"2.0","method":"echo","id":1}', -32602),
        (b'{"jsonrpc":"2.0","method":"echo","params":{"text":5},"id":1}', -32602),
    ],
    ids=["not JSON", "not UTF-8", "deep", "empty batch", "version", "method", "unknown", "missing", "wrong type"],
)
def test_garbage_gets_its_error_and_the_connection_lives(peer: Peer, garbage: bytes, code: int) -> None:
    with peer.raw() as talk:
        talk.send(garbage)
        assert talk.receive()["error"]["code"] == code
        talk.send(request("echo", 2, text="still here"))
        assert talk.receive()["result"] == "still here"


def test_a_message_over_the_limit_ends_nothing_but_its_own_connection(peer: Peer) -> None:
    with peer.raw() as other:
        with peer.raw() as talk, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            talk.send(b"{" + b"x" * (2 * MAX_FRAME))
            with contextlib.suppress(EOFError):
                assert talk.receive()["error"]["code"] == -32600
            assert talk.ended()
        other.send(request("echo", text="x"))
        assert other.receive()["result"] == "x"
        assert peer.answers()


def test_commands_that_hang_lock_out_nobody(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(*(request("hang", n) for n in range(8)))
        assert peer.answers()
        talk.send(request("ping", "now"))
        assert talk.receive()["id"] == "now"
        peer.gate.set()
        assert {answer["result"] for answer in receive(talk, 8).values()} == {"released"}


def test_more_commands_than_may_be_pending_are_handled_later(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(*(request("hang", n) for n in range(2 * MAX_PENDING)))
        assert peer.answers()
        assert peer.pool.unfinished <= MAX_PENDING
        peer.gate.set()
        assert set(receive(talk, 2 * MAX_PENDING)) == set(range(2 * MAX_PENDING))


def test_commands_over_the_pools_limit_are_refused(peer: Peer) -> None:
    with peer.raw() as one, peer.raw() as other:
        one.send(*(request("hang", n) for n in range(MAX_PENDING)))
        until(lambda: peer.pool.unfinished == MAX_PENDING, "all are waiting")
        other.send(*(request("hang", n) for n in range(8)))
        assert [other.receive()["error"]["code"] for _ in range(4)] == [-32002] * 4
        peer.gate.set()


def test_a_client_that_does_not_read_holds_up_nobody_and_gets_everything_later(peer: Peer) -> None:
    """Far more than fits into any buffer on the way."""
    count = 16
    with peer.raw() as talk:
        talk.send(*(request("big", n, size=MAX_FRAME - 100) for n in range(count)))
        until(lambda: not peer.pool.unfinished, "it does what it can")
        assert peer.answers()
        assert {len(answer["result"]) for answer in receive(talk, count).values()} == {MAX_FRAME - 100}
        talk.send(request("echo", text="x"))
        assert talk.receive()["result"] == "x"


def test_who_sends_and_never_reads_fills_nothing(peer: Peer) -> None:
    """In the end nothing more is taken from it, or it is told that it was too much."""
    with peer.raw() as talk:
        sent = 0
        while sent < 64 * 1024 and talk.offer(request("big", sent, size=MAX_FRAME // 64)):
            sent += 1
        assert peer.answers()


def test_two_hundred_idle_clients_lock_out_nobody(peer: Peer) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(peer.raw())
        assert peer.answers()


def test_over_the_limit_of_connections_one_that_waits_for_its_answer_stays(peer: Peer) -> None:
    with contextlib.ExitStack() as stack:
        working = stack.enter_context(peer.raw())
        working.send(request("hang"))
        until(lambda: peer.pool.unfinished == 1, "it works")
        for _ in range(MAX_CONNECTIONS + 20):
            stack.enter_context(peer.raw())
        assert peer.answers()
        peer.gate.set()
        assert working.receive()["result"] == "released"


def test_over_the_limit_of_connections_the_one_idle_longest_gives_way(peer: Peer) -> None:
    with contextlib.ExitStack() as stack:
        talks = []
        for _ in range(MAX_CONNECTIONS):
            # One after the other: the connection by which the test saw the server begin may still count.
            talks.append(stack.enter_context(peer.raw()))
            talks[-1].send(request("ping"))
            assert talks[-1].receive()["result"]
        assert peer.answers()
        assert talks[0].ended()
        talks[-1].send(request("ping"))
        assert talks[-1].receive()["result"]


def test_many_clients_at_once_get_each_their_own(peer: Peer) -> None:
    def talk(number: int) -> list[Any]:
        with peer.client() as client:
            return [client.call("echo", text=f"{number} {n}") for n in range(25)]

    pending = [Pending.call(functools.partial(talk, number)) for number in range(10)]
    for number, each in enumerate(pending):
        assert each.result() == [f"{number} {n}" for n in range(25)]


def test_a_client_that_is_gone_before_its_answer_is_forgotten(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(request("hang"))
        until(lambda: peer.pool.unfinished == 1, "it hangs")
    peer.gate.set()
    assert peer.answers()


def test_a_client_that_vanishes_with_much_to_read_is_forgotten(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(*(request("big", n, size=MAX_FRAME - 100) for n in range(8)))
        talk.receive()
    assert peer.answers()
    until(lambda: not peer.pool.unfinished, "nothing goes on")


def test_a_timeout_leaves_the_connection_usable(peer: Peer) -> None:
    with peer.client() as client:
        # Else it may have been the beginning of the connection that took so long.
        client.ping(timeout=TIMEOUT)
        with pytest.raises(TimedOut, match=r"did not answer hang within 0\.05 s"):
            client.call("hang", timeout=0.05)
        peer.gate.set()
        assert client.call("echo", text="x", timeout=TIMEOUT) == "x"


def test_a_failure_of_the_control_thread_is_logged_counted_and_mended(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Exception):
        pass

    def fail() -> NoReturn:
        raise Broken

    assert peer.answers()
    peer.server.call_soon(fail)
    until(lambda: peer.server.restarts == 1, "a restart")
    assert peer.answers()
    assert "the control thread failed" in caplog.text


def test_what_a_reload_cuts_off_is_an_error_that_says_so_and_the_connection_ends(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(request("hang", 1), b"[" + request("hang", 2) + b"]")
        until(lambda: peer.pool.unfinished == 2, "they hang")
        peer.server.end_thread()
        Handover({"controls": peer.server.export_state()}).close_rest()
        error = ServerReloaded.before("hang")
        told = {"code": -32006, "message": error.message, "data": {"may_have_run": True}}
        assert [talk.receive(), talk.receive()[0]] == [{"jsonrpc": "2.0", "id": n, "error": told} for n in (1, 2)]
        assert talk.ended()


def test_closing_twice_is_fine(peer: Peer) -> None:
    peer.server.close()
    peer.server.close()


# The same with real servers: the ends of a process, and of an image of it.


def gone(server: Server) -> bool:
    """Whether the process has ended well; over TCP the end of the connection tells it a moment before."""
    return (server.wait() if server.socket.startswith("tcp:") else server.process.poll()) == 0


# ipc goes the same way as TCP with CURVE, but for the file, which has tests of its own.
over_both = pytest.mark.parametrize(
    "site", ["unix", "tcp with CURVE", pytest.param("ipc", marks=pytest.mark.full)], indirect=True
)
everywhere = pytest.mark.parametrize("site", first_quick(["unix", "tcp with CURVE", "ipc"]), indirect=True)


@everywhere
def test_the_methods_that_every_server_answers(serve: Serve, site: Site) -> None:
    server = serve(socket=site)
    with server.client() as client:
        assert client.ping()["pid"] == server.pid
        assert client.status()["control"]["sockets"] == [site.socket]
        assert {"ping", "status", "stop", "reload", "commands", "greet"} <= set(client.commands())
        assert client.call("greet", name="you") == {"greeting": "hello you"}


@everywhere
def test_when_stop_returns_the_process_is_gone(serve: Serve, site: Site) -> None:
    server = serve(socket=site)
    with server.client() as held, server.client() as client:
        assert held.ping()["pong"]
        assert client.stop()["outcome"] == "drained"
        assert gone(server)


@pytest.mark.full
@everywhere
def test_stop_tells_how_it_goes_and_waits_for_the_request_in_flight(serve: Serve, site: Site) -> None:
    server = serve(socket=site)
    held = server.begin("/hold/a")
    told: list[Any] = []

    def on_progress(progress: Mapping[str, Any]) -> None:
        told.append(progress)
        if len(told) == 1:
            server.release("a")

    with server.client() as client:
        result = client.stop(on_progress=on_progress)
    assert (result["outcome"], result["drained"], result["pid"]) == ("drained", 1, server.pid)
    assert told[0]["in_flight"] == 1
    assert held.result() == (200, b"held a")
    assert gone(server)


@pytest.mark.full
@everywhere
def test_two_stops_get_the_same_result(serve: Serve, site: Site) -> None:
    server = serve(socket=site)
    held = server.begin("/hold/a")
    first = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    told: list[Any] = []
    second = Pending.call(lambda: server.client().stop(on_progress=told.append))
    until(lambda: told, "the second has joined")
    server.release("a")
    results = [first.result(), second.result()]
    for result in results:
        # Each client's own.
        del result["ended_after"]
    assert results[0] == results[1]
    assert held.result() == (200, b"held a")


@over_both
def test_a_reload_under_a_held_connection_is_answered_by_the_new_image(
    serve: Serve, site: Site, program: Program
) -> None:
    server = serve(socket=site, cwd=program.directory)
    address = server.address
    with server.client() as other, server.client() as client:
        before = other.ping()["pid"]
        program.edit("new")
        result = client.reload()
        assert (result["generation"], result["pid"]) == (2, before)
        assert client.ping()["pong"], "the connection that asked goes on"
        assert other.ping(timeout=TIMEOUT)["pong"], "another one is made anew"
        assert get(address, "/version") == (200, b"new")
        assert client.stop()["outcome"] == "drained"
    assert gone(server)


@pytest.mark.full
@everywhere
def test_a_command_that_a_reload_cuts_off_may_have_run(serve: Serve, site: Site) -> None:
    server = serve(socket=site)
    call = Pending.call(lambda: server.call("wait_for", name="never"))
    until(lambda: "waits for never" in server.lines, "the command")
    assert server.reload(grace=0, cut=True)["cut"] == 1
    with pytest.raises(ServerReloaded, match="before it answered wait_for, which may have run"):
        call.result()
    assert server.status()["generation"] == 2


@everywhere
def test_a_stop_that_was_accepted_goes_over_the_exec_and_its_client_joins_it(
    serve: Serve, site: Site, program: Program
) -> None:
    # A command that lets the hook go on might lose its own answer to the exec.
    gate = program.directory / "gate"
    os.mkfifo(gate)
    program.edit("old", "@control.on_stop\ndef hold_on(): say('held'); open('gate').close()")
    server = serve(socket=site, cwd=program.directory)
    address = server.address
    program.edit("new")
    reload = Pending.call(server.reload)
    until(lambda: "held" in server.lines, "no way back")
    seen: list[object] = []
    stop = Pending.call(lambda: server.client().stop(on_progress=seen.append))
    until(lambda: server.status()["stopping"], "accepted")
    # It waits at the listening socket, and keeps the new image from ending before the client is back.
    held = Pending(address, "/hold/a")
    until(lambda: is_connected(address), "it waits")
    seen.clear()
    gate.write_text("")
    assert reload.result()["generation"] == 2
    until(lambda: seen, "joined")
    server.release("a")
    assert held.result() == (200, b"held a")
    assert stop.result()["outcome"] == "drained"
    assert gone(server)


@pytest.mark.full
@pytest.mark.parametrize("site", ["ipc", "tcp with CURVE"], indirect=True)
def test_a_reload_leaves_nothing_open(serve: Serve, site: Site, program: Program) -> None:
    server = serve(socket=site, cwd=program.directory)
    server.reload()
    before = len(os.listdir(f"/proc/{server.pid}/fd"))
    for _ in range(3):
        server.reload()
    until(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) <= before, "as many descriptors as before")


@pytest.mark.full
@everywhere
def test_a_client_that_dies_does_not_end_the_stop_it_asked_for(serve: Serve, site: Site) -> None:
    server = serve(socket=site)
    held = server.begin("/hold/a")
    client = server.client()
    assert client.stop(wait=False)["accepted"]
    client.close()
    with ControlClient(site.socket, **site.options) as other:
        assert other.status()["state"] == "stopping"
    server.release("a")
    assert held.result() == (200, b"held a")
    assert server.wait() == 0


@pytest.mark.full
@everywhere
@pytest.mark.parametrize("delay", first_quick([0.0, 0.3]), ids=["at once", "with a delay"])
def test_a_reload_that_a_stop_calls_off_is_answered_before_the_process_ends(
    serve: Serve, program: Program, site: Site, delay: float
) -> None:
    server = serve(socket=site, cwd=program.directory)
    program.edit("new", "threading.Event().wait()")
    seen: list[Any] = []
    reload = Pending.call(lambda: server.reload(on_progress=seen.append))
    until(lambda: any(progress["phase"] == "preflight" for progress in seen), "the preflight")
    with server.client() as client:
        assert client.stop(delay=delay)["outcome"] == "drained"
    with pytest.raises(CommandError, match="called off by a stop") as refusal:
        reload.result()
    assert refusal.value.code == -32002
