"""What ``flask-ctl run`` has a server of several processes load: the app, with a control socket."""

from __future__ import annotations

import os

from flask_ctl import Control

from .commands.run import MANNER, load, show_log

_manner = os.environ.get(MANNER, "").split()
show_log(quiet="quiet" in _manner)
app = load(os.environ.get("FLASK_APP"))
if "ctl" not in app.extensions:
    Control(app)
if "required" in _manner:
    app.config["CTL_REQUIRED"] = True
