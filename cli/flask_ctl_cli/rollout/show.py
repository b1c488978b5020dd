"""``rollout status|resume|history``, of the records in any archive."""

from __future__ import annotations

from flask_ctl import ConfigurationError

from ..output import print_json, write
from ..settings import settings
from .place import Place
from .text import render, summary


def show_or_resume(action: str, id: str | None, place: Place) -> None:
    """Do what the action says with the record of that id; `resume` ends with the exit code of the rollout."""
    archive = place.archive
    if action == "resume":
        from .start import resume

        resume(id, place)
    if action == "status":
        document = archive.load(id)
        state = archive.state_of(document)
        if settings().json:
            print_json({**document, "state": state})
        else:
            write(render(document, state, archive.program))
        return
    found = []
    for one in archive.ids():
        if id is None or one.startswith(id):
            try:
                found.append(archive.read(one))
            except ConfigurationError as error:
                settings().say(error.message)
    states = archive.states_of(found)
    if settings().json:
        print_json([{**document, "state": state} for document, state in zip(found, states)])
    else:
        lines = [summary(document, state).partition("\n")[0] for document, state in zip(found, states)]
        write("".join(f"{line}\n" for line in lines))
