"""What is special about ZeroMQ: who owns an ipc path, who is at the other end, what libzmq would lose or let in."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
import zmq
from harness import (
    APPS,
    PYTHON,
    SITES,
    TIMEOUT,
    Pending,
    Program,
    Serve,
    Server,
    Site,
    as_user,
    first_quick,
    run_cli,
    until,
)
from wires import GUARD, ZEROMQ, Peer, Wire, ZmqTalk, ipc_wire, request

from flask_ctl import AccessDenied, ControlClient, NotRunning, ServerDied, TimedOut
from flask_ctl.dispatch import peer as peer_module
from flask_ctl.dispatch.guard import Guard
from flask_ctl.dispatch.limits import MAX_PENDING, Limits
from flask_ctl.protocol.framing import FENCE, MAX_FRAME
from flask_ctl.system.addresses import parse_address
from flask_ctl.transports.socketfile import SocketFile
from flask_ctl.transports.zeromq.curve import load_key_pair, load_public_key
from flask_ctl.transports.zeromq.listener import ZmqListener
from flask_ctl.transports.zeromq.session import MAX_WAITING
from flask_ctl.transports.zeromq.zap import LocalIdentity
from flask_ctl_cli.main import cli

Dealer = Callable[..., ZmqTalk]

over_both = pytest.mark.parametrize("site", first_quick(["ipc", "tcp with CURVE"]), indirect=True)
over_ipc = pytest.mark.parametrize("site", ["ipc"], indirect=True)


@pytest.fixture(params=ZEROMQ)
def peer(request: pytest.FixtureRequest, short_path: pathlib.Path, free_port: int) -> Iterator[Peer]:
    peer = Peer(ZEROMQ[request.param](short_path, free_port))
    yield peer
    peer.close()


@pytest.fixture
def dealer() -> Iterator[Dealer]:
    """Raw connections with a real server, by its site; each may say who it is."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(contextlib.closing(_Context()))

        def connect(site: Site, routing_id: bytes | None = None, client_key: str | None = None) -> ZmqTalk:
            sock = context.zmq.socket(zmq.DEALER)
            if routing_id is not None:
                sock.routing_id = routing_id
            if site.options:
                sock.curve_publickey, sock.curve_secretkey = load_key_pair(client_key or site.options["client_key"])
                sock.curve_serverkey = load_public_key(site.options["server_key"])
            return stack.enter_context(contextlib.closing(ZmqTalk(sock, site.socket)))

        yield connect


class _Context:
    def __init__(self) -> None:
        self.zmq = zmq.Context()

    def close(self) -> None:
        self.zmq.term()


def path_of(server: Server) -> str:
    return server.socket.removeprefix("ipc://")


# Who owns the path.


@over_ipc
def test_a_second_server_never_steals_the_path(serve: Serve, site: Site) -> None:
    first = serve(socket=site)
    second = serve(socket=site, ready=False)
    until(lambda: f"in use by pid {first.pid};" in second.output, "whose it is")
    assert first.status()["pid"] == first.pid
    second.kill()
    assert first.status()["pid"] == first.pid


@over_ipc
def test_a_regular_file_is_never_replaced(serve: Serve, site: Site, short_path: pathlib.Path) -> None:
    (short_path / "site.zmq").write_text("precious")
    server = serve(socket=site, ready=False)
    until(lambda: "is no socket; remove it" in server.output, "a warning")
    until(lambda: "Running on" in server.output, "it serves")
    assert (short_path / "site.zmq").read_text() == "precious"


@over_ipc
def test_only_its_owner_may_connect_at_every_instant(serve: Serve, site: Site, short_path: pathlib.Path) -> None:
    """Looked at as often as it goes, from before the start to the end, whatever the umask."""
    path = short_path / "site.zmq"
    modes: set[int] = set()

    def look() -> bool:
        with contextlib.suppress(FileNotFoundError):
            modes.add(stat.S_IMODE(path.stat().st_mode))
        return bool(modes) and "Running on" in server.output

    server = serve(socket=site, ready=False, umask=0)
    until(look, "it serves")
    stop = Pending.call(lambda: server.ready().client().stop())
    until(lambda: look() and stop.done, "it ends")
    assert stop.result()["outcome"] == "drained"
    assert modes == {0o600}
    assert not path.exists()


