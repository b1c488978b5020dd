"""The common options of all commands, and the client for the instance that they select."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import click

from flask_ctl import ControlClient, ControlError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

HELP_TIMEOUT = 1.0
"""Seconds to wait for the instance's commands while help is shown."""

_META = "flask_ctl_cli.settings"


class Session:
    """What the commands of a shell have in common: an address, whom to trust, and one connection.

    `begin` has all Settings use it from then on that say nothing else.
    """

    current: ClassVar[Session | None] = None

    def __init__(self, given: Settings, client: ControlClient) -> None:
        self.given = given
        self.client = client

    def begin(self) -> None:
        """Commands belong to it from now on."""
        Session.current = self


class Settings:
    """The values of the common options, given before or after the command's name.

    `command` is the name of the command that is sent, `wait_option` the option that sets the time-out for its answer.
    """

    def __init__(self) -> None:
        self.socket: str | None = None
        self.sockets: tuple[str, ...] = ()
        self.timeout: float | None = None
        self.json = False
        self.quiet = False
        self.command = ""
        self.wait_option = "--timeout"
        self.owner: str | None = None
        self.selected_name: str | None = None
        self.selected_dir: str | None = None
        self.selected_all = False
        self.on: str | None = None
        self.nats: tuple[str, ...] = ()
        self.labels: dict[str, str] = {}
        self.host_pattern: str | None = None
        self.instance_pattern: str | None = None
        self.common_words: list[str] = []
        self.command_words: list[str] = []
        self.client_key: str | None = None
        self.server_key: str | None = None
        self.default_socket: Callable[[], str | None] = lambda: None
        self._described: dict[str, Any] | None = None
        self._searches = False
        self._is_brief = False
        self._session = Session.current
        if self._session is not None:
            self.json, self.quiet = self._session.given.json, self._session.given.quiet

    def client(self, *, operate: bool = False) -> ControlClient:
        """A client for the selected instance; the socket of an instance found by a search is printed on stderr.

        `operate` is for commands that may have side effects: the search follows a narrower rule, see `find_instance`.
        Raises AmbiguousTarget if several instances are selected, NotRunning if none is.
        """
        if self.selects_many:
            from .selection import the_only

            return the_only(self).client(self)
        if self._session is not None and self.socket is None:
            if self.timeout is None:
                return self._session.client
            self._take_over(self._session.given)
        if self.socket is None and not self._searches and not os.environ.get("FLASK_CTL_SOCKET"):
            self.socket = self.default_socket()
            self._searches = self.socket is None and not os.environ.get("FLASK_CTL_SOCKET")
        if self._searches:
            self.socket = self._find(operate)
        options: dict[str, Any] = {} if self.timeout is None else {"timeout": self.timeout}
        return ControlClient(
            self.socket, owner=self.owner, client_key=self.client_key, server_key=self.server_key, **options
        )

    def described_commands(self) -> dict[str, Any]:
        """The descriptions of the commands by name, of all selected instances; only the first call asks them.

        After `be_brief` they are {} if the instance does not answer.
        """
        if self._described is None:
            try:
                self._described = self._ask_for_commands()
            except (ControlError, click.ClickException):
                if not self._is_brief:
                    raise
                self._described = {}
        return self._described

    def forget_described(self) -> None:
        """Other instances are selected from now on."""
        self._described = None

    def be_brief(self, timeout: float) -> None:
        """For help and completion: print no remarks, and wait at most this long; a shorter wait stays."""
        if not self._is_brief:
            self._is_brief, self.quiet, self.timeout = True, True, timeout

    @property
    def selects(self) -> bool:
        """Whether --name, --dir or --all select instances."""
        return self.selected_name is not None or self.selected_dir is not None or self.selected_all

    @property
    def selects_many(self) -> bool:
        """Whether a command is for several instances, even if only one is found."""
        return self.selects or len(self.sockets) > 1

    def say(self, message: str) -> None:
        """Print a remark on stderr, unless --quiet is given."""
        if not self.quiet:
            click.echo(message, err=True)

    def _ask_for_commands(self) -> dict[str, Any]:
        if not self.selects_many:
            with self.client() as client:
                return client.commands()
        from .many import ask_each
        from .selection import targets

        answers = ask_each(lambda client: client.commands(), targets(self))
        if all(answer.error is not None for answer in answers):
            raise answers[0].error or ControlError("no instance has answered")
        return {name: told for answer in reversed(answers) for name, told in (answer.result or {}).items()}

    def _take_over(self, given: Settings) -> None:
        """Use the address and the trust of a session, on another connection."""
        self.socket, self.owner = given.socket, self.owner or given.owner
        self.client_key, self.server_key = self.client_key or given.client_key, self.server_key or given.server_key

    def _find(self, operate: bool) -> str:
        from flask_ctl import find_instance

        if self.socket is not None and not operate:
            return self.socket
        socket = find_instance(timeout=self.timeout, operate=operate)
        if socket != self.socket:
            self.say(f"using {socket}")
        return socket


def settings() -> Settings:
    """The settings of the running command."""
    return settings_of(click.get_current_context())


def settings_of(ctx: click.Context) -> Settings:
    """The settings of a click context, which a command shares with its groups."""
    found: Settings = ctx.meta.setdefault(_META, Settings())
    return found


