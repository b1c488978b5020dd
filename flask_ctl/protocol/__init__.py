"""The wire protocol without I/O: JSON-RPC 2.0 values, line framing, plain-text commands.

Nothing in this package knows of sockets, threads or clocks.
"""

VERSION = 1
"""Version of the protocol. Fields may be added to it, never changed; `ping`, `status` and `stop` are frozen."""

FROZEN_METHODS = frozenset({"ping", "status", "stop"})
"""Methods that mean the same in every version of the protocol."""
