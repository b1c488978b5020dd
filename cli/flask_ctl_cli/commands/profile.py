"""``flask-ctl profile``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from ..files import replace_file
from ..many import for_each
from ..output import print_json, write
from ..settings import ClientCommand, Seconds, settings
from ..terminal import can_move

FORMS = {
    ".svg": "svg",
    ".json": "speedscope",
    ".txt": "collapsed",
    ".collapsed": "collapsed",
    ".folded": "collapsed",
}
"""The form of a file, by the end of its name."""


@click.command(
    cls=ClientCommand,
    role="inspect",
    impact="medium",
    impact_note="2% of a processor at most; threads switch more often for a fifth of the time",
    examples=["flask-ctl profile", "flask-ctl profile --seconds 30 --route '/pay/<id>' --requests-only -o pay.svg"],
)
@click.option("--seconds", type=Seconds(), default=10.0, show_default=True, help="For so long; 600 at most.")
@click.option("--hz", type=click.FloatRange(1, 1000), default=100.0, show_default=True,
              help="Samples of requests a second, if 2% of a processor permits that.")  # fmt: skip
@click.option("--route", metavar="RULE", help="Only requests with this rule: '/pay/<id>' or 'GET /pay/<id>'.")
@click.option("--requests-only", is_flag=True, help="No threads and greenlets that serve no request.")
@click.option("--worker", type=click.IntRange(min=1), metavar="PID", help="Only this worker.")
@click.option("--output", "-o", type=click.Path(dir_okay=False), metavar="FILE",
              help="Write a flame graph (.svg), a file for speedscope (.json), collapsed stacks (.txt).")  # fmt: skip
def profile(output: str | None, **wanted: Any) -> None:
    """Show where requests and threads spend their time, by samples of their stacks.

    The table has the routes and the functions with the most time. It is time on the clock: waiting counts, and what C
    code takes counts for the Python function that has called it. The profile ends with this program.
    """
    form = _form(output)
    if settings().selects_many:
        if output is not None:
            raise click.UsageError("a file is for the profile of one instance; select one by --socket")
        for_each("profile", lambda client: client.profile(**wanted), code=_code, text=_text)
    with settings().client() as client, _progress(wanted["seconds"]) as show:
        result = client.profile(**wanted, on_progress=show)
    if output is not None:
        _write_file(output, _text(result, form))
        settings().say(f"written to {output}")
    if settings().json:
        print_json(result)
    else:
        write(_text(result))
    if code := _code(result):
        raise click.exceptions.Exit(code)


def _form(output: str | None) -> str:
    """The form for a file; a name with another end, or a directory that is not there, is wrong usage."""
    if output is None:
        return ""
    form = FORMS.get(os.path.splitext(output)[1])
    if form is None:
        raise click.UsageError(f"the end of the file's name says what it is to be: {', '.join(FORMS)}")
    place = os.path.dirname(os.path.abspath(output))
    if not os.access(place, os.W_OK):
        raise click.UsageError(f"no file can be written in {place}")
    return form


def _write_file(path: str, text: str) -> None:
    try:
        replace_file(path, text.encode())
    except OSError as error:
        click.echo(f"Error: {path} can't be written: {error.strerror}", err=True)
        raise click.exceptions.Exit(1) from None


def _text(result: Any, form: str = "table") -> str:
    from flask_ctl import render_profile

    return render_profile(result, form)  # type: ignore[arg-type]


def _code(result: dict[str, Any]) -> int:
    return 4 if result["unanswered"] and not result["processes"] else 0


@contextlib.contextmanager
def _progress(seconds: float) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """A function that shows on a terminal how far the profile is; None elsewhere."""
    if settings().quiet or not can_move(sys.stderr):
        yield None
        return

    def show(progress: Mapping[str, Any]) -> None:
        line = f"{progress['elapsed']:.0f} of {seconds:g} s, {progress['samples']} samples"
        click.echo(f"\r\033[K{line}", err=True, nl=False)

    try:
        yield show
    finally:
        click.echo("\r\033[K", err=True, nl=False)
