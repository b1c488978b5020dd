"""CURVE keys in files: a key pair is a secret file and a ``.pub`` beside it (CurveZMQ, RFC 26 of ZeroMQ).

The format is that of ``zmq.auth``; keys are written in Z85, 40 characters each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import struct
import time
from datetime import datetime, timezone
from typing import Literal, NamedTuple

import zmq
from zmq.auth import load_certificate

from ...errors import ConfigurationError, InsecureConfiguration

PUBLIC_SUFFIX = ".pub"

KEY_LENGTH = 40
"""Characters of a key in Z85."""

MAX_KEYS = 1000
"""Client keys in one directory; all of them are looked at when a client comes."""

SETTLED = 1.0
"""Seconds after which another change of a file shows in its time, whatever the clock of the file system."""


logger = logging.getLogger("flask_ctl")


class KeyPair(NamedTuple):
    """A public and a secret key, in Z85."""

    public: bytes
    secret: bytes


def check_curve() -> None:
    """Raises ConfigurationError if this build of ZeroMQ can't encrypt."""
    if not zmq.has("curve"):
        raise ConfigurationError("this libzmq has no CURVE; install pyzmq from a wheel, which has it")


def write_key_pair(path: str, kind: Literal["server", "client"]) -> str:
    """Write a new pair to `path`, mode 0600, and its public key beside it; the public key's path.

    Raises ConfigurationError if one of the files exists, or can't be written.
    """
    check_curve()
    public_path = public_path_of(path)
    public, secret = zmq.curve_keypair()
    for existing in (path, public_path):
        if os.path.lexists(existing):
            raise ConfigurationError(f"{existing} exists, and a key is never overwritten; give another file name")
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    head = f"# flask-ctl {kind} key of {made}, "
    body = f'\ncurve\n    public-key = "{public.decode()}"\n'
    _write_new(path, f'{head}SECRET: who has it is you{body}    secret-key = "{secret.decode()}"\n', 0o600)
    _write_new(public_path, f"{head}public{body}", 0o644)
    return public_path


def public_path_of(path: str) -> str:
    """Where the public key of a pair lies: ``server.pub`` for ``server.key``."""
    return path.removesuffix(".key") + PUBLIC_SUFFIX


def load_key_pair(path: str | os.PathLike[str]) -> KeyPair:
    """The pair in a secret file.

    Raises ConfigurationError if there is none, InsecureConfiguration if others can read it.
    """
    path = os.fspath(path)
    _check_private(path)
    public, secret = _load(path)
    if secret is None:
        raise ConfigurationError(f"{path} holds a public key only; give the secret file that belongs to it")
    return KeyPair(public, secret)


def load_public_key(text: str | os.PathLike[str]) -> bytes:
    """A public key: the 40 characters themselves, or a file with them. Raises ConfigurationError for anything else."""
    text = os.fspath(text)
    if len(text) == KEY_LENGTH and not os.path.exists(text):
        return _checked(text.encode(errors="replace"), "the key")
    return _load(text)[0]


