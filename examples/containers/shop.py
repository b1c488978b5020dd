from flask import Flask

from flask_ctl import Control

app = Flask("shop")
control = Control(app)
app.add_url_rule("/health", view_func=control.health)


@app.get("/")
def index() -> str:
    return "served"
