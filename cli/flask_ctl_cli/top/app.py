"""The view on the terminal, by Textual (the extra ``top``)."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.coordinate import Coordinate
from textual.events import Resize
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Label, Sparkline, Static

from flask_ctl import ControlClient, ControlError, printable, render_message, render_result

from .samples import Watched

INTERVAL = 1.0
"""Seconds between two samples."""

NARROW = 60
"""Columns below which the sparklines stand one above the other, and tables have fewer columns."""

LOG_LINES = 200

Discover = Callable[[], Sequence[Watched]]
"""The instances that are selected now; those that were known before are the same objects."""

THEMES = {"dark": "textual-dark", "light": "textual-light"}


def theme_of_terminal() -> str:
    """``light`` or ``dark``, as COLORFGBG tells the background of the terminal; dark without it."""
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return "light" if background in ("7", "15") else "dark"


class Turn(Message):
    """A call from another thread."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self.function = function


class Pager(ModalScreen[None]):
    """A long text, shown from its beginning, or `at_end`; any of the keys ends it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "app.pop_screen", "Close")]

    def __init__(self, title: str, text: str, *, at_end: bool = False) -> None:
        super().__init__()
        self._title, self._text, self._at_end = title, text, at_end

    def compose(self) -> ComposeResult:
        with Vertical(id="pager"):
            yield Label(Text(self._title), classes="title")
            with VerticalScroll():
                yield Static(Text(self._text), id="text")
            yield Footer()

    def on_mount(self) -> None:
        if self._at_end:
            self.query_one(VerticalScroll).scroll_end(animate=False)


class Question(ModalScreen[bool]):
    """Whether something is meant."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical(id="question"):
            yield Label(Text(self._question), id="asked")
            yield Label("y: yes   n: no")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