@over_ipc
def test_after_kill_9_the_next_start_takes_the_path(serve: Serve, site: Site) -> None:
    first = serve(socket=site)
    first.process.kill()
    first.wait()
    with first.client() as client, pytest.raises(NotRunning):
        client.ping()
    second = serve(socket=site)
    assert second.status()["pid"] == second.pid


@over_ipc
def test_a_removed_file_is_back_and_connections_live_on(serve: Serve, site: Site, dealer: Dealer) -> None:
    server = serve(socket=site)
    kept = dealer(site)
    kept.send(request("ping", 1))
    assert kept.receive()["result"]["pid"] == server.pid
    os.unlink(path_of(server))
    until(lambda: os.path.exists(path_of(server)), "it is back")
    assert stat.S_IMODE(os.stat(path_of(server)).st_mode) == 0o600
    assert until(server._answers, "a new client's answer")
    kept.send(request("ping", 2))
    assert kept.receive()["id"] == 2
    assert server.client().stop()["outcome"] == "drained"
    assert not os.path.exists(path_of(server))


# Who is at the other end.


def exit_code(*arguments: str) -> Any:
    """Of the command line in this process."""
    try:
        cli.main(list(arguments), prog_name="flask-ctl")
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; see the next test")
@over_ipc
def test_another_user_is_refused_by_its_credentials(serve: Serve, site: Site, short_path: pathlib.Path) -> None:
    """As `nobody`, whom neither the directory nor the file's mode keeps out."""
    server = serve(socket=site)
    os.chmod(short_path, 0o711)
    os.chmod(path_of(server), 0o666)

    def act() -> bytes:
        try:
            with server.client() as client:
                client.ping()
        except AccessDenied as error:
            return f"{error.message} {exit_code('ping', '--quiet', '--socket', server.socket)}".encode()
        return b"let in"

    said = as_user(65534, 65534, (), act)
    assert b"does not let you in; CTL_ALLOW of the app says who may connect 5" in said
    assert server.status()["pid"] == server.pid


def no_talk() -> NoReturn:
    raise NotImplementedError


class _AnotherUser(LocalIdentity):
    def peer(self, address: str, user_id: str) -> peer_module.Peer:
        real = super().peer(address, user_id)
        assert (real.uid, real.pid) == (os.geteuid(), os.getpid()), "libzmq tells who it is"
        return peer_module.Peer(real.pid, 54321, 54321)


def test_a_peer_that_is_another_user_is_refused(short_path: pathlib.Path) -> None:
    """The same with a substituted identity, where nobody can become another user."""
    address = parse_address(f"ipc://{short_path}/x.zmq")
    listener = ZmqListener(address, SocketFile(address.path), _AnotherUser(), GUARD)
    peer = Peer(Wire(listener, str(address), {}, no_talk))
    try:
        with peer.client() as client, pytest.raises(AccessDenied, match="does not let you in"):
            client.ping()
    finally:
        peer.close()


# Forked children.


@over_both
def test_a_forked_child_holds_neither_the_socket_nor_connections(serve: Serve, site: Site) -> None:
    """It lives on after its parent was killed, and that ends everything."""
    server = serve(socket=site, stdin=subprocess.PIPE)
    with server.client() as waiting:
        call = Pending.call(lambda: waiting.call("wait_for", name="never"))
        until(lambda: "waits for never" in server.lines, "the command")
        child = int(server.get("/fork")[1])
        server.process.kill()
        server.wait()
        with pytest.raises(ServerDied):
            call.result()
    with server.client() as client, pytest.raises(NotRunning):
        client.ping()
    os.kill(child, 0)
    server.process.communicate()


