"""Versions of installed packages."""

from __future__ import annotations

import functools

UNKNOWN = "unknown"


@functools.cache
def version_of(package: str) -> str:
    """The version by the package's metadata, UNKNOWN without: pip takes it away for a moment while it installs."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        # None where the file is there, and has been written in part.
        return version(package) or UNKNOWN
    except (PackageNotFoundError, KeyError):
        return UNKNOWN
