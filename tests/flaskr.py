"""Flask's own example application, as its source distribution has it."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version

DOWNLOAD_TIMEOUT = 300.0


def download(cache: pathlib.Path) -> pathlib.Path:
    """The source distribution of the installed Flask; downloaded once, also if several processes ask at once."""
    path = cache / f"flask-{version('flask')}.tar.gz"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "flask",
                 f"flask=={version('flask')}", "--dest", directory],
                check=True, timeout=DOWNLOAD_TIMEOUT,
            )  # fmt: skip
            [downloaded] = pathlib.Path(directory).iterdir()
            os.replace(downloaded, path)
    return path


def unpack(distribution: pathlib.Path, directory: pathlib.Path) -> None:
    """Put the application, the package `flaskr` and its tests, into a directory."""
    with tarfile.open(distribution) as archive:
        inside = f"{archive.getnames()[0].partition('/')[0]}/examples/tutorial/"
        for member in archive.getmembers():
            if member.isfile() and member.name.startswith(inside):
                target = directory / member.name.removeprefix(inside)
                target.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None
                with source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
