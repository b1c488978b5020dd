"""Text of others for a terminal."""

from __future__ import annotations


def printable(text: str, keep: str = "\n") -> str:
    """The text without what a terminal might take for a command; it stays on one line if `keep` is ""."""
    return "".join(char if char.isprintable() or char in keep else f"\\x{ord(char):02x}" for char in text)
