"""CURVE keys in files: nobody else reads or replaces them, and what is no key is said to be none."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Callable
from typing import Any

import pytest
import zmq
from harness import Keys, make_keys

from flask_ctl import ConfigurationError, InsecureConfiguration
from flask_ctl.transports.zeromq.curve import (
    MAX_KEYS,
    AllowedKeys,
    load_key_pair,
    load_public_key,
    public_path_of,
    write_key_pair,
)

NOBODY = 65534


@pytest.fixture
def keys(short_path: pathlib.Path) -> Keys:
    return make_keys(short_path / "keys")


@pytest.fixture
def allowed(keys: Keys) -> AllowedKeys:
    return AllowedKeys(keys.clients)


def mode(path: str | pathlib.Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_new_pair_is_its_owners_and_the_public_key_everybodys(short_path: pathlib.Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        public = write_key_pair(str(short_path / "a.key"), "server")
    finally:
        os.umask(before)
    assert public == str(short_path / "a.pub")
    assert mode(short_path / "a.key") == 0o600
    assert mode(public) == 0o644 & ~umask
    pair = load_key_pair(short_path / "a.key")
    assert load_public_key(public) == pair.public == zmq.curve_public(pair.secret)
    assert pair.secret.decode() not in (short_path / "a.pub").read_text()


def test_many_new_pairs_can_be_read_again(short_path: pathlib.Path) -> None:
    """Z85 has signs that mean something elsewhere: % { } # $ <."""
    for n in range(50):
        public = write_key_pair(str(short_path / f"{n}.key"), "client")
        assert load_key_pair(short_path / f"{n}.key").public == load_public_key(public)


def test_the_public_file_stands_beside_the_secret_one() -> None:
    assert public_path_of("/x/server.key") == "/x/server.pub"
    assert public_path_of("/x/server") == "/x/server.pub"


@pytest.mark.parametrize("name", ["a.key", "a.pub"])
@pytest.mark.parametrize("kind", ["file", "dangling symlink"])
def test_a_key_is_never_overwritten(short_path: pathlib.Path, name: str, kind: str) -> None:
    existing = short_path / name
    if kind == "file":
        existing.write_text("precious")
    else:
        existing.symlink_to(short_path / "elsewhere")
    with pytest.raises(ConfigurationError, match=f"{name} exists, and a key is never overwritten"):
        write_key_pair(str(short_path / "a.key"), "client")
    assert sorted(path.name for path in short_path.iterdir() if path.name not in ("run", "tmp")) == [name]


def test_a_directory_that_is_not_there_is_named(short_path: pathlib.Path) -> None:
    with pytest.raises(ConfigurationError, match=r"can.t write .*/no/a\.key: No such file"):
        write_key_pair(str(short_path / "no" / "a.key"), "client")


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_secret_that_others_can_read_is_refused(keys: Keys, loose: int) -> None:
    os.chmod(keys.server, loose)
    with pytest.raises(InsecureConfiguration, match=f"read by others .mode 0{loose:o}.; chmod 600"):
        load_key_pair(keys.server)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_of_somebody_else_is_refused(keys: Keys) -> None:
    os.chown(keys.server, NOBODY, NOBODY)
    with pytest.raises(InsecureConfiguration, match="belongs to uid 65534"):
        load_key_pair(keys.server)


def test_a_public_file_is_no_pair(keys: Keys) -> None:
    os.chmod(keys.server_public, 0o600)
    with pytest.raises(ConfigurationError, match="holds a public key only"):
        load_key_pair(keys.server_public)


GARBAGE = {
    "nothing": "",
    "noise": "\x00\xff nonsense",
    "no key": "curve\n",
    "an empty key": 'curve\n    public-key = ""\n    secret-key = ""\n',
    "a short key": 'curve\n    public-key = "abc"\n    secret-key = "abc"\n',
    "no Z85": f'curve\n    public-key = "{"~" * 40}"\n    secret-key = "{"~" * 40}"\n',
    "not ASCII": f'curve\n    public-key = "{"ü" * 40}"\n    secret-key = "{"ü" * 40}"\n',
    "too big a number": f'curve\n    public-key = "{"#" * 40}"\n    secret-key = "{"#" * 40}"\n',
}


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_no_key(short_path: pathlib.Path, text: str) -> None:
    path = short_path / "x.key"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    for load in (load_key_pair, load_public_key):
        with pytest.raises(ConfigurationError, match="make one by: flask-ctl keygen"):
            load(path)


def test_bytes_that_are_no_text_are_no_key(short_path: pathlib.Path) -> None:
    path = short_path / "x.key"
    path.write_bytes(bytes(range(256)))
    path.chmod(0o600)
    for load in (load_key_pair, load_public_key):
        with pytest.raises(ConfigurationError, match="make one by: flask-ctl keygen"):
            load(path)


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_what_is_no_file_is_no_key(short_path: pathlib.Path, kind: str) -> None:
    path = short_path / "x.key"
    if kind == "directory":
        path.mkdir(mode=0o700)
    for load in (load_key_pair, load_public_key):
        with pytest.raises(ConfigurationError, match="flask-ctl keygen"):
            load(path)


