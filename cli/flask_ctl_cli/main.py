"""``flask-ctl``: the group of commands, and the one place that exits."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from .commands import BUILTIN
from .group import ControlGroup
from .output import print_error
from .run import run

cli = ControlGroup(
    "flask-ctl",
    commands=[run, *BUILTIN],
    help="Stop, inspect and call a Flask app that runs in another process.",
    epilog="Without --socket: FLASK_CTL_SOCKET, else the one instance that runs in this directory.",
)

ABORTED = 130


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and exit with the code that tells how it went."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        code = cli.main(arguments, prog_name="flask-ctl", standalone_mode=False)
    except click.ClickException as error:
        if "--json" in arguments:
            print_error(error.format_message(), exit_code=error.exit_code, as_json=True)
        else:
            error.show()
        code = error.exit_code
    except click.Abort:
        code = ABORTED
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        code = 1
    sys.exit(code)
