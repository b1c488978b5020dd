"""Draws docs/howto/top.svg: the live view of made-up figures, in 80 columns.

``python docs/view.py`` writes it.
"""

from __future__ import annotations

import asyncio
import math
import pathlib
from typing import Any

from flask_ctl import ControlClient
from flask_ctl_cli.top.app import Top
from flask_ctl_cli.top.samples import HISTORY, Watched

PICTURE = pathlib.Path(__file__).parent / "howto" / "top.svg"
RECORDS = [
    ("10:00:17", 4243, "WARNING", "shop", "payment took 2.1 s"),
    ("10:00:31", 4244, "INFO", "shop", "stock is read anew"),
    ("10:00:40", 4244, "WARNING", "shop", "no stock for book 17"),
    ("10:00:52", 4243, "ERROR", "shop.mail", "mail to a customer was refused"),
]


def _never() -> ControlClient:
    raise AssertionError("nobody is asked")


class Shop(Watched):
    """An instance that does not exist."""

    def __init__(self) -> None:
        super().__init__(_never)
        self.status = {
            "app": "shop", "state": "running", "generation": 3, "pid": 4242, "uptime": 7500,
            "server": {"name": "gunicorn", "version": "27.0.1"}, "requests": {"in_flight": 3},
            "workers": [self._worker(4243, 2, 30_217, 4), self._worker(4244, 1, 29_876, 1)],
        }  # fmt: skip
        self.requests = [
            {"age": age, "method": method, "route": route, "path": path, "worker": worker}
            for age, method, route, path, worker in (
                (8.42, "GET", "/report/<name>", "/report/tax", 4243),
                (0.31, "POST", "/order", "/order", 4244),
                (0.012, "GET", "/book/<id>", "/book/17", 4243),
            )
        ]
        for time, worker, level, logger, message in RECORDS:
            self.records.append(
                {
                    "time": f"2026-01-01T{time}.000Z",
                    "worker": worker,
                    "level": level,
                    "logger": logger,
                    "message": message,
                }
            )
        self.rates.extend(60 + 25 * math.sin(number / 7) + 12 * math.sin(number * 1.7) for number in range(HISTORY))
        self.latencies.extend(
            0.09 + 0.03 * math.cos(number / 5) + 0.02 * math.sin(number * 2.3) for number in range(HISTORY)
        )
        self.rate, self.errors, self.median, self.slow = 73.4, 0.1, 0.021, 0.118

    @staticmethod
    def _worker(pid: int, in_flight: int, total: int, errors: int) -> dict[str, Any]:
        return {
            "pid": pid, "generation": 3, "in_flight": in_flight, "rss": 61 * 2**20, "total": total, "errors": errors,
        }  # fmt: skip

    def ask(self) -> None:
        """It is as it is."""

    def follow_records(self) -> None:
        """They are there."""


async def draw() -> str:
    """The picture, as SVG."""
    shop = Shop()
    app = Top(lambda: [shop])
    async with app.run_test(size=(80, 17)) as pilot:
        while not ("refused" in (picture := app.export_screenshot(title="flask-ctl top")) and "Quit" in picture):
            await pilot.pause(0.1)
        return picture


if __name__ == "__main__":
    PICTURE.write_text(asyncio.run(draw()))
