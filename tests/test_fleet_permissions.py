"""Who may what with which app: the example configuration of a NATS server, with TLS, users and permissions."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import json
import os
import pathlib
import ssl
import sys
import time
from collections.abc import Iterator
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from harness import Done, Serve, Server, run_cli, until
from natsserver import NatsServer, StartNats
from natsuser import NatsUser

from flask_ctl.fleet.connection import CLOSED, MISSING

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "nats" / "nats-server.conf"
PASSWORDS = {name: f"secret-of-{name.lower()}" for name in ("SHOP", "VIEWER", "DEPLOY", "OPS")}


def make_certificate(directory: pathlib.Path) -> tuple[str, str]:
    """A self-signed certificate for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, private = directory / "server.pem", directory / "server.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(pem), str(private)


@pytest.fixture
def certificate(tmp_path: pathlib.Path) -> tuple[str, str]:
    return make_certificate(tmp_path)


@pytest.fixture
def broker(
    start_nats: StartNats, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> NatsServer:
    for name, password in PASSWORDS.items():
        monkeypatch.setenv(f"{name}_PASSWORD", password)
    pem, key = certificate
    text = EXAMPLE.read_text().replace("server.pem", f'"{pem}"').replace("server.key", f'"{key}"')
    store = tmp_path / "store"
    return start_nats(config=text.replace("store_dir: store", f'store_dir: "{store}"'), jetstream=False)


@pytest.fixture
def shop(serve: Serve, broker: NatsServer, certificate: tuple[str, str]) -> Server:
    """An instance of the app `shop`, which is connected."""
    code = "import sample; sample.app.name = 'shop'; sample.app.run(port=0)"
    env = {
        "FLASK_CTL_FLEET": broker.url.replace("nats://", "tls://"),
        "FLASK_CTL_FLEET_USER": "shop",
        "FLASK_CTL_FLEET_PASSWORD": PASSWORDS["SHOP"],
        "FLASK_CTL_FLEET_CA": certificate[0],
        "FLASK_CTL_FLEET_INBOX": "_INBOX.shop",
    }
    server = serve(command=[sys.executable, "-c", code], env=env)
    until(lambda: server.status()["fleet"]["problem"] is None, lambda: f"connected: {server.status()['fleet']}")
    return server


class Users:
    """Connects as a user of the example."""

    def __init__(self, broker: NatsServer, certificate: tuple[str, str]) -> None:
        self._broker, self._context = broker, ssl.create_default_context(cafile=certificate[0])
        self._users: list[NatsUser] = []

    def __call__(self, name: str) -> NatsUser:
        prefix = "_INBOX" if name == "ops" else f"_INBOX.{name}"
        url = self._broker.url.replace("nats://", "tls://")
        user = NatsUser(url, user=name, password=PASSWORDS[name.upper()], tls=self._context, inbox_prefix=prefix)
        self._users.append(user)
        return user

    def close(self) -> None:
        for user in self._users:
            user.close()


@pytest.fixture
def users(broker: NatsServer, certificate: tuple[str, str]) -> Iterator[Users]:
    users = Users(broker, certificate)
    yield users
    users.close()


ALLOWED = {
    "viewer": {"observe"},
    "deploy": {"observe", "inspect", "operate"},
    "ops": {"observe", "inspect", "operate"},
}


def test_a_server_with_tls_and_users_is_operated_and_its_permissions_separate_roles(shop: Server, users: Users) -> None:
    fleet = shop.status()["fleet"]
    assert fleet["roles"] == ["observe", "inspect", "operate"]
    for name, roles in ALLOWED.items():
        user = users(name)
        until(lambda: fleet["instance"] in user.presences(), f"{name} sees the presence")  # noqa: B023
        for role in ("observe", "inspect", "operate"):
            subject = f"flask_ctl.{role}.shop.{fleet['instance']}"
            if role in roles:
                assert user.call(subject, "ping")["result"]["pong"], (name, role)
            else:
                user.send(subject, b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
                assert "permissions violation" in user.denied[-1], (name, role)
                assert subject.lower() in user.denied[-1]


REFUSED: list[tuple[str, str]] = [
    ("deploy", "flask_ctl.operate.other.web-1"),
    ("deploy", "$KV.flask_ctl_leases.other"),
    ("deploy", "$KV.flask_ctl_presence.other.web-1"),
    ("viewer", "$KV.flask_ctl_leases.shop"),
    ("viewer", "$KV.flask_ctl_presence.shop.web-1"),
    ("shop", "flask_ctl.operate.shop.web-1"),
    ("shop", "flask_ctl.observe.other.web-1"),
    ("shop", "$KV.flask_ctl_presence.other.web-1"),
    ("shop", "$KV.flask_ctl_leases.shop"),
]


def test_what_is_not_a_users_own_business_is_refused(users: Users) -> None:
    connected: dict[str, NatsUser] = {}
    for name, subject in REFUSED:
        user = connected.setdefault(name, users(name)) if name not in connected else connected[name]
        user.send(subject, b"x")
        assert user.denied, (name, subject)
        assert subject.lower() in user.denied[-1], (name, subject)


def test_a_deployment_may_forget_instances_of_its_app(users: Users) -> None:
    user = users("deploy")
    user.send("$KV.flask_ctl_presence.shop.web-1", b"")
    assert not user.denied


def test_nobody_hears_requests_or_answers_of_others(users: Users) -> None:
    for name, subject in (("viewer", "_INBOX.deploy.>"), ("viewer", "flask_ctl.>"), ("shop", "_INBOX.deploy.>")):
        user = users(name)
        user.listen(subject)
        assert "permissions violation for subscription" in user.denied[-1], (name, subject)


def test_without_credentials_nobody_gets_in(broker: NatsServer, certificate: tuple[str, str], serve: Serve) -> None:
    env: dict[str, Any] = {
        "FLASK_CTL_FLEET": broker.url.replace("nats://", "tls://"), "FLASK_CTL_FLEET_CA": certificate[0],
    }  # fmt: skip
    server = serve(env=env)
    until(
        lambda: server.status()["fleet"]["problem"] in (MISSING, CLOSED),
        lambda: f"refused: {server.status()['fleet']}",
    )


def test_a_certificate_of_somebody_else_is_not_trusted(
    broker: NatsServer, serve: Serve, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "other").mkdir()
    env = {
        "FLASK_CTL_FLEET": broker.url.replace("nats://", "tls://"),
        "FLASK_CTL_FLEET_CA": make_certificate(tmp_path / "other")[0],
    }
    server = serve(env=env)
    until(
        lambda: "certificate is not trusted" in (server.status()["fleet"]["problem"] or ""),
        lambda: f"refused: {server.status()['fleet']}",
    )


def test_the_command_line_does_as_each_user_what_the_example_permits(
    shop: Server, broker: NatsServer, certificate: tuple[str, str]
) -> None:
    """A deployment rolls out and stops its app; an observer watches it, and is told what is not permitted."""

    def cli(user: str, *arguments: str) -> Done:
        env = {
            "FLASK_CTL_FLEET": broker.url.replace("nats://", "tls://"),
            "FLASK_CTL_FLEET_USER": user,
            "FLASK_CTL_FLEET_PASSWORD": PASSWORDS[user.upper()],
            "FLASK_CTL_FLEET_CA": certificate[0],
            "FLASK_CTL_FLEET_INBOX": f"_INBOX.{user}",
        }
        return run_cli("fleet", *arguments, env=env)

    until(lambda: "running" in cli("viewer", "ls").stdout, lambda: f"the presence: {cli('viewer', 'ls')}")
    assert cli("viewer", "events", "--name", "shop").returncode == 0
    refused = cli("viewer", "drain", "--name", "shop", "--timeout", "25")
    assert refused.returncode == 5
    assert "viewer may not publish to flask_ctl.operate.shop." in refused.stdout
    for arguments in (
        ["call", "stacks", "--name", "shop"],
        ["reload", "--name", "shop", "--rolling"],
        ["rollout", "status"],
        ["stop", "--name", "shop"],
    ):
        done = cli("deploy", *arguments)
        assert done.returncode == 0, (arguments, done)
    assert shop.wait() == 0


def test_a_server_that_is_not_as_safe_any_more_gets_no_word_of_an_instance_that_was_operated(
    start_nats: StartNats, serve: Serve, certificate: tuple[str, str]
) -> None:
    """TLS comes from what the server says here, not from the address."""
    pem, key = certificate
    config = f'tls {{ cert_file: "{pem}", key_file: "{key}" }}\nauthorization {{ user: shop, password: secret }}'
    nats_server = start_nats(config=config)
    env = {"SSL_CERT_FILE": pem, "FLASK_CTL_FLEET_USER": "shop", "FLASK_CTL_FLEET_PASSWORD": "secret"}
    server = serve(env={"FLASK_CTL_FLEET": nats_server.url, **env})
    until(lambda: server.status()["fleet"]["roles"] == ["observe", "inspect", "operate"], "operated")
    nats_server.kill()
    (nats_server.directory / "nats.conf").write_text("")
    nats_server.start()
    until(
        lambda: server.status()["fleet"]["problem"] == "the server is not as safe as the one before",
        lambda: f"refused: {server.status()['fleet']}",
    )


# What authenticates a client


def joins(serve: Serve, url: str, **settings: str) -> Server:
    """An instance that is connected, and may be operated."""
    server = serve(env={"FLASK_CTL_FLEET": url, **{f"FLASK_CTL_FLEET_{name}": text for name, text in settings.items()}})
    until(lambda: server.status()["fleet"]["problem"] is None, lambda: f"connected: {server.status()['fleet']}")
    return server


def tls(url: str) -> str:
    return url.replace("nats://", "tls://")


def test_an_nkey_lets_an_instance_and_an_operator_in(
    start_nats: StartNats, serve: Serve, tmp_path: pathlib.Path
) -> None:
    seed = tmp_path / "user.nk"
    pair = new_key(nkeys.PREFIX_BYTE_USER)
    seed.write_bytes(bytes(pair.seed))
    public = pair.public_key.decode()
    nats_server = start_nats(config=f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    joins(serve, nats_server.url, NKEY=str(seed))
    done = run_cli("fleet", "ls", "--nats", nats_server.url, env={"FLASK_CTL_FLEET_NKEY": str(seed)})
    assert done.returncode == 0, done.stderr
    denied = run_cli("fleet", "ls", "--nats", nats_server.url)
    assert denied.returncode == 5, denied.stderr


def test_a_credentials_file_lets_an_instance_and_an_operator_in(
    start_nats: StartNats, serve: Serve, tmp_path: pathlib.Path
) -> None:
    operator, account, user = map(
        new_key, (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
    )
    limits = {"subs": -1, "data": -1, "payload": -1}
    unlimited = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    account_limits = {**limits, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1, **unlimited}
    account_token = token(operator, account, "account", "SHOPS", {"limits": account_limits})
    config = f"""
        operator: {token(operator, operator, "operator", "OPS", {})}
        resolver: MEMORY
        resolver_preload: {{ {account.public_key.decode()}: {account_token} }}
    """
    # It would need a system account.
    nats_server = start_nats(config=config, jetstream=False)
    file = tmp_path / "shop.creds"
    file.write_text(
        "-----BEGIN NATS USER JWT-----\n"
        f"{token(account, user, 'user', 'shop', limits)}\n"
        "------END NATS USER JWT------\n\n"
        "-----BEGIN USER NKEY SEED-----\n"
        f"{bytes(user.seed).decode()}\n"
        "------END USER NKEY SEED------\n"
    )
    server = joins(serve, nats_server.url, CREDENTIALS=str(file))
    assert server.status()["fleet"]["account"] is None, "a server without a system account does not tell it"
    done = run_cli("fleet", "ls", "--nats", nats_server.url, env={"FLASK_CTL_FLEET_CREDENTIALS": str(file)})
    assert done.returncode == 0, done.stderr


def test_a_client_certificate_lets_in_and_allows_to_operate(
    start_nats: StartNats, serve: Serve, certificate: tuple[str, str]
) -> None:
    pem, key = certificate
    config = f'tls {{ cert_file: "{pem}", key_file: "{key}", ca_file: "{pem}", verify: true }}'
    nats_server = start_nats(config=config)
    server = joins(serve, tls(nats_server.url), CA=pem, CERTIFICATE=pem, KEY=key)
    assert server.status()["fleet"]["roles"] == ["observe", "inspect", "operate"]
    env = {"FLASK_CTL_FLEET_CA": pem, "FLASK_CTL_FLEET_CERTIFICATE": pem, "FLASK_CTL_FLEET_KEY": key}
    done = run_cli("fleet", "ls", "--nats", tls(nats_server.url), env=env)
    assert done.returncode == 0, done.stderr


def new_key(prefix: int) -> nkeys.KeyPair:
    """An NKEY of an operator, an account or a user."""
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), prefix)))


def token(issuer: nkeys.KeyPair, subject: nkeys.KeyPair, kind: str, name: str, claims: dict[str, Any]) -> str:
    """A JWT as NATS has it (https://github.com/nats-io/jwt)."""
    body: dict[str, Any] = {
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "jti": "",
        "name": name,
        "sub": subject.public_key.decode(),
        "nats": {**claims, "type": kind, "version": 2},
    }
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    parts = [encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)]
    return ".".join([*parts, encoded(issuer.sign(".".join(parts).encode()))])


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
