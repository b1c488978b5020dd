"""The recipe of a shutdown route, as people have copied it for years, with Control added."""

from flask import Flask, request

from flask_ctl import Control

app = Flask(__name__)
app.config["CTL_LEGACY_SHUTDOWN"] = True
Control(app)


@app.route("/shutdown", methods=["POST"])
def shutdown() -> str:
    func = request.environ.get("werkzeug.server.shutdown")
    if func is None:
        raise RuntimeError("Not running with the Werkzeug Server")
    func()
    return "Server shutting down..."


if __name__ == "__main__":
    app.run(port=0)
