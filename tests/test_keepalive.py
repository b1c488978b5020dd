"""What waitress and cheroot, and partly pywsgi, can do that the contract of all servers does not ask for."""

from __future__ import annotations

import pathlib
import socket
import ssl

import pytest
from harness import PYTHON, TIMEOUT, Pending, Serve, Server, first_quick, read_all, until

from flask_ctl import CommandError

WAITRESS = "import sample, waitress\nwaitress.serve(sample.app, {options})"
CHEROOT = "import sample\nfrom cheroot.wsgi import Server\nServer({address}, sample.app{options}).start()"
PYWSGI = (
    "import sample\nfrom gevent.pywsgi import WSGIServer\nWSGIServer({address}, sample.app{options}).serve_forever()"
)
LOCAL = "('127.0.0.1', 0)"


@pytest.fixture
def start(serve: Serve) -> Serve:
    return lambda code, **options: serve(command=[*PYTHON, "-c", code], **options)


PIPELINING = {
    "waitress": WAITRESS.format(options="host='127.0.0.1', port=0"),
    "cheroot": CHEROOT.format(address=LOCAL, options=""),
}


def accepts(address: tuple[str, int]) -> bool:
    """Whether a new connection is accepted."""
    try:
        socket.create_connection(address, timeout=0.2).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("code", first_quick(PIPELINING.values()), ids=PIPELINING)