def test_a_public_key_may_be_given_as_its_text(keys: Keys) -> None:
    text = load_public_key(keys.server_public).decode()
    assert load_public_key(text) == text.encode()
    for wrong in (text[:-1], text + "0", "~" * 40, "#" * 40, "ü" * 40):
        with pytest.raises(ConfigurationError, match="flask-ctl keygen"):
            load_public_key(wrong)


# The directory of the clients that are let in.


def test_a_client_is_known_by_the_name_of_its_file(keys: Keys, allowed: AllowedKeys) -> None:
    assert allowed.name_of(load_key_pair(keys.client).public) == "me"
    stranger = keys.new_client("stranger", allowed=False)
    assert allowed.name_of(load_key_pair(stranger).public) is None


def test_what_is_added_removed_and_replaced_counts_at_once(keys: Keys, allowed: AllowedKeys) -> None:
    mine = load_key_pair(keys.client).public
    other = load_key_pair(keys.new_client("other", allowed=True)).public
    assert allowed.name_of(other) == "other"
    os.rename(keys.clients / "other.pub", keys.clients / "me.pub")
    assert (allowed.name_of(other), allowed.name_of(mine)) == ("me", None)
    (keys.clients / "me.pub").unlink()
    assert (allowed.name_of(other), allowed.name_of(mine)) == (None, None)


def test_contents_that_are_written_over_count_at_once(keys: Keys, allowed: AllowedKeys) -> None:
    """In place: same file, same size, and maybe within one tick of the file system's clock."""
    mine = load_key_pair(keys.client).public
    other = load_key_pair(keys.new_client("other", allowed=False)).public
    file = keys.clients / "me.pub"
    assert allowed.name_of(mine) == "me"
    info = file.stat()
    file.write_text(file.read_text().replace(mine.decode(), other.decode()))
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert (allowed.name_of(mine), allowed.name_of(other)) == (None, "me")


def test_other_files_are_not_looked_at(keys: Keys, allowed: AllowedKeys) -> None:
    (keys.clients / "README").write_text("nonsense")
    (keys.clients / "x.key").write_text("nonsense")
    assert allowed.name_of(load_key_pair(keys.client).public) == "me"


Spoil = Callable[[pathlib.Path], Any]

SPOILED_DIRECTORY: dict[str, Spoil] = {
    "gone": lambda clients: clients.rename(clients.with_name("moved")),
    "others can write": lambda clients: clients.chmod(0o777),
    "the group can write": lambda clients: clients.chmod(0o770),
}


def into_a_directory(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


SPOILED_FILE: dict[str, Spoil] = {
    "others can write": lambda path: path.chmod(0o666),
    "garbage": lambda path: path.write_text("nonsense"),
    "a directory": into_a_directory,
}


@pytest.mark.parametrize("spoil", SPOILED_DIRECTORY.values(), ids=SPOILED_DIRECTORY)
def test_a_spoiled_directory_lets_in_nobody_at_once_and_the_log_tells_so_once(
    keys: Keys, allowed: AllowedKeys, caplog: pytest.LogCaptureFixture, spoil: Spoil
) -> None:
    mine = load_key_pair(keys.client).public
    assert allowed.name_of(mine) == "me"
    spoil(keys.clients)
    assert [allowed.name_of(mine), allowed.name_of(mine)] == [None, None]
    assert len(caplog.records) == 1
    with pytest.raises(ConfigurationError):
        AllowedKeys(keys.clients)


@pytest.mark.parametrize("spoil", SPOILED_FILE.values(), ids=SPOILED_FILE)
def test_a_spoiled_file_lets_in_nobody_and_the_others_stay(
    keys: Keys, allowed: AllowedKeys, caplog: pytest.LogCaptureFixture, spoil: Spoil
) -> None:
    mine = load_key_pair(keys.client).public
    other = load_key_pair(keys.new_client("other", allowed=True)).public
    spoil(keys.clients / "other.pub")
    assert (allowed.name_of(mine), allowed.name_of(other)) == ("me", None)
    assert "other.pub" in caplog.text
    with pytest.raises(ConfigurationError, match=r"other\.pub"):
        AllowedKeys(keys.clients)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", [".", "me.pub"])
def test_what_belongs_to_somebody_else_lets_in_nobody(
    keys: Keys, allowed: AllowedKeys, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    os.chown(keys.clients / name, NOBODY, NOBODY)
    assert allowed.name_of(load_key_pair(keys.client).public) is None
    assert "can be written to by others" in caplog.text


def test_too_many_keys_are_an_error_and_not_a_delay(
    keys: Keys, allowed: AllowedKeys, caplog: pytest.LogCaptureFixture
) -> None:
    text = (keys.clients / "me.pub").read_text()
    for n in range(MAX_KEYS):
        (keys.clients / f"{n}.pub").write_text(text)
    assert allowed.name_of(b"") is None
    assert f"holds {MAX_KEYS + 1} client keys; {MAX_KEYS} can be read" in caplog.text


def test_one_key_can_not_have_two_names(keys: Keys, allowed: AllowedKeys, caplog: pytest.LogCaptureFixture) -> None:
    mine = load_key_pair(keys.client).public
    (keys.clients / "you.pub").write_text((keys.clients / "me.pub").read_text())
    assert allowed.name_of(mine) == "me"
    assert "holds the key of 'me', too" in caplog.text
    with pytest.raises(ConfigurationError, match="holds the key of 'me', too"):
        AllowedKeys(keys.clients)