FORKING = """
import os, sys
import sample
from flask_ctl import BackgroundServer, ControlClient
server = BackgroundServer(sample.app, socket=sys.argv[1])
server.start()
with ControlClient(sys.argv[1]) as kept:
    assert kept.ping()["pong"]
    child = os.fork()
    if child == 0:
        # It has a control thread, a client and a ZeroMQ context that are not its own.
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), kept.ping()["pong"])
server.stop()
"""


@over_ipc
def test_a_forked_child_ends_like_any_other(site: Site) -> None:
    done = subprocess.run(
        [*PYTHON, "-c", FORKING, site.socket], cwd=APPS, capture_output=True, text=True, timeout=TIMEOUT,
        env={**os.environ, **site.env}, check=False,
    )  # fmt: skip
    assert "7 True" in done.stdout, done.stderr
    assert done.returncode == 0


# The end of the server.


@pytest.mark.parametrize("mode", ["graceful", "immediate"])
@pytest.mark.parametrize("times", first_quick([1, 5]))
@over_both
def test_the_answer_to_stop_is_never_lost(serve: Serve, site: Site, mode: str, times: int) -> None:
    for _ in range(times):
        server = serve(socket=site)
        with server.client() as client:
            assert client.stop(mode)["outcome"] == "drained"
        assert server.wait() == 0


@over_both
def test_the_answer_to_stop_is_not_lost_behind_another_clients_big_one(
    serve: Serve, site: Site, program: Program, dealer: Dealer
) -> None:
    program.edit("new", "@control.command(role='observe')\ndef big() -> str:\n    return 'x' * 1_000_000\n")
    server = serve(socket=site, cwd=program.directory)
    slow = dealer(site)
    slow.send(*(request("big", n) for n in range(8)))
    assert len(slow.receive()["result"]) == 1_000_000
    with server.client() as client:
        assert client.stop()["outcome"] == "drained"
    assert server.wait() == 0


def test_the_last_answers_before_the_end_of_the_server_arrive(short_path: pathlib.Path, free_port: int) -> None:
    """To all clients, time after time."""

    def answer_and_end() -> None:
        with contextlib.closing(Peer(ipc_wire(short_path, free_port))) as peer, contextlib.ExitStack() as stack:
            talks = [stack.enter_context(peer.raw()) for _ in range(3)]
            for talk in talks:
                talk.send(request("hang", 1))
            until(lambda: peer.pool.unfinished == 3, "they wait")
            peer.gate.set()
            until(lambda: not peer.pool.unfinished, "they are answered")
            peer.server.close()
            assert [talk.receive()["result"] for talk in talks] == ["released"] * 3

    for _ in range(20):
        answer_and_end()


