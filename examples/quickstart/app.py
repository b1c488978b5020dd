"""A Flask app that other processes can stop, inspect and call."""

import time

from flask import Flask

from flask_ctl import Control

app = Flask("quickstart")
control = Control(app)
greetings = {"count": 0}


@app.get("/")
def index() -> str:
    greetings["count"] += 1
    return "Hello!\n"


@app.get("/slow")
def slow() -> str:
    time.sleep(3)
    return "This took three seconds.\n"


@control.command(role="observe")
def greeted(reset: bool = False) -> dict[str, int]:
    """Show the number of greetings; --reset sets it to 0."""
    answer = dict(greetings)
    if reset:
        greetings["count"] = 0
    return answer


@control.on_stop
def say_goodbye() -> None:
    print("on_stop: no request is in flight any more", flush=True)


if __name__ == "__main__":
    app.run(port=0)