class Seconds(click.FloatRange):
    """A duration: finite, 0 or more."""

    name = "number of seconds"

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value!r} is not a number of seconds.", param, ctx)


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        setattr(settings_of(ctx), param.name or "", value)


def _store_sockets(ctx: click.Context, param: click.Parameter, value: tuple[str, ...] | None) -> None:
    if value:
        settings_of(ctx).sockets, settings_of(ctx).socket = value, value[-1]


def _complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _complete_socket(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from .completion import sockets

    return sockets(incomplete)


STORE: dict[str, Any] = {"callback": _store, "expose_value": False, "is_eager": True, "default": None}
"""For options that store their values in the Settings."""


def common_options() -> list[click.Parameter]:
    """New --socket, --timeout, --json and --quiet options, which store their values in the Settings."""
    return [
        click.Option(
            ["--socket", "-s"],
            metavar="ADDRESS",
            multiple=True,
            help="Address of the control socket; can be given several times.",
            shell_complete=_complete_socket,
            **{**STORE, "callback": _store_sockets},
        ),
        click.Option(
            ["--timeout"],
            type=Seconds(),
            metavar="SECONDS",
            help="Wait at most this long for an answer."
            "  [default: 5; stop: delay + grace + 5; drain, resume: 60; reload, call: none]",
            **STORE,
        ),
        click.Option(["--json"], is_flag=True, help="Print one JSON document.", **STORE),
        click.Option(
            ["--quiet", "-q"], is_flag=True, help="Print no remarks; ping, stop and reload print nothing.", **STORE
        ),
    ]


def trust_options() -> list[click.Parameter]:
    """New --owner, --client-key and --server-key options, which store their values in the Settings."""
    file: dict[str, Any] = {"metavar": "FILE", "shell_complete": _complete_file, **STORE}
    return [
        owner_option(),
        click.Option(["--client-key"], help="Your own CURVE key pair, for TCP.", **file),
        click.Option(["--server-key"], help="The server's public CURVE key, for TCP.", **file),
    ]


def owner_option() -> click.Option:
    """A new --owner option, which stores its value in the Settings."""
    words = "Trust sockets of this user, too; with --name, --dir or --all: select that user's instances."
    return click.Option(["--owner"], metavar="USER", help=words, **STORE)


def selection_options() -> list[click.Parameter]:
    """New --name, --dir and --all options, which select instances, and store their values in the Settings."""
    return [
        click.Option(
            ["--name", "selected_name"],
            metavar="PATTERN",
            help="Instances of apps with such a name: 'shop*'.",
            **STORE,
        ),
        click.Option(
            ["--dir", "selected_dir"],
            metavar="DIRECTORY",
            help="Instances that run in this directory or below it.",
            shell_complete=_complete_file,
            **STORE,
        ),
        click.Option(
            ["--all", "selected_all"],
            is_flag=True,
            help="All of your instances; with --owner those of that user.",
            **STORE,
        ),
    ]


def hosts_option() -> click.Option:
    """A new --on option, which stores its value in the Settings."""
    words = "Run the command on these hosts, over ssh; @FILE has a host a line. See docs/howto/hosts.md."
    return click.Option(["--on"], metavar="HOST[,HOST]", help=words, **STORE)


class ControlCommand(click.Command):
    """A command with the common options.

    `examples` are command lines for the end of its help. Where a server does the work, the help also says which `role`
    that needs, and the `impact` on the server: ``low``, ``medium`` or ``high``, with a note.
    """

    def __init__(
        self,
        name: str | None,
        *,
        params: list[click.Parameter] | None = None,
        examples: Sequence[str] = (),
        role: str | None = None,
        impact: str = "low",
        impact_note: str = "",
        **kwargs: Any,
    ) -> None:
        self.examples = examples
        self.role, self.impact, self.impact_note = role, impact, impact_note
        needs = "" if role is None else f"Role: {role}. Impact: {impact}{impact_note and f' ({impact_note})'}."
        # The mark keeps click from filling the lines.
        lines = "\n".join(["\b\nExamples:", *(f"  {example}" for example in examples)]) if examples else ""
        epilog = "\n\n".join(filter(None, [needs, lines]))
        super().__init__(name, params=[*(params or []), *self.common_options()], epilog=epilog, **kwargs)

    def common_options(self) -> list[click.Parameter]:
        """New options that it has like all commands of its kind."""
        return common_options()

    def invoke(self, ctx: click.Context) -> Any:
        settings_of(ctx).command = ctx.info_name or ""
        return super().invoke(ctx)


class ClientCommand(ControlCommand):
    """A built-in command that connects to servers: it also has the trust options, and those that select instances.

    An option of its own has precedence: --all of `stacks` can be given before the name, to select. The app's own
    commands take the trust options before their name, so that a parameter may have the name of one.
    """

    def __init__(self, name: str | None, *, params: list[click.Parameter] | None = None, **kwargs: Any) -> None:
        own = {word for param in params or [] for word in param.opts}
        selection = [option for option in selection_options() if own.isdisjoint(option.opts)]
        super().__init__(name, params=[*(params or []), *trust_options(), *selection], **kwargs)
