"""Orders in SQLite: a connection for each request or command."""

from __future__ import annotations

import sqlite3

from flask import Blueprint, Flask, current_app, g, render_template_string, request

PAGE = """<!doctype html>
<title>Orders</title>
<link rel="icon" href="data:,">
<ul>{% for item in items %}<li>{{ item }}</li>{% endfor %}</ul>
<form>
  <label>Item <input name="item" required></label>
  <button>Order</button>
</form>
<script>
  const form = document.querySelector("form")
  form.addEventListener("submit", async event => {
    event.preventDefault()
    const response = await fetch("", {method: "POST", body: new FormData(form)})
    // Else the reload would abort a request that is not over.
    await response.text()
    location.reload()
  })
</script>
"""

blueprint = Blueprint("orders", __name__, url_prefix="/orders")


def connection() -> sqlite3.Connection:
    """The connection of this app context, which is closed with it."""
    if "connection" not in g:
        g.connection = sqlite3.connect(current_app.config["DATABASE"])
    found: sqlite3.Connection = g.connection
    return found


def count() -> int:
    """The number of orders."""
    number: int = connection().execute("SELECT count(*) FROM orders").fetchone()[0]
    return number


def checkpoint() -> None:
    """Write the journal back into the database; hooks run in an app context, too."""
    connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")


@blueprint.get("/")
def show() -> str:
    items = [item for (item,) in connection().execute("SELECT item FROM orders")]
    return render_template_string(PAGE, items=items)


@blueprint.post("/")
def add() -> tuple[str, int]:
    with connection() as transaction:
        transaction.execute("INSERT INTO orders VALUES (?)", [request.form["item"]])
    return "ordered\n", 201


def init_app(app: Flask) -> None:
    """Create the table and register the views."""
    app.register_blueprint(blueprint)

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        if "connection" in g:
            g.pop("connection").close()

    with app.app_context():
        connection().execute("PRAGMA journal_mode=WAL")
        connection().execute("CREATE TABLE IF NOT EXISTS orders (item TEXT)")
