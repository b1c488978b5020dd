"""A shop: an app factory with a blueprint and SQLite."""

from __future__ import annotations

import os

from flask import Flask

from flask_ctl import Control

from . import orders

control = Control()


@control.command(role="observe")
def order_count() -> int:
    """Show the number of orders."""
    return orders.count()


@control.on_stop
def close() -> None:
    orders.checkpoint()


def create_app() -> Flask:
    """The app; SHOP_DATABASE is the path of its database."""
    app = Flask(__name__)
    app.config["DATABASE"] = os.environ.get("SHOP_DATABASE", "shop.db")
    orders.init_app(app)
    control.init_app(app)
    return app