def test_pipelined_requests_are_all_answered(start: Serve, code: str) -> None:
    server = start(code)
    with socket.create_connection(server.address, timeout=TIMEOUT) as sock:
        sock.sendall(b"GET /hold/a HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: server.status()["requests"]["in_flight"], "in flight")
        address = server.address
        stop = Pending.call(lambda: server.client().stop())
        # An answer that began before the drain would not be the last of its connection.
        until(lambda: not accepts(address), "drain")
        server.release("a")
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 200") == 2
    assert answers.endswith(b"hello")
    assert answers.lower().count(b"connection: close") == 1
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


@pytest.mark.full
def test_waitress_at_several_addresses_is_one_server(start: Serve, free_port: int) -> None:
    server = start(WAITRESS.format(options=f"listen='127.0.0.1:0 127.0.0.2:{free_port}'"))
    first, second = server.status()["server"]["listeners"]
    assert second == f"http://127.0.0.2:{free_port}"
    assert server.reload()["generation"] == 2
    assert server.status()["server"]["listeners"] == [first, second]
    for address in (server.address, ("127.0.0.2", free_port)):
        assert server.get("/", address) == (200, b"hello")
    assert server.client().stop()["outcome"] == "drained"
    assert server.wait() == 0


UNIX = {
    "waitress": WAITRESS.format(options="unix_socket={path!r}"),
    "cheroot": CHEROOT.format(address="{path!r}", options=""),
}


@pytest.mark.parametrize("code", first_quick(UNIX.values()), ids=UNIX)
def test_a_unix_socket_serves_through_a_reload_and_is_drained(
    start: Serve, code: str, short_path: pathlib.Path
) -> None:
    path = str(short_path / "http")
    server = start(code.format(path=path))
    assert server.status()["server"]["listeners"] == [f"unix:{path}"]
    assert ask_at(path, "/") == b"hello"
    assert server.reload()["generation"] == 2
    assert ask_at(path, "/") == b"hello"
    held = Pending.call(lambda: ask_at(path, "/hold/a"))
    until(lambda: server.status()["requests"]["in_flight"], "in flight")
    stop = Pending.call(lambda: server.client().stop())
    until(lambda: server.status()["state"] == "stopping", "stopping")
    server.release("a")
    assert held.result() == b"held a"
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


def ask_at(path: str, url: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(path)
        sock.sendall(f"GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return read_all(sock).partition(b"\r\n\r\n")[2]


GIVEN = "import socket\ngiven = socket.create_server(('127.0.0.1', 0)); given.setblocking(False)\n"
GIVEN_TO = {
    "waitress": GIVEN + WAITRESS.format(options="sockets=[given]"),
    "pywsgi": GIVEN + PYWSGI.format(address="given", options=""),
}


@pytest.mark.parametrize("code", first_quick(GIVEN_TO.values()), ids=GIVEN_TO)
def test_a_server_that_was_given_its_socket_is_drained_but_not_reloaded(start: Serve, code: str) -> None:
    server = start(code)
    with server.client() as client, pytest.raises(CommandError, match="given its socket") as refusal:
        client.reload()
    assert refusal.value.code == -32001
    with socket.create_connection(server.address, timeout=TIMEOUT) as sock:
        sock.sendall(b"GET / HT")
        stop = Pending.call(lambda: server.client().stop())
        until(lambda: server.status()["state"] == "stopping", "stopping")
        sock.sendall(b"TP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(sock).endswith(b"hello")
    assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


TLS = {
    "cheroot": """
import sample
from cheroot.wsgi import Server
from cheroot.ssl.builtin import BuiltinSSLAdapter
server = Server(('127.0.0.1', 0), sample.app)
server.ssl_adapter = BuiltinSSLAdapter({certificate!r}, {key!r})
server.start()
""",
    "pywsgi": "from gevent import monkey; monkey.patch_all()\n"
    + PYWSGI.format(address=LOCAL, options=", certfile={certificate!r}, keyfile={key!r}"),
}


@pytest.fixture
def certificate(short_path: pathlib.Path) -> tuple[str, str]:
    from werkzeug.serving import make_ssl_devcert

    return make_ssl_devcert(str(short_path / "cert"), host="localhost")


@pytest.mark.parametrize("code", first_quick(TLS.values()), ids=TLS)
def test_with_tls_it_is_drained_but_not_reloaded(start: Serve, code: str, certificate: tuple[str, str]) -> None:
    server = start(code.format(certificate=certificate[0], key=certificate[1]))
    address = server.address
    with server.client() as client, pytest.raises(CommandError, match="TLS") as refusal:
        client.reload()
    assert refusal.value.code == -32001
    with over_tls(address) as idle, over_tls(address) as busy:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        busy.sendall(b"GET /hold/a HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: server.status()["requests"]["in_flight"], "in flight")
        stop = Pending.call(lambda: server.client().stop())
        until(lambda: server.status()["state"] == "stopping", "stopping")
        server.release("a")
        assert read_all(busy).endswith(b"held a")
        assert stop.result()["outcome"] == "drained"
    assert server.wait() == 0


@pytest.mark.parametrize("code", first_quick(TLS.values()), ids=TLS)
def test_with_tls_it_is_cut(start: Serve, code: str, certificate: tuple[str, str]) -> None:
    server = start(code.format(certificate=certificate[0], key=certificate[1]))
    with over_tls(server.address) as busy:
        busy.sendall(b"GET /hold/a HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: server.status()["requests"]["in_flight"], "in flight")
        assert server.client().stop("fast")["cut"] == 1
    assert server.wait() == 0


def over_tls(address: tuple[str, int]) -> ssl.SSLSocket:
    plain = socket.create_connection(address, timeout=TIMEOUT)
    context = ssl._create_unverified_context()
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    return context.wrap_socket(plain, suppress_ragged_eofs=True)


BEHIND = {
    "waitress": WAITRESS.format(options="host='127.0.0.1', port=0, trusted_proxy='127.0.0.1'"),
    "cheroot": """
import sample
from cheroot.wsgi import PathInfoDispatcher, Server
Server(('127.0.0.1', 0), PathInfoDispatcher({"/": sample.app})).start()
""",
}


@pytest.mark.parametrize("code", first_quick(BEHIND.values()), ids=BEHIND)
def test_an_app_behind_the_servers_own_middleware_is_found(start: Serve, code: str) -> None:
    assert start(code).status()["app"] == "sample"


IN_A_THREAD = {
    "waitress": "server = waitress.create_server(sample.app, host='127.0.0.1', port=0); run = server.run",
    "cheroot": "from cheroot.wsgi import Server; server = Server(('127.0.0.1', 0), sample.app); run = server.start",
}


@pytest.mark.parametrize("code", first_quick(IN_A_THREAD.values()), ids=IN_A_THREAD)
def test_in_a_thread_of_a_bigger_program_it_ends_alone_and_can_be_begun_again(start: Serve, code: str) -> None:
    server = start(f"""
import sample, threading, waitress
for _ in range(2):
    {code}
    thread = threading.Thread(target=run)
    thread.start(); thread.join()
    print("goes on", threading.active_count(), flush=True)
""")

    def serve_and_end(before: int) -> None:
        until(lambda: server.lines.count("on_stop") == before and _answers(server), "serving")
        with server.client() as client, pytest.raises(CommandError, match="bigger program"):
            client.reload()
        assert server.get("/") == (200, b"hello")
        result = server.client().stop()
        assert (result["outcome"], result["embedded"]) == ("drained", True)

    serve_and_end(0)
    serve_and_end(1)
    assert server.wait() == 0
    assert len([line for line in server.lines if line.startswith("goes on")]) == 2


def _answers(server: Server) -> bool:
    try:
        return bool(server.status()["state"] == "running")
    except Exception:
        return False


def test_a_program_that_stops_cheroot_itself_ends_as_ever(start: Serve) -> None:
    server = start("""
import sample, threading
from cheroot.wsgi import Server
server = Server(('127.0.0.1', 0), sample.app)
@sample.app.get("/quit")
def quit():
    threading.Thread(target=server.stop).start()
    return "quitting"
server.start()
print("after run", flush=True)
""")
    assert server.get("/quit") == (200, b"quitting")
    assert server.wait() == 0
    assert "after run" in server.lines
    assert "on_stop" not in server.lines
