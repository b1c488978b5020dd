"""The command line of flask-ctl."""

from .init import fork_as_init

# Before anything else is imported.
fork_as_init()

from .main import main  # noqa: E402

__all__ = ["main"]