def test_a_peer_that_does_not_read_can_not_hold_up_the_end(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(*(request("big", n, size=MAX_FRAME - 100) for n in range(16)))
        until(lambda: not peer.pool.unfinished, "it does what it can")
        Pending.call(peer.server.close).result()


@over_both
def test_kill_9_is_noticed_at_once(serve: Serve, site: Site) -> None:
    server = serve(socket=site)
    with server.client() as client:
        assert client.ping()["pong"]
        call = Pending.call(lambda: client.call("wait_for", name="never"))
        until(lambda: "waits for never" in server.lines, "the command")
        server.process.kill()
        with pytest.raises(ServerDied):
            call.result()


@over_both
def test_a_stopped_process_is_a_timeout(serve: Serve, site: Site) -> None:
    server = serve(socket=site)
    with server.client() as client:
        assert client.ping()["pong"]
        server.suspend()
        with pytest.raises(TimedOut, match="did not answer ping within"):
            client.ping(timeout=0.2)
    with server.client() as client, pytest.raises(TimedOut):
        client.ping(timeout=0.2)
    done = run_cli("ping", "--timeout", "0.2", "--socket", server.socket, env=site.client_env)
    assert done.returncode == 4
    os.kill(server.pid, signal.SIGCONT)


# Reloads.


@pytest.mark.parametrize("times", first_quick([3, 10]))
@over_both
def test_the_caller_of_several_reloads_in_a_row_is_found_again_each_time(serve: Serve, site: Site, times: int) -> None:
    """Over one client, while another one is held."""
    server = serve(socket=site)
    with server.client() as held, server.client() as client:
        assert held.ping()["pong"]
        for generation in range(2, times + 2):
            assert client.reload(preflight=False)["generation"] == generation
        assert held.ping(timeout=TIMEOUT)["pong"]


@pytest.mark.parametrize("site", ["tcp with CURVE"], indirect=True)
def test_a_peer_with_the_callers_routing_id_but_another_key_does_not_get_the_answer(
    serve: Serve, site: Site, dealer: Dealer
) -> None:
    assert site.keys is not None
    other_key = site.keys.new_client("other", allowed=True)
    server = serve(socket=site)
    caller = dealer(site, b"caller")
    caller.send(request("reload", "mine"))
    assert caller.ended()
    caller.close()
    until(lambda: server._answers() and server.status()["generation"] == 2, "reloaded")
    other = dealer(site, b"caller", other_key)
    other.send(request("ping", "other"), FENCE)
    assert other.receive()["id"] == "other"
    assert other.receive_bytes() == FENCE
    other.close()
    assert until(lambda: _owed(dealer(site, b"caller")), "the answer")["result"]["generation"] == 2


def _owed(talk: ZmqTalk) -> Any:
    """What a caller that is back is told; None while libzmq has not noticed that the name is free."""
    talk.send(FENCE)
    answer = None
    while talk.sock.poll(500) and (data := talk.receive_bytes()) != FENCE:
        answer = json.loads(data)
    talk.close()
    return answer


def test_several_sockets_at_once_each_know_who_asks(serve: Serve, short_path: pathlib.Path, free_port: int) -> None:
    """All of them outlive a reload, and end with the process."""
    us = {"uid": os.geteuid(), "gid": os.getegid(), "pid": os.getpid()}
    sites = [make(short_path, free_port) for make in SITES.values()]
    env = {"FLASK_CTL_SOCKET": json.dumps([site.socket for site in sites])}
    server = serve(socket=sites[0], env={**env, **sites[-1].env})
    for generation in (1, 2):
        for site in sites:
            with ControlClient(site.socket, **site.options) as client:
                status = client.status()
                assert status["control"]["sockets"] == [site.socket for site in sites]
                assert status["generation"] == generation
        if generation == 1:
            with ControlClient(sites[1].socket, **sites[1].options) as client:
                client.reload()
    held = server.begin("/hold/a")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ControlClient(site.socket, **site.options)) for site in sites]
        assert all(client.ping()["pong"] for client in clients)
        assert clients[0].status()["last_reload"]["by"] == us, "over ipc"
        assert clients[2].stop(wait=False)["accepted"]
        assert clients[0].status()["stopping"]["by"] == {"key": "me"}, "by its CURVE key"
        told: list[Any] = []
        stop = Pending.call(lambda: clients[1].stop(on_progress=told.append))
        until(lambda: told, "it has joined")
        server.release("a")
        assert held.result() == (200, b"held a")
        assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0
    for site in sites:
        with ControlClient(site.socket, **site.options) as client, pytest.raises(NotRunning):
            client.ping()


# What is no message, or too much.

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32
GARBAGE = {
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a greeting": GREETING[:11],
    "a greeting and silence": GREETING,
    "the wrong version": b"\xff" + bytes(8) + b"\x7f" + b"\x09" * 54,
    "a megabyte of noise": bytes(range(256)) * 4096,
    "a greeting and noise": GREETING + bytes(range(255, -1, -1)) * 4096,
    "a line of our own": request("stop") + b"\n",
}


def connected(peer: Peer) -> socket.socket:
    """A plain socket, connected to the port or path of the server."""
    address = parse_address(peer.wire.target)
    if address.transport == "tcp":
        return socket.create_connection((address.host, address.port), TIMEOUT)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT)
    sock.connect(address.path)
    return sock


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_raw_garbage_changes_nothing(peer: Peer, garbage: bytes) -> None:
    with peer.raw() as kept, connected(peer) as sock:
        kept.send(request("echo", text="x"))
        assert kept.receive()["result"] == "x"
        with contextlib.suppress(ConnectionError):
            sock.sendall(garbage)
        assert peer.answers()
        kept.send(request("echo", text="y"))
        assert kept.receive()["result"] == "y"
    assert peer.answers()
    assert peer.server.restarts == 0