class Top(App[None]):
    """A live view of instances, the selected one in full."""

    CSS = """
    Screen { layout: vertical; }
    #head { height: auto; padding: 0 1; text-style: bold; }
    #problem { height: auto; padding: 0 1; color: $error; display: none; }
    #problem.shown { display: block; }
    #instances { height: auto; max-height: 8; display: none; }
    #instances.shown { display: block; }
    #figures { height: 3; }
    #figures > Vertical { width: 1fr; padding: 0 1; }
    Sparkline { height: 2; }
    .narrow #figures { height: 6; layout: vertical; }
    .narrow #figures > Vertical { height: 3; }
    #body { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    #body Static { height: auto; }
    .title { text-style: bold; color: $text-accent; }
    ModalScreen { align: center middle; }
    #question { width: auto; max-width: 90%; height: auto; padding: 1 2; border: round $warning; background: $surface; }
    #asked { width: auto; max-width: 100%; margin-bottom: 1; }
    #pager { width: 100%; height: 100%; padding: 0 1; background: $surface; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "stacks", "Stacks"),
        Binding("l", "logs", "Logs"),
        Binding("r", "reload", "Reload"),
        Binding("x", "stop", "Stop"),
        Binding("q", "quit", "Quit"),
        Binding("d", "dark", "Dark/light"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, discover: Discover, *, theme: str = "dark", interval: float = INTERVAL) -> None:
        super().__init__()
        self._discover = discover
        self._interval = interval
        self._first_theme = THEMES[theme]
        self._ended = threading.Event()
        self.watched: Sequence[Watched] = []
        self.selected: Watched | None = None
        self._rows: list[dict[str, Any]] = []
        """What the table of instances shows."""

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Static(id="problem")
        yield DataTable(id="instances", cursor_type="row", zebra_stripes=True)
        with Horizontal(id="figures"):
            with Vertical():
                yield Static(id="rate")
                yield Sparkline([], id="rates")
            with Vertical():
                yield Static(id="latency")
                yield Sparkline([], id="latencies")
        with VerticalScroll(id="body"):
            yield Static("Slowest requests in flight", classes="title")
            yield Static(id="requests")
            yield Static("Workers", classes="title", id="workers-title")
            yield Static(id="workers")
            yield Static("Log", classes="title")
            yield Static(id="records")
        footer = Footer()
        # So that the keys fit 40 columns. Early versions do not take it as an argument.
        footer.set_reactive(Footer.compact, True)
        yield footer

    def on_mount(self) -> None:
        self.theme = self._first_theme
        self.query_one("#body").can_focus = False
        self._in_thread(self._take_samples)

    def on_resize(self, event: Resize) -> None:
        self.screen_stack[0].set_class(event.size.width < NARROW, "narrow")
        self.call_after_refresh(self.show_samples)

    def on_unmount(self) -> None:
        self._ended.set()

    def _in_thread(self, function: Callable[[], Any]) -> None:
        """Run it beside the view, which does not wait for it at its end, unlike for Textual's own workers."""
        threading.Thread(target=function, daemon=True).start()

    def _soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        """From another thread: call it in the view, unless that has ended."""
        if not self._ended.is_set():
            self.post_message(Turn(functools.partial(function, *arguments)))

    @on(Turn)
    def take_turn(self, turn: Turn) -> None:
        """Do what another thread has asked for."""
        turn.function()

    def _take_samples(self) -> None:
        """Ask the instances again and again; an answer that takes long delays the next one."""
        watched: Sequence[Watched] = []
        while not self._ended.is_set():
            watched = self._discover()
            for one in watched:
                one.ask()
            self._soon(self._note, watched)
            self._ended.wait(self._interval)
        for one in watched:
            one.close()

    def _note(self, watched: Sequence[Watched]) -> None:
        self.watched = watched
        if self.selected not in watched:
            self.selected = watched[0] if watched else None
        if self.selected is not None and not self.selected.problem:
            self.selected.follow_records()
        self.show_samples()

    # What is shown

    def show_samples(self) -> None:
        """Show the last samples."""
        one = self.selected
        # Not behind another screen, nor while the view is taken down.
        if one is None or len(self.screen_stack) > 1 or not self.query("#records"):
            return
        # Without the margins and the scroll bar.
        width = max(self.size.width - 3, 20)
        self._show_instances(width)
        self._text("head", Text(_headline(one)))
        problem = self.query_one("#problem", Static)
        problem.set_class(bool(one.problem), "shown")
        problem.update(Text(one.problem))
        self._text("rate", Text(f"{one.rate:.1f} requests/s, {one.errors:.1f} errors/s"))
        self._text("latency", Text(f"p50 {_seconds(one.median)}, p95 {_seconds(one.slow)}"))
        self.query_one("#rates", Sparkline).data = list(one.rates)
        self.query_one("#latencies", Sparkline).data = list(one.latencies)
        self._text("requests", _requests(one, width))
        workers = [] if one.status is None else one.status["workers"]
        self.query_one("#workers-title").display = bool(workers)
        self._text("workers", _workers(workers, width))
        lines = (_record(record, width) for record in one.records)
        self._text("records", Text("\n".join(_cut(line, width) for line in lines if line)))

    def _text(self, id: str, text: Text) -> None:
        self.query_one(f"#{id}", Static).update(text)

    def _show_instances(self, width: int) -> None:
        table: DataTable[Any] = self.query_one("#instances", DataTable)
        table.set_class(len(self.watched) > 1, "shown")
        rows = [_instance(one, width) for one in self.watched]
        if not rows:
            return
        place = next((n for n, one in enumerate(self.watched) if one is self.selected), 0)
        with self.prevent(DataTable.RowHighlighted):
            # A table that is filled anew has no height for a moment, which is long where the machine is busy.
            if [list(row) for row in rows] == [list(row) for row in self._rows]:
                self._update_cells(table, rows)
            else:
                table.clear(columns=True)
                table.add_columns(*rows[0])
                for row in rows:
                    table.add_row(*(Text(str(cell)) for cell in row.values()))
            self._rows = rows
            table.move_cursor(row=place)

    def _update_cells(self, table: DataTable[Any], rows: Sequence[dict[str, Any]]) -> None:
        for number, (row, before) in enumerate(zip(rows, self._rows)):
            for column, name in enumerate(row):
                if row[name] != before[name]:
                    table.update_cell_at(Coordinate(number, column), Text(str(row[name])), update_width=True)

    @on(DataTable.RowHighlighted)
    def choose(self, event: DataTable.RowHighlighted) -> None:
        """Another instance is shown in full."""
        if 0 <= event.cursor_row < len(self.watched):
            self.selected = self.watched[event.cursor_row]
            if not self.selected.problem:
                self.selected.follow_records()
            self.show_samples()

    # Keys

    def action_dark(self) -> None:
        """Change between dark and light."""
        self.theme = THEMES["light" if self.theme == THEMES["dark"] else "dark"]

    def action_stacks(self) -> None:
        """Show the stacks of what serves requests."""
        self._open("stacks", lambda client: render_result("stacks", client.stacks()))

    def action_logs(self) -> None:
        """Show the last log records."""

        def read(client: ControlClient) -> str:
            return "\n".join(filter(None, (render_message("logs", m) for m in client.follow("logs", lines=LOG_LINES))))

        self._open("logs", read)

    def action_reload(self) -> None:
        """Reload the code, once that is confirmed."""
        self._confirm("reload", lambda client: client.reload(timeout=None))

    def action_stop(self) -> None:
        """Stop the server, once that is confirmed."""
        self._confirm("stop", lambda client: client.stop())

    def _complain(self, title: str, text: str) -> None:
        self.notify(text, title=title, severity="error", markup=False)

    def _say(self, text: str) -> None:
        self.notify(text.rstrip(), markup=False)

    def _open(self, method: str, read: Callable[[ControlClient], str]) -> None:
        if self.selected is not None:
            # The newest record is the last one.
            at_end = method == "logs"
            self._ask(
                self.selected,
                method,
                read,
                lambda text: self.push_screen(Pager(method, text or "nothing", at_end=at_end)),
            )

    def _confirm(self, method: str, act: Callable[[ControlClient], Any]) -> None:
        one = self.selected
        if one is None or one.status is None:
            return
        who = f"{one.status['app']}, pid {one.status['pid']}"

        def answered(yes: bool | None) -> None:
            if yes:
                self._say(f"{method} of {who} has begun")
                self._ask(one, method, lambda client: render_result(method, act(client)), self._say)

        self.push_screen(Question(f"{method.capitalize()} {who}?"), answered)

    def _ask(self, one: Watched, method: str, ask: Callable[[ControlClient], str], show: Callable[[str], Any]) -> None:
        def run() -> None:
            try:
                with one.connect() as client:
                    text = ask(client)
            except ControlError as error:
                self._soon(self._complain, f"{method} failed", error.message)
            else:
                self._soon(show, text)

        self._in_thread(run)


