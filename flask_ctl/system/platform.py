"""What differs from system to system."""

from __future__ import annotations

import os
import sys

from .native import socket

HAS_UNIX_SOCKETS = hasattr(socket, "AF_UNIX") and hasattr(os, "fork")

LINUX = sys.platform.startswith("linux")

MAX_SOCKET_PATH = 107 if LINUX else 103
"""Bytes in the path of a Unix socket, without the final NUL: unix(7)."""
