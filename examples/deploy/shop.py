"""The app of every release; RELEASE is a file beside it."""

import pathlib
import time

from flask import Flask

from flask_ctl import Control

RELEASE = (pathlib.Path(__file__).parent / "RELEASE").read_text().strip()

app = Flask("shop")
Control(app)


@app.get("/")
def index() -> str:
    return f"release {RELEASE}\n"


@app.get("/slow")
def slow() -> str:
    time.sleep(2)
    return f"release {RELEASE}, slowly\n"