def _headline(one: Watched) -> str:
    status = one.status
    if status is None:
        return one.name or "…"
    server = f"{status['server'].get('name', '')} {status['server'].get('version', '')}".strip()
    return (
        f"{status['app']}  {status['state']}  generation {status['generation']}  pid {status['pid']}"
        f"  up {_age(status['uptime'])}  {server}"
    )


def _instance(one: Watched, width: int) -> dict[str, Any]:
    status = one.status
    row: dict[str, Any] = {"name": one.name if status is None else status["app"]}
    row["state"] = "?" if status is None or one.problem else status["state"]
    row["req/s"] = f"{one.rate:.1f}"
    row["p95"] = _seconds(one.slow)
    if width >= NARROW:
        row["in flight"] = "" if status is None else status["requests"]["in_flight"]
        row["workers"] = "" if status is None else len(status["workers"]) or 1
        row["gen."] = "" if status is None else status["generation"]
        row["pid"] = "" if status is None else status["pid"]
    return row


def _requests(one: Watched, width: int) -> Text:
    if not one.requests:
        return Text("none")
    lines = []
    for request in one.requests[:10]:
        where = request.get("path") or request["route"] or "(no route)"
        worker = f"  {request['worker']}" if width >= NARROW else ""
        lines.append(_cut(f"{_seconds(request['age']):>8}  {request['method']} {where}{worker}", width))
    if len(one.requests) > len(lines):
        lines.append(f"… {len(one.requests) - len(lines)} more")
    return Text("\n".join(lines))


def _record(record: dict[str, Any], width: int) -> str:
    if "time" not in record:
        return str(record["problem"]) if "problem" in record else render_message("logs", record)
    worker = f" [{record['worker']}]" if width >= NARROW and "worker" in record else ""
    line = f"{record['time'][11:19]}{worker} {record['level']} {record['logger']}: {record['message']}".partition("\n")[
        0
    ]
    return printable(line, keep="")


def _workers(workers: Iterable[dict[str, Any]], width: int) -> Text:
    lines = []
    for worker in workers:
        memory = f"  {worker['rss'] / 2**20:.0f} MiB" if worker["rss"] else ""
        if width >= NARROW:
            more = (
                f"{memory}  {worker['total']} requests  {worker['errors']} error{'' if worker['errors'] == 1 else 's'}"
            )
            line = f"{worker['pid']:>8}  generation {worker['generation']}  {worker['in_flight']} in flight{more}"
        else:
            line = f"{worker['pid']:>8}  gen. {worker['generation']}  {worker['in_flight']} in flight{memory}"
        lines.append(_cut(line, width))
    return Text("\n".join(lines))


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _age(value: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= length:
            return f"{value / length:.0f} {unit}"
    return f"{value:.0f} s"


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"
