"""A desktop program: it serves its own window, and saves before it ends.

A real one opens ``server.url`` in a web view; this one asks it itself, so that it runs without a display.
"""

from __future__ import annotations

import sys
import threading
import urllib.request

from flask import Flask, request

from flask_ctl import BackgroundServer, Control

app = Flask("notes")
control = Control(app)
notes: list[str] = []
closed = threading.Event()


@app.post("/notes")
def add() -> tuple[str, int]:
    notes.append(request.get_data(as_text=True))
    return "noted\n", 201


@app.post("/quit")
def close_window() -> str:
    closed.set()
    return "bye\n"


@control.on_stop
def save() -> None:
    print(f"saved: {', '.join(notes)}", flush=True)


def window(url: str) -> None:
    """Stands for the user: a note, and the button that closes the window."""
    urllib.request.urlopen(f"{url}/notes", b"buy ink").read()
    urllib.request.urlopen(f"{url}/quit", b"").read()


def main() -> int:
    with BackgroundServer(app) as server:
        threading.Thread(target=window, args=[server.url], daemon=True).start()
        closed.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