class AllowedKeys:
    """The client keys that may come in: a directory of ``name.pub`` files, read again when it changes."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Raises ConfigurationError if a key can't be read; InsecureConfiguration if others can write there."""
        self._directory = os.path.abspath(directory)
        self._complaint = ""
        self._infos: dict[str, _Version] | None = None
        self._names: dict[bytes, str] = {}
        for path, version in self._look().items():
            self._names[_new_key(path, version, self._names)] = _name_of(path)

    def name_of(self, public: bytes) -> str | None:
        """The name of the file that allows a key, as it is now; None for a key that is not allowed.

        An invalid file allows no key, and neither does a directory that has become unsafe; the log says so.
        """
        try:
            infos = self._look()
        except ConfigurationError as error:
            self._complain(error)
            return None
        if infos != self._infos:
            self._names = self._read(infos)
            changed = max((version.changed for version in infos.values()), default=0)
            # A second change within the same tick of the file system's clock does not show.
            self._infos = infos if time.time_ns() - changed > SETTLED * 1e9 else None
        return self._names.get(public)

    def _look(self) -> dict[str, _Version]:
        """The files that are there, each with what changes when it is written to."""
        try:
            _check_unwritable(self._directory, _version(self._directory))
            paths = [entry.path for entry in os.scandir(self._directory) if entry.name.endswith(PUBLIC_SUFFIX)]
        except OSError as error:
            raise ConfigurationError(f"can't read the client keys in {self._directory}: {error.strerror}") from None
        if len(paths) > MAX_KEYS:
            raise ConfigurationError(f"{self._directory} holds {len(paths)} client keys; {MAX_KEYS} can be read")
        found = {}
        for path in sorted(paths):
            # The file may be removed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                found[path] = _version(path)
        return found

    def _read(self, infos: dict[str, _Version]) -> dict[bytes, str]:
        names: dict[bytes, str] = {}
        for path, version in infos.items():
            try:
                names[_new_key(path, version, names)] = _name_of(path)
            except ConfigurationError as error:
                self._complain(error)
        return names

    def _complain(self, error: ConfigurationError) -> None:
        if error.message != self._complaint:
            self._complaint = error.message
            logger.error("%s", error.message)


class _Version(NamedTuple):
    """What changes with the content of a file, its owner or its mode."""

    uid: int
    mode: int
    inode: int
    size: int
    changed: int


def _version(path: str) -> _Version:
    info = os.stat(path)
    return _Version(info.st_uid, info.st_mode, info.st_ino, info.st_size, info.st_ctime_ns)


def _allowed(path: str, version: _Version) -> bytes:
    """The key in a file that only its owner can write to."""
    _check_unwritable(path, version)
    return _load(path)[0]


def _new_key(path: str, version: _Version, names: dict[bytes, str]) -> bytes:
    """The key that a file allows, which no other file may allow by another name."""
    key = _allowed(path, version)
    if key in names:
        raise ConfigurationError(f"{path} holds the key of {names[key]!r}, too; remove one of the two")
    return key


def _name_of(path: str) -> str:
    return os.path.basename(path).removesuffix(PUBLIC_SUFFIX)


def _load(path: str) -> tuple[bytes, bytes | None]:
    try:
        # Opening a FIFO would wait for a writer.
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise ValueError(path)
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds no CURVE key"
        raise ConfigurationError(f"{path}: {reason}; make one by: flask-ctl keygen") from None
    return _checked(public, path), None if secret is None else _checked(secret, path)


def _checked(key: bytes, where: str) -> bytes:
    try:
        if len(key) == KEY_LENGTH:
            # Both kinds of key are 32 bytes; what is no Z85 fails here.
            zmq.utils.z85.decode(key)
            return key
    except (ValueError, KeyError, struct.error):
        pass
    raise ConfigurationError(f"{where} is no CURVE key; make one by: flask-ctl keygen")


def _check_private(path: str) -> None:
    try:
        info = os.stat(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; make a key by: flask-ctl keygen") from None
    if not stat.S_ISREG(info.st_mode):
        raise ConfigurationError(f"{path} is no file; make a key by: flask-ctl keygen")
    if os.name != "posix":
        return
    if info.st_uid not in (0, os.geteuid()):
        raise InsecureConfiguration(f"{path} belongs to uid {info.st_uid}, who knows this key; make one of your own")
    if info.st_mode & 0o077:
        raise InsecureConfiguration(
            f"{path} can be read by others (mode {stat.S_IMODE(info.st_mode):04o}); chmod 600 it, or make a new key"
        )


def _check_unwritable(path: str, version: _Version) -> None:
    if os.name != "posix":
        return
    if version.uid not in (0, os.geteuid()) or version.mode & 0o022:
        raise InsecureConfiguration(
            f"{path} can be written to by others, who could let themselves in; chown it to yourself and chmod go-w it"
        )


def _write_new(path: str, text: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise ConfigurationError(f"can't write {path}: {error.strerror}") from None
    with open(descriptor, "w") as file:
        file.write(text)
