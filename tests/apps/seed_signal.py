"""The recipe of a signal handler, as printed (`request` is not even imported), with Control added."""

import signal
from types import FrameType

from flask import Flask

from flask_ctl import Control

app = Flask(__name__)
Control(app)


def shutdown_server(signum: int, frame: FrameType | None) -> None:
    print("Shutting down server...")
    func = request.environ.get("werkzeug.server.shutdown")  # type: ignore[name-defined]  # noqa: F821
    if func is not None:
        func()


@app.route("/")
def index() -> str:
    return "Hello, World!"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, shutdown_server)
    app.run(port=0)