def test_who_does_not_say_who_it_is_is_sent_away(
    short_path: pathlib.Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_ctl.transports.zeromq.router.HANDSHAKE_TIMEOUT", 0.1)
    peer = Peer(ipc_wire(short_path, free_port))
    with contextlib.closing(peer), connected(peer) as sock:
        sock.sendall(GREETING[:11])
        while sock.recv(4096):
            pass
        assert peer.answers()


def test_a_message_of_two_frames_is_refused_and_the_connection_lives(peer: Peer) -> None:
    with peer.raw() as talk:
        for frames in ([request("echo", 1, text="x"), b""], [b"", request("echo", 1, text="x")], [b""] * 100):
            talk.sock.send_multipart(frames)
            assert talk.receive()["error"]["code"] == -32002
        talk.send(request("echo", 2, text="still here"))
        assert talk.receive()["id"] == 2


def test_a_fence_is_answered_after_everything_before_it(peer: Peer) -> None:
    with peer.raw() as talk:
        talk.send(*(request("hang", n) for n in range(8)), FENCE)
        assert peer.answers()
        peer.gate.set()
        assert {json.loads(talk.receive_bytes())["id"] for _ in range(8)} == set(range(8))
        assert talk.receive_bytes() == FENCE
        talk.send(FENCE)
        assert talk.receive_bytes() == FENCE


@pytest.mark.full
def test_what_is_too_much_is_refused_and_at_last_not_even_answered(short_path: pathlib.Path, free_port: int) -> None:
    """A ROUTER can't stop reading from one peer; what waits for that peer is bounded all the same.

    Over ipc, where the kernel keeps less for the peer than is sent.
    """
    many = 12 * MAX_WAITING
    peer = Peer(ipc_wire(short_path, free_port))
    with contextlib.closing(peer), peer.raw() as talk:
        talk.send(*(request("hang", n) for n in range(MAX_PENDING)))
        talk.send(*(request("ping", n) for n in range(many)), FENCE)
        assert peer.answers()
        peer.gate.set()
        answers = []
        while (data := talk.receive_bytes()) != FENCE:
            answers.append(json.loads(data))
        refused = [answer for answer in answers if answer["id"] is None]
        assert {answer["error"]["code"] for answer in refused} == {-32002}
        assert len(answers) - len(refused) >= MAX_PENDING + MAX_WAITING
        assert len(answers) < many
        talk.send(request("echo", text="x"))
        assert talk.receive()["result"] == "x"


def test_over_the_limit_the_silent_ones_go_and_the_working_one_stays(short_path: pathlib.Path, free_port: int) -> None:
    peer = Peer(ipc_wire(short_path, free_port, Guard(limits=Limits(connections=8))))
    with contextlib.closing(peer), contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connected(peer)) for _ in range(4)]
        used, working = stack.enter_context(peer.raw()), stack.enter_context(peer.raw())
        used.send(request("echo", text="x"))
        assert used.receive()["result"] == "x"
        working.send(request("hang"))
        until(lambda: peer.pool.unfinished == 1, "it works")
        for _ in range(6):
            stack.enter_context(connected(peer))
        for sock in silent:
            with contextlib.suppress(ConnectionError):
                while sock.recv(4096):
                    pass
        assert peer.answers()
        used.send(request("echo", text="y"))
        assert used.receive()["result"] == "y"
        peer.gate.set()
        assert working.receive()["result"] == "released"


@over_both
def test_a_client_that_comes_and_goes_leaves_nothing_open(serve: Serve, site: Site) -> None:
    server = serve(socket=site)
    before = len(os.listdir(f"/proc/{server.pid}/fd"))
    for _ in range(30):
        with server.client() as client:
            client.ping()
    until(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) <= before, "as many descriptors as before")
