"""The one table of settings: in `app.config` and in the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..dispatch.limits import MAX_CONNECTIONS, MAX_PENDING, MAX_QUEUE, MAX_REFUSALS
from ..inspection.logs import SIZE
from ..lifecycle.app import WATCHDOG_REQUEST


@dataclass(frozen=True)
class Setting:
    """A key of `app.config`, or an environment variable, if its name begins with FLASK_CTL.

    `default` is None if the default is not one value; `meaning` is Markdown.
    """

    name: str
    default: Any
    meaning: str


SETTINGS = (
    Setting("CTL_SOCKET", None, 'control address, or a list of addresses; `"off"` for none'),
    Setting(
        "CTL_ALLOW",
        None,
        "users, groups and keys that may observe, inspect or operate, besides the app's user and root",
    ),
    Setting("CTL_TCP_OPERATE", False, "over plain TCP any local user may operate, and not only observe"),
    Setting("CTL_CURVE_KEY", None, "the file with the server's CURVE key pair"),
    Setting("CTL_CURVE_CLIENTS", None, "the directory with the public keys of authorized clients, `NAME.pub`"),
    Setting("CTL_FLEET", None, "the URL of the NATS servers over which the app is controlled, too, or a list of them"),
    Setting("CTL_FLEET_OPERATE", False, "over NATS all is allowed without TLS or authentication, not observing alone"),
    Setting("CTL_FLEET_LABELS", None, 'a dict of labels by which operators select instances, such as `{"zone": "a"}`'),
    Setting("CTL_FLEET_CREDENTIALS", None, "the credentials file (`.creds`) for NATS"),
    Setting("CTL_FLEET_NKEY", None, "the file with the seed of the NKEY for NATS"),
    Setting("CTL_FLEET_USER", None, "the user for NATS"),
    Setting("CTL_FLEET_PASSWORD", None, "the password of that user"),
    Setting("CTL_FLEET_CA", None, "the file with the certificates by which those of the NATS servers are checked"),
    Setting("CTL_FLEET_CERTIFICATE", None, "the file with the client's certificate for NATS"),
    Setting("CTL_FLEET_KEY", None, "the file with the key of that certificate"),
    Setting("CTL_FLEET_INBOX", None, "the prefix of the subjects at which answers for this client arrive"),
    Setting("CTL_GRACE", 30.0, "seconds that a stop waits for requests, unless its caller says otherwise"),
    Setting(
        "CTL_SIGNALS",
        True,
        "SIGTERM and SIGINT begin a stop; SIGHUP begins a reload, if the process has no controlling terminal",
    ),
    Setting("CTL_REQUIRED", False, "the app does not start if it can't listen at its control address"),
    Setting(
        "CTL_PREFLIGHT_TIMEOUT", 60.0, "seconds within which the new code has to be ready to serve in the preflight"
    ),
    Setting(
        "CTL_DIRECTORY",
        None,
        "absolute path of the directory in which a reload starts the program again, such as the symbolic link"
        " `/srv/shop/current`",
    ),
    Setting(
        "CTL_LOG_RING",
        SIZE,
        "log records that `flask-ctl logs` can show of the past: so many warnings and errors, and as many others while"
        " a client follows; 0 for none",
    ),
    Setting("CTL_SLOW_REQUEST", 0.0, "seconds after which a request is an event with its stack, once; 0 for never"),
    Setting(
        "CTL_METRICS",
        True,
        "requests are counted by method and class of status, and their durations, for `flask-ctl metrics`",
    ),
    Setting(
        "CTL_WATCHDOG_REQUEST",
        WATCHDOG_REQUEST,
        "under `WatchdogSec=` of systemd: seconds after which a request in flight is no sign of life any more",
    ),
    Setting("CTL_LEGACY_SHUTDOWN", False, '`environ["werkzeug.server.shutdown"]` exists, as before Werkzeug 2.1'),
    Setting(
        "CTL_MAX_CONNECTIONS",
        MAX_CONNECTIONS,
        "connections at one address; at the limit the connection that has been idle longest is closed",
    ),
    Setting("CTL_MAX_PENDING", MAX_PENDING, "unanswered commands of one connection; further commands are read later"),
    Setting("CTL_MAX_QUEUE", MAX_QUEUE, "custom commands that wait for one of four threads; more are refused (-32002)"),
    Setting(
        "CTL_MAX_REFUSALS",
        MAX_REFUSALS,
        "refused commands of one peer in ten seconds that are logged singly; further refusals ask the peer to wait",
    ),
    Setting(
        "FLASK_CTL_SOCKET",
        None,
        "the control address of the first app of a process, before `CTL_SOCKET`, and of clients; a JSON array for"
        " several",
    ),
    Setting("FLASK_CTL_DIRECTORY", None, "takes precedence over `CTL_DIRECTORY`"),
    Setting("FLASK_CTL_OWNER", None, "user whose sockets a client trusts, too: `--owner`"),
    Setting("FLASK_CTL_CLIENT_KEY", None, "the file with a client's CURVE key pair: `--client-key`"),
    Setting("FLASK_CTL_SERVER_KEY", None, "the file with the server's public CURVE key: `--server-key`"),
    Setting("FLASK_CTL_FLEET", None, "the URLs of the NATS servers of `flask-ctl fleet`, parted by commas: `--nats`"),
    Setting("FLASK_CTL_FLEET_CREDENTIALS", None, "an operator's credentials file (`.creds`) for NATS"),
    Setting("FLASK_CTL_FLEET_NKEY", None, "the file with the seed of an operator's NKEY"),
    Setting("FLASK_CTL_FLEET_USER", None, "an operator's user for NATS"),
    Setting("FLASK_CTL_FLEET_PASSWORD", None, "the password of that user"),
    Setting("FLASK_CTL_FLEET_CA", None, "the file with the certificates by which those of the servers are checked"),
    Setting("FLASK_CTL_FLEET_CERTIFICATE", None, "the file with an operator's certificate for NATS"),
    Setting("FLASK_CTL_FLEET_KEY", None, "the file with the key of that certificate"),
    Setting("FLASK_CTL_FLEET_INBOX", None, "the prefix of the subjects at which answers for an operator arrive"),
    Setting("FLASK_CTL_REMOTE", None, "the path of flask-ctl on the hosts of `--on`"),
    Setting("FLASK_CTL_SSH", None, "the ssh of `--on`, which may have options"),
)
"""Every setting; a test compares the pages of the documentation with it."""

DEFAULTS = {setting.name: setting.default for setting in SETTINGS if setting.name.startswith("CTL_")}
"""The defaults of the keys of `app.config`."""
