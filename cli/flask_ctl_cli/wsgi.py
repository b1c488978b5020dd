"""The WSGI module that a server of several processes loads for ``flask-ctl run``: `app`, with a control socket."""

from __future__ import annotations

import os

from flask_ctl import Control

from .commands.run import RUN_DIRECTORY, RUN_OPTIONS, load_app, reload_in, show_log

_options = os.environ.get(RUN_OPTIONS, "").split()
show_log(quiet="quiet" in _options)
app = load_app(os.environ.get("FLASK_APP"))
reload_in(os.environ.get(RUN_DIRECTORY), app)
if "ctl" not in app.extensions:
    Control(app)
if "required" in _options:
    app.config["CTL_REQUIRED"] = True
