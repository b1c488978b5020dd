"""The command line of flask-ctl."""

from .main import main

__all__ = ["main"]
