"""The common options of all commands, and the client for the instance that they select."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from flask_ctl import ControlClient, ControlError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

BRIEF_TIMEOUT = 1.0
"""Seconds to wait for the instance while help or a completion is shown."""

_META = "flask_ctl_cli.settings"


class Settings:
    """The values of the common options, given before or after the command's name.

    `command` is the name of the command that is sent, `wait_option` the option that sets the time-out for its answer.
    """

    def __init__(self) -> None:
        self.socket: str | None = None
        self.timeout: float | None = None
        self.json = False
        self.quiet = False
        self.command = ""
        self.wait_option = "--timeout"
        self.owner: str | None = None
        self.client_key: str | None = None
        self.server_key: str | None = None
        self.default_socket: Callable[[], str | None] = lambda: None
        self._described: dict[str, Any] | None = None
        self._searches = False

    def client(self, *, operate: bool = False) -> ControlClient:
        """A client for the selected instance; the socket of an instance found by a search is printed on stderr.

        `operate` is for commands that may have side effects: the search follows a narrower rule, see `find_instance`.
        """
        if self.socket is None and not os.environ.get("FLASK_CTL_SOCKET"):
            self.socket = self.default_socket()
            self._searches = self.socket is None
        if self._searches:
            self.socket = self._find(operate)
        options: dict[str, Any] = {} if self.timeout is None else {"timeout": self.timeout}
        return ControlClient(
            self.socket, owner=self.owner, client_key=self.client_key, server_key=self.server_key, **options
        )

    def described_commands(self) -> dict[str, Any]:
        """The descriptions of the instance's commands by name; only the first call asks the instance."""
        if self._described is None:
            with self.client() as client:
                self._described = client.commands()
        return self._described

    def command_names(self) -> list[str]:
        """The names of the instance's commands, for help and completion; empty if the instance does not answer."""
        self.be_brief()
        try:
            return list(self.described_commands())
        except (ControlError, click.ClickException):
            return []

    def be_brief(self) -> None:
        """For help and completion: print no remarks, and wait for BRIEF_TIMEOUT at most."""
        self.quiet, self.timeout = True, BRIEF_TIMEOUT

    def say(self, message: str) -> None:
        """Print a remark on stderr, unless --quiet is given."""
        if not self.quiet:
            click.echo(message, err=True)

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


def _complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _complete_socket(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from flask_ctl import live_instances

    live = [found.socket for found in live_instances() if found.socket.startswith(incomplete)]
    return [*map(CompletionItem, live), CompletionItem(incomplete, type="file")]


_STORE: dict[str, Any] = {"callback": _store, "expose_value": False, "is_eager": True, "default": None}


def common_options() -> list[click.Parameter]:
    """New --socket, --timeout, --json and --quiet options, which store their values in the Settings."""
    return [
        click.Option(
            ["--socket", "-s"],
            metavar="ADDRESS",
            help="Address of the control socket.",
            shell_complete=_complete_socket,
            **_STORE,
        ),
        click.Option(
            ["--timeout"],
            type=Seconds(),
            metavar="SECONDS",
            help="Wait at most this long for an answer.  [default: 5; stop: delay + grace + 5; reload, call: none]",
            **_STORE,
        ),
        click.Option(["--json"], is_flag=True, help="Print one JSON document.", **_STORE),
        click.Option(
            ["--quiet", "-q"], is_flag=True, help="Print no remarks; ping, stop and reload print nothing.", **_STORE
        ),
    ]


def trust_options() -> list[click.Parameter]:
    """New --owner, --client-key and --server-key options, which store their values in the Settings."""
    file: dict[str, Any] = {"metavar": "FILE", "shell_complete": _complete_file, **_STORE}
    return [
        click.Option(["--owner"], metavar="USER", help="Trust sockets of this user, too.", **_STORE),
        click.Option(["--client-key"], help="Your own CURVE key pair, for TCP.", **file),
        click.Option(["--server-key"], help="The server's public CURVE key, for TCP.", **file),
    ]


class ControlCommand(click.Command):
    """A command with the common options. `examples` are command lines for the end of its help."""

    def __init__(
        self,
        name: str | None,
        *,
        params: list[click.Parameter] | None = None,
        examples: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self.examples = examples
        # The mark keeps click from filling the lines.
        epilog = "\b\n" + "\n".join(["Examples:", *(f"  {example}" for example in examples)]) if examples else None
        super().__init__(name, params=[*(params or []), *common_options()], epilog=epilog, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        settings_of(ctx).command = ctx.info_name or ""
        return super().invoke(ctx)


class ClientCommand(ControlCommand):
    """A built-in command that connects to a server: it also has the trust options.

    The app's own commands take the trust options before their name, so that a parameter may have the name of one.
    """

    def __init__(self, name: str | None, *, params: list[click.Parameter] | None = None, **kwargs: Any) -> None:
        super().__init__(name, params=[*(params or []), *trust_options()], **kwargs)
