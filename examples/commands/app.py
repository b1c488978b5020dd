"""A job queue whose operators look at it, empty it and change its speed, without an admin page."""

import enum
from collections import deque

from flask import Flask

from flask_ctl import Control

app = Flask("jobs")
control = Control(app)
waiting: deque[str] = deque()


class Speed(enum.Enum):
    SLOW = "slow"
    FAST = "fast"


settings = {"speed": Speed.SLOW}


@app.post("/jobs/<name>")
def add(name: str) -> tuple[str, int]:
    waiting.append(name)
    return "accepted\n", 202


@control.command(role="observe")
def queue(limit: int = 10) -> dict[str, object]:
    """Show the number of waiting jobs and the first LIMIT names."""
    return {"waiting": len(waiting), "first": list(waiting)[:limit], "speed": settings["speed"].value}


@control.command
def discard(names: list[str]) -> int:
    """Remove jobs by name; print how many there were."""
    found = [name for name in waiting if name in names]
    for name in found:
        waiting.remove(name)
    return len(found)


@control.command
def speed(to: Speed) -> str:
    """Change the speed of the workers."""
    settings["speed"] = to
    return f"the workers are {to.value} now"


@control.on_stop
def save() -> None:
    print(f"on_stop: {len(waiting)} jobs saved", flush=True)


if __name__ == "__main__":
    control.run(port=0)
